"""Compile every Triton and Gluon kernel for Hopper at the published widths, on a machine without a GPU: `python compile_for_hopper.py`.

A stand-in for the driver names the target; each launch then ends after its compilation, so the results are never computed. Prints one line
a launch: kernel, grid, warps, bytes of shared memory, fingerprint of its instructions. Equal output before and after a change of the kernels' code,
whatever names and lines became, shows that no result and no speed changes. Exits with an error if one does not compile or needs more shared
memory than the card has.
"""

from types import SimpleNamespace
from typing import Any

import torch

# Beside this script, so that it runs from anywhere.
from machine_code import fingerprint
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
    made = kernel.metadata
    print(made.name, grid, made.num_warps, made.shared, fingerprint(kernel.asm["cubin"]), flush=True)
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
plain_product = torch.mm
torch.mm = lambda left, right, *, out_dtype=None, out=None: (
    plain_product(left, right, out=out) if out_dtype is None else out
)

from samepath.kernels.dense_attention import triton_joined as triton_dense_attention
from samepath.kernels.experts import triton_gates
from samepath.kernels.experts import triton_product as triton_expert_product
from samepath.kernels.experts.expert_choice import ChoiceRule
from samepath.kernels.head import triton_candidates, triton_logprob
from samepath.kernels.head.logprob import SupportRows
from samepath.kernels.indexer import triton_dense_indexer, triton_fp8, triton_index_logits, triton_selected_logits
from samepath.kernels.indexer.dense_indexer import Teacher
from samepath.kernels.rows import (
    triton_dense_rows,
    triton_gated_unit,
    triton_grouped_heads,
    triton_head_product,
    triton_rms_norm,
    triton_rotary,
)
from samepath.kernels.rows.grouped_heads import HeadNorms
from samepath.kernels.selection import triton_selected_keys
from samepath.kernels.sparse_attention import triton_decode as triton_attention_decode
from samepath.kernels.sparse_attention import triton_forward as triton_attention_forward
from samepath.kernels.sparse_attention import triton_joined as triton_sparse_attention
from samepath.kernels.sparse_attention import triton_mass as triton_attention_mass
from samepath.kernels.sparse_attention.triton_backward import attend_backward
from samepath.kernels.sparse_attention.triton_gradients import SavedRows
from samepath.kernels.window import AttentionPlan, Window
from samepath.kernels.window_attention import triton_joined as triton_window_attention

ROWS, KEYS, SELECTED = 16, 4096, 2048


