"""Operations of single rows whose bits must not depend on the batch: linear map, RMS norm, router scores.

Axes: N rows, D input width, O output width, E experts.
"""

import torch
from torch import Tensor
from torch.nn.functional import rms_norm as torch_rms_norm

from samepath.kernels.backend import Backend
from samepath.kernels.expert_product import sigmoid
from samepath.kernels.triton_loading import triton_kernels


def linear(x_ND: Tensor, weight_OD: Tensor, backend: Backend) -> Tensor:
    """x · weightᵀ `[N, O]` in x's type, with gradients.

    On CPU (`torch`) a row stands alone if N is a multiple of 16; on a GPU only `triton` promises it, for any N.
    """
    _check_width(x_ND, weight_OD)
    if backend == "triton":
        return triton_kernels("dense_rows", x_ND, weight_OD).linear(x_ND, weight_OD)  # type: ignore[no-any-return]
    return torch.nn.functional.linear(x_ND, weight_OD)


def rms_norm(x_ND: Tensor, weight_D: Tensor, eps: float, backend: Backend) -> Tensor:
    """x / √(mean x² + eps) · weight `[N, D]`, with gradients."""
    if backend == "triton":
        return triton_kernels("dense_rows", x_ND, weight_D).rms_norm(x_ND, weight_D, eps)  # type: ignore[no-any-return]
    return torch_rms_norm(x_ND, (x_ND.shape[1],), weight_D, eps)


def router_scores(x_ND: Tensor, weight_ED: Tensor, backend: Backend) -> Tensor:
    """sigmoid(x · weightᵀ) `[N, E]`, float32 (float64 stays), with gradients."""
    _check_width(x_ND, weight_ED)
    if backend == "triton":
        logits_NE = triton_kernels("dense_rows", x_ND, weight_ED).linear(x_ND, weight_ED, torch.float32)
    else:
        wide = torch.promote_types(x_ND.dtype, torch.float32)
        logits_NE = torch.nn.functional.linear(x_ND.to(wide), weight_ED.to(wide))
    return sigmoid(logits_NE)


def _check_width(x_ND: Tensor, weight_OD: Tensor) -> None:
    if x_ND.ndim != 2 or weight_OD.ndim != 2 or x_ND.shape[1] != weight_OD.shape[1]:
        raise ValueError(
            f"a linear map needs x [N, D] and weight [O, D]; got {tuple(x_ND.shape)}, {tuple(weight_OD.shape)}"
        )
