"""Matrix products of token rows with weights, x · Wᵀ + b: the float32 product of oneDNN, whose code fits the processor it runs on.

Torch gives float32 products on CPU to MKL, which takes AVX2 code on processors of another maker even where they have AVX-512: measured on
an AMD EPYC core, 100 GFLOP/s there and 240 here. A row has the same bits for any row count from 16 on, any offset and any thread count,
as with MKL (and for inner widths up to 192 the very same bits). Axes: N rows, D inner width, F outer width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

ONEDNN = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
"""True in every build of torch for x86; without it products go the ordinary way, on both sides alike."""

LEAST_OUTER = 16
"""Narrower products are widened to this: for one column oneDNN takes other code by the row count (seen on an Intel Xeon with AVX-512)."""


def row_product(x_ND: Tensor, weight_FD: Tensor, bias_F: Tensor | None = None) -> Tensor:
    """`[N, F]`; N must be a multiple of 16 for row-exact results. Other types than float32, and other devices, take torch's own product."""
    if not ONEDNN or x_ND.dtype != torch.float32 or x_ND.device.type != "cpu":
        return torch.nn.functional.linear(x_ND, weight_FD, bias_F)
    if torch.is_grad_enabled() and (x_ND.requires_grad or weight_FD.requires_grad):
        return _RowProduct.apply(x_ND, weight_FD, bias_F)  # type: ignore[no-any-return,no-untyped-call]
    return _product(x_ND, weight_FD, bias_F)


def _product(x_ND: Tensor, weight_FD: Tensor, bias_F: Tensor | None = None) -> Tensor:
    """The operator that torch's compiler puts in place of a linear layer on CPU."""
    outer = weight_FD.shape[0]
    if outer < LEAST_OUTER:
        missing = LEAST_OUTER - outer
        bias = None if bias_F is None else pad(bias_F, (0, missing))
        return _product(x_ND, pad(weight_FD, (0, 0, 0, missing)), bias)[:, :outer].contiguous()
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x_ND, weight_FD, bias_F, "none", [], "")
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