def random(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(shape).to(dtype).requires_grad_()


def attention(dtype: torch.dtype, heads: int, key_width: int, value_width: int) -> None:
    """Forward, mass, backward."""
    with torch.no_grad():
        q, kv = random(ROWS, heads, key_width, dtype=dtype), random(KEYS, key_width, dtype=dtype)
        indices = torch.zeros(ROWS, SELECTED, dtype=torch.int32)
        counts = torch.full((ROWS,), SELECTED, dtype=torch.int32)
        out, lse = triton_attention_forward.attend_forward(q, kv, indices, counts, 0.1, value_width)
        triton_attention_decode.attend_decode(q, kv, indices, counts, 0.1, value_width)
        triton_attention_mass.attention_mass(q, kv, indices, counts, lse, 0.1)
        saved = SavedRows(q_NHK=q, kv_SK=kv, indices_NC=indices, count_N=counts, out_NHV=out, lse_NH=lse, scale=0.1)
        attend_backward(saved, torch.zeros_like(out))


def indexer(dtype: torch.dtype) -> None:
    """Logits and their gradients at the selected keys."""
    q, k, weights = random(1, ROWS, 64, 128, dtype=dtype), random(1, KEYS, 128, dtype=dtype), random(1, ROWS, 64)
    with torch.no_grad():
        triton_index_logits.index_logits(q, k, weights)
        bounds = torch.zeros(1, ROWS, dtype=torch.int32), torch.full((1, ROWS), KEYS, dtype=torch.int32)
        triton_index_logits.index_logits(q, k, weights, bounds)
        triton_index_logits.index_logits(q, k, weights, bounds, None, triton_index_logits.Tiles())
        for decoding in (q[:, :1], q[:, :1, :8, :64]):
            heads, width = decoding.shape[2:]
            store, table = random(KEYS, width, dtype=dtype), torch.zeros(1, KEYS, dtype=torch.int64)
            triton_index_logits.cached_index_logits(
                decoding, store, table, weights[:, :1, :heads], torch.zeros(1, 1, dtype=torch.int64)
            )
        triton_fp8.index_logits_fp8(q, k, weights)
        triton_fp8.index_logits_fp8(q, k, weights, exact=True)
    indices = torch.zeros(ROWS, SELECTED, dtype=torch.int32)
    triton_selected_logits.selected_index_logits(q[0], k[0], weights[0], indices).sum().backward()


def dense_rows(dtype: torch.dtype) -> None:
    """Linear map, norm, products of heads, experts, head."""
    x = random(ROWS, 2048, dtype=dtype)
    triton_dense_rows.linear(x, random(2048, 2048, dtype=dtype)).sum().backward()
    triton_rms_norm.rms_norm(x, random(2048, dtype=dtype), 1e-6).sum().backward()
    for added in (None, x):
        total, out = triton_rms_norm.add_norm(x, added, random(2048, dtype=dtype), 1e-6)
        (total + out).sum().backward()
    norms = HeadNorms(query_K=random(128, dtype=dtype), key_K=random(128, dtype=dtype), eps=1e-6)
    for some in (norms, None):
        q, keys = triton_grouped_heads.grouped_heads(
            random(ROWS, 40, 128, dtype=dtype), some, random(ROWS, 2, 128, dtype=dtype).detach(), 32
        )
        (q.sum() + keys.sum()).backward()
    triton_head_product.head_product(
        random(ROWS, 128, 128, dtype=dtype), random(128, 128, 512, dtype=dtype)
    ).sum().backward()
    ids = torch.arange(ROWS * 8).view(ROWS, 8) % 64
    experts = random(64, 2 * 1408, 2048, dtype=dtype), random(64, 2048, 1408, dtype=dtype)
    triton_expert_product.expert_product(x, random(ROWS, 8, dtype=dtype), ids, *experts).sum().backward()
    with torch.no_grad():
        triton_expert_product.expert_product(x, random(ROWS, 8, dtype=dtype), ids, *experts)
    targets = torch.zeros(ROWS, dtype=torch.int64)
    head = random(4096, 2048, dtype=dtype)
    support = SupportRows(counts_N=torch.zeros(ROWS, dtype=torch.int64), ids=torch.zeros(0, dtype=torch.int64))
    for rows in (None, support):
        triton_logprob.head_logprobs(x, head, targets, torch.ones(ROWS), rows)[0].sum().backward()


def small_operations(dtype: torch.dtype) -> None:
    """The kernels that stand for several small operations, with their gradients: choice of experts, what follows a selection, rotary embedding, SwiGLU;
    and candidates of a draw."""
    for num_experts, rule in (
        (256, ChoiceRule(num_chosen=8, num_groups=8, open_groups=4, scale=2.5)),
        (128, ChoiceRule(num_chosen=8)),
    ):
        scores = random(ROWS, num_experts, dtype=torch.float32)
        ids, gates = triton_gates.choose_with_gates(scores, torch.zeros(num_experts), rule)
        (gates.sum() + triton_gates.gate_weights(scores, torch.zeros_like(ids), rule).sum()).backward()
    positions = torch.zeros(ROWS, SELECTED, dtype=torch.int32)
    triton_selected_keys.selection_fingerprint(positions, torch.zeros(ROWS, dtype=torch.int32))
    triton_selected_keys.key_rows(torch.zeros(ROWS, KEYS, dtype=torch.int64), positions)
    cosines, sines = random(ROWS, 2, 32, dtype=dtype).detach().unbind(1)
    triton_rotary.rotate(random(ROWS, 128, 192, dtype=dtype)[..., 128:], cosines, sines, True).sum().backward()
    triton_rotary.rotate(random(ROWS, 64, 128, dtype=dtype), cosines, sines, False).sum().backward()
    triton_gated_unit.swiglu(random(ROWS, 4096, dtype=dtype)).sum().backward()
    triton_candidates.truncate(torch.zeros(ROWS, 32000), torch.zeros(5, ROWS, dtype=torch.float64))


def windows(dtype: torch.dtype, key_width: int, value_width: int) -> None:
    """Attention with a key and a value for each head, masked and not, its mass and its backward; and the attention of few rows."""
    ends = torch.arange(1, 65)[None]
    seen = torch.ones(1, 64, KEYS, dtype=torch.bool)
    for mask in (None, seen):
        q, k = random(1, 64, 16, key_width, dtype=dtype), random(1, KEYS, 16, key_width, dtype=dtype)
        values = random(1, KEYS, 16, 2 * value_width, dtype=dtype)[..., value_width:]
        out, lse = triton_window_attention.window_attend(q, k, values, ends, mask, 0.1)
        triton_window_attention.head_mass(q, k, ends, mask, lse, 0.1)
        out.sum().backward()
    with torch.no_grad():
        q, kv = random(ROWS, 16, 576, dtype=dtype), random(KEYS, 576, dtype=dtype)
        counts = torch.full((ROWS,), SELECTED, dtype=torch.int32)
        indices = torch.zeros(ROWS, SELECTED, dtype=torch.int32)
        triton_sparse_attention.attend(q, kv, indices, counts, 0.1, 512, False, False)


def attention_over_all_keys(dtype: torch.dtype, heads: int, groups: int, width: int, num_queries: int) -> None:
    """Forward and backward on one window, alone and with a second sequence; one query a sequence decodes by segments."""
    for num_sequences in (1, 2):
        rows = torch.zeros(num_sequences, num_queries, dtype=torch.int64)
        keys = torch.zeros(num_sequences, KEYS, dtype=torch.int64)
        window = Window(rows_BT=rows, ends_BT=rows + 1, keys_BS=keys, longest=KEYS)
        plan = AttentionPlan(windows=(window,), source_N=torch.zeros(ROWS, dtype=torch.int64))
        q, store = random(ROWS, heads, width, dtype=dtype), random(groups, KEYS, 2 * width, dtype=dtype)
        triton_dense_attention.attend(q, store, plan, 0.1, width, width)[0].sum().backward()


def latent_over_all_keys(dtype: torch.dtype, heads: int) -> None:
    """MLA's latent, whose value is the front of the key."""
    rows = torch.zeros(1, ROWS, dtype=torch.int64)
    window = Window(rows_BT=rows, ends_BT=rows + 1, keys_BS=torch.zeros(1, 64, dtype=torch.int64), longest=64)
    plan = AttentionPlan(windows=(window,), source_N=torch.zeros(ROWS, dtype=torch.int64))
    q, store = random(ROWS, heads, 576, dtype=dtype), random(1, KEYS, 576, dtype=dtype)
    triton_dense_attention.attend(q, store, plan, 0.1, 0, 512)[0].sum().backward()


def warm_up(dtype: torch.dtype) -> None:
    """The indexer's loss over all keys with its gradients, enough query rows for the Hopper kernel."""
    rows = torch.zeros(1, 64, dtype=torch.int64)
    window = Window(rows_BT=rows, ends_BT=rows + 1, keys_BS=torch.zeros(1, KEYS, dtype=torch.int64), longest=KEYS)
    plan = AttentionPlan(windows=(window,), source_N=torch.zeros(64, dtype=torch.int64))
    with torch.no_grad():
        q, kv = random(64, 128, 576, dtype=dtype), random(KEYS, 576, dtype=dtype)
    teacher = Teacher(q_NHK=q, kv_SK=kv, lse_NH=torch.zeros(64, 128), scale=0.1)
    index = random(64, 64, 128, dtype=dtype), random(KEYS, 128, dtype=dtype), random(64, 64, dtype=dtype)
    triton_dense_indexer.dense_indexer_loss(*index, teacher, plan).sum().backward()


if __name__ == "__main__":
    attention_over_all_keys(BF16, 32, 8, 128, 64)
    attention_over_all_keys(BF16, 14, 2, 64, 1)
    attention_over_all_keys(BF16, 4, 2, 96, 64)
    attention_over_all_keys(torch.float32, 8, 2, 128, 64)
    latent_over_all_keys(BF16, 128)
    warm_up(BF16)
    warm_up(torch.float32)
    attention(BF16, 128, 576, 512)
    attention(BF16, 64, 576, 512)
    attention(BF16, 16, 576, 512)
    attention(torch.float32, 16, 288, 256)
    attention(BF16, 16, 96, 96)
    for dtype in (BF16, torch.float32):
        indexer(dtype)
        dense_rows(dtype)
        small_operations(dtype)
        windows(dtype, 192, 128)
    windows(BF16, 40, 24)
