"""Operations of single rows whose bits must not depend on the batch: linear map, RMS norm, router scores, dense feed-forward.

Axes: N rows, D input width, O output width, E experts, F feed-forward width.
"""

import torch
from torch import Tensor
from torch.nn.functional import rms_norm as torch_rms_norm

from samepath.kernels.backend import Backend
from samepath.kernels.gpu.loading import fused_kernels
from samepath.kernels.rows.gated_unit import sigmoid, swiglu
from samepath.kernels.rows.row_product import row_product


def linear(x_ND: Tensor, weight_OD: Tensor, backend: Backend, bias_O: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias `[N, O]` in x's type, with gradients.

    On CPU (`torch`) a row stands alone if N is a multiple of 16; on a GPU only `triton` promises it, for any N.
    """
    _check_width(x_ND, weight_OD)
    fused = fused_kernels(backend, "linear", x_ND, weight_OD)
    if fused is not None:
        out_NO = fused.linear(x_ND, weight_OD)
        return out_NO if bias_O is None else out_NO + bias_O
    return row_product(x_ND, weight_OD, bias_O)


def rms_norm(x_ND: Tensor, weight_D: Tensor, eps: float, backend: Backend) -> Tensor:
    """x / √(mean x² + eps) · weight `[N, D]`, with gradients."""
    fused = fused_kernels(backend, "rms_norm", x_ND, weight_D)
    if fused is not None:
        return fused.rms_norm(x_ND, weight_D, eps)
    return torch_rms_norm(x_ND, (x_ND.shape[1],), weight_D, eps)


def add_norm(
    x_ND: Tensor, added_ND: Tensor | None, weight_D: Tensor, eps: float, backend: Backend
) -> tuple[Tensor, Tensor]:
    """(x + added, or x itself where nothing is added, and the sum's norm), both `[N, D]`, with gradients.

    The bits of an addition and `rms_norm`; a fused backend takes one kernel for both, and one for what flows back through both.
    """
    fused = fused_kernels(backend, "add_norm", x_ND, weight_D)
    if fused is not None:
        return fused.add_norm(x_ND, added_ND, weight_D, eps)
    total_ND = x_ND if added_ND is None else x_ND + added_ND
    return total_ND, rms_norm(total_ND, weight_D, eps, backend)


def router_scores(x_ND: Tensor, weight_ED: Tensor, backend: Backend) -> Tensor:
    """sigmoid(x · weightᵀ) `[N, E]`, float32 (float64 stays), with gradients."""
    return sigmoid(float32_linear(x_ND, weight_ED, backend))


def float32_linear(x_ND: Tensor, weight_ED: Tensor, backend: Backend) -> Tensor:
    """x · weightᵀ `[N, E]` in float32 (float64 stays) whatever the inputs' type, with gradients: what is compared needs the bits."""
    _check_width(x_ND, weight_ED)
    fused = fused_kernels(backend, "float32_linear", x_ND, weight_ED)
    if fused is not None:
        return fused.linear(x_ND, weight_ED, torch.float32)
    wide = torch.promote_types(x_ND.dtype, torch.float32)
    return row_product(x_ND.to(wide), weight_ED.to(wide))


def feed_forward(x_ND: Tensor, gate_up_GD: Tensor, down_DF: Tensor, backend: Backend) -> Tensor:
    """Dense SwiGLU, `[N, D]`; gate and up weights stacked, G = 2F."""
    return linear(swiglu(linear(x_ND, gate_up_GD, backend), backend), down_DF, backend)


def _check_width(x_ND: Tensor, weight_OD: Tensor) -> None:
    if x_ND.ndim != 2 or weight_OD.ndim != 2 or x_ND.shape[1] != weight_OD.shape[1]:
        raise ValueError(
            f"a linear map needs x [N, D] and weight [O, D]; got {tuple(x_ND.shape)}, {tuple(weight_OD.shape)}"
        )
