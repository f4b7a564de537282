"""Matrix products of token rows with weights, x · Wᵀ + b, on CPU: the library's that is fast on this processor and exact for each row.

Torch gives float32 products to MKL, which takes AVX2 code on processors of another maker even where they have AVX-512: measured on an AMD
EPYC core (torch 2.13), 100 GFLOP/s, and 240 with oneDNN. A row has the same bits for any row count from 16 on, any offset and any thread
count there, with AVX-512 and with AVX2. On an Intel Xeon oneDNN splits an inner width of 512 and more by the number of rows, so there, and
everywhere else, MKL multiplies, in the mode of `mkl_mode.py`. Axes: N rows, D inner width, F outer width.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samepath.kernels.mkl_mode import mkl_mode


def processor_maker(cpu_info: Path = Path("/proc/cpuinfo")) -> str:
    """The `vendor_id` of the first processor, e.g. AuthenticAMD; empty where the system does not tell."""
    if not cpu_info.exists():
        return ""
    lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


ONEDNN = torch.backends.mkldnn.is_available() and processor_maker() == "AuthenticAMD"  # type: ignore[no-untyped-call]
"""Which library multiplies: oneDNN on AMD, else torch's own choice. Sampler and learner of one machine take the same."""


def widened(values: Tensor) -> Tensor:
    """The same in float32 if their type is narrower: in a pass in bfloat16 index logits, attention and head multiply, add and compare so."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def product_libraries() -> str:
    """Which libraries multiply float32 on this CPU, MKL with its mode in this process."""
    mode = mkl_mode()
    own = "torch's own library" if mode is None else f"MKL in mode {mode}"
    return f"oneDNN for products with weights, {own} for attention" if ONEDNN else own


def row_product(x_ND: Tensor, weight_FD: Tensor, bias_F: Tensor | None = None) -> Tensor:
    """`[N, F]`; N must be a multiple of 16 for row-exact results. Other types than float32, and other devices, take torch's own product."""
    if not ONEDNN or x_ND.dtype != torch.float32 or x_ND.device.type != "cpu":
        return torch.nn.functional.linear(x_ND, weight_FD, bias_F)
    if torch.is_grad_enabled() and (x_ND.requires_grad or weight_FD.requires_grad):
        return _RowProduct.apply(x_ND, weight_FD, bias_F)  # type: ignore[no-any-return,no-untyped-call]
    return _product(x_ND, weight_FD, bias_F)


def _product(x_ND: Tensor, weight_FD: Tensor, bias_F: Tensor | None = None) -> Tensor:
    """The operator that torch's compiler puts in place of a linear layer on CPU."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x_ND, weight_FD, bias_F, "none", [], "")
    return out


class _RowProduct(torch.autograd.Function):
    """The operator has no gradient of its own; both gradients are products of the same kind."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_FD: Tensor, bias_F: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_ND, weight_FD)
        return _product(x_ND, weight_FD, bias_F)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight_FD = ctx.saved_tensors
        # A gradient may be expanded from one number.
        grad_NF = grads[0].contiguous()
        wanted_x, wanted_weight, wanted_bias = ctx.needs_input_grad
        return (
            _product(grad_NF, weight_FD.T) if wanted_x else None,
            _product(grad_NF.T, x_ND.T) if wanted_weight else None,
            grad_NF.sum(0) if wanted_bias else None,
        )
