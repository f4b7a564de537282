"""Compile every Triton and Gluon kernel for Hopper at the published widths, on a machine without a GPU: `python compile_for_hopper.py`.

A stand-in for the driver names the target; each launch then ends after its compilation, so the results are never computed. Prints one line
a kernel: name, bytes of shared memory. Exits with an error if one does not compile or needs more shared memory than the card has.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

SHARED_BYTES = 232448
"""What one program can have on an H100 or H200 (227 KiB)."""
BF16 = torch.bfloat16


class Hopper:
    """As much of a driver as the compiler asks for."""

    utils = SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": SHARED_BYTES, "multiprocessor_count": 132}
    )

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


launch = JITFunction.run


def compile_only(self: JITFunction, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> Any:
    """Stands for `JITFunction.run`."""
    kernel = launch(self, *arguments, grid=grid, warmup=True, **named)
    print(kernel.metadata.name, kernel.metadata.shared, flush=True)
    if kernel.metadata.shared > SHARED_BYTES:
        raise SystemExit(
            f"{kernel.metadata.name} needs {kernel.metadata.shared} bytes of shared memory of {SHARED_BYTES}"
        )
    return kernel


driver.set_active(Hopper())
JITFunction.run = compile_only
torch.cuda.get_device_capability = lambda device=None: (9, 0)
torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(multi_processor_count=132)
# The matrix library's products with float32 results exist on GPUs alone.
torch.addmm = lambda total, *_, **__: total

from samepath.kernels import (
    triton_attention_decode,
    triton_attention_forward,
    triton_attention_mass,
    triton_dense_rows,
    triton_expert_product,
    triton_head_product,
    triton_index_logits,
    triton_logprob,
    triton_selected_logits,
    triton_selection_gluon,
)
from samepath.kernels.triton_attention_backward import SavedRows, attend_backward

ROWS, KEYS, SELECTED = 16, 4096, 2048


def random(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(shape).to(dtype).requires_grad_()


def attention(dtype: torch.dtype, heads: int, key_width: int, value_width: int) -> None:
    """Forward, mass, both backwards."""
    with torch.no_grad():
        q, kv = random(ROWS, heads, key_width, dtype=dtype), random(KEYS, key_width, dtype=dtype)
        indices = torch.zeros(ROWS, SELECTED, dtype=torch.int32)
        counts = torch.full((ROWS,), SELECTED, dtype=torch.int32)
        out, lse = triton_attention_forward.attend_forward(q, kv, indices, counts, 0.1, value_width)
        triton_attention_decode.attend_decode(q, kv, indices, counts, 0.1, value_width)
        triton_attention_mass.attention_mass(q, kv, indices, counts, lse, 0.1)
        saved = SavedRows(q_NHK=q, kv_SK=kv, indices_NC=indices, count_N=counts, out_NHV=out, lse_NH=lse, scale=0.1)
        for deterministic in (True, False):
            attend_backward(saved, torch.zeros_like(out), deterministic=deterministic)


def indexer(dtype: torch.dtype) -> None:
    """Logits, selection, gradients at the selected keys."""
    q, k, weights = random(1, ROWS, 64, 128, dtype=dtype), random(1, KEYS, 128, dtype=dtype), random(1, ROWS, 64)
    with torch.no_grad():
        logits = triton_index_logits.index_logits(q, k, weights)
        triton_index_logits.index_logits_fp8(q, k, weights)
        triton_index_logits.index_logits_fp8(q, k, weights, exact=True)
        starts = torch.zeros(ROWS, dtype=torch.int64)
        triton_selection_gluon.select(logits[0], starts, starts + KEYS, SELECTED)
    indices = torch.zeros(ROWS, SELECTED, dtype=torch.int32)
    triton_selected_logits.selected_index_logits(q[0], k[0], weights[0], indices).sum().backward()


def dense_rows(dtype: torch.dtype) -> None:
    """Linear map, norm, products of heads, experts, head."""
    x = random(ROWS, 2048, dtype=dtype)
    triton_dense_rows.linear(x, random(2048, 2048, dtype=dtype)).sum().backward()
    triton_dense_rows.rms_norm(x, random(2048, dtype=dtype), 1e-6).sum().backward()
    triton_head_product.head_product(
        random(ROWS, 128, 128, dtype=dtype), random(128, 128, 512, dtype=dtype)
    ).sum().backward()
    ids = torch.arange(ROWS * 8).view(ROWS, 8) % 64
    experts = random(64, 2 * 1408, 2048, dtype=dtype), random(64, 2048, 1408, dtype=dtype)
    triton_expert_product.expert_product(x, random(ROWS, 8, dtype=dtype), ids, *experts).sum().backward()
    targets = torch.zeros(ROWS, dtype=torch.int64)
    head = random(4096, 2048, dtype=dtype)
    triton_logprob.head_logprobs(x, head, targets, torch.ones(ROWS), None)[0].sum().backward()


if __name__ == "__main__":
    attention(BF16, 128, 576, 512)
    attention(BF16, 16, 576, 512)
    attention(torch.float32, 16, 288, 256)
    for dtype in (BF16, torch.float32):
        indexer(dtype)
        dense_rows(dtype)
