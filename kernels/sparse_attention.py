"""Attention of each query row over its own selected keys, in the absorbed (multi-query) form of MLA.

One shared key row per token serves all heads; its first `value_width` channels are the value. A row with no valid key gives 0 and
LSE −inf. Axes: N query rows, S key rows, H heads, K key width, V value width, C selected keys.
"""

from typing import Any

import torch
from torch import Tensor

from samepath.kernels.backend import Backend

CHUNK_ELEMENTS = 1 << 22
"""Gathered key elements held at once by the `torch` backend (16 MiB in float32)."""


def attend(
    q_NHK: Tensor,
    kv_SK: Tensor,
    indices_NC: Tensor,
    count_N: Tensor,
    *,
    scale: float,
    value_width: int,
    backend: Backend,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sparse attention with gradients for `q` and `kv`.

    Args:
        q_NHK: absorbed queries. kv_SK: latent and RoPE key rows. indices_NC: int32 rows of `kv`, the valid ones first.
        count_N: number of valid indices of each row. scale: softmax scale. value_width: V ≤ K.

    Returns:
        (out_NHV, lse_NH natural logarithm float32 or wider, mass_NC head-summed attention probability, both without gradient).
        Raises ValueError on shapes that do not fit.
    """
    if q_NHK.shape[2] != kv_SK.shape[1] or indices_NC.shape[0] != q_NHK.shape[0] or count_N.shape != q_NHK.shape[:1]:
        raise ValueError(
            f"attend needs q [N,H,K], kv [S,K], indices [N,C], count [N]; got {tuple(q_NHK.shape)}, {tuple(kv_SK.shape)}, "
            f"{tuple(indices_NC.shape)}, {tuple(count_N.shape)}"
        )
    if not 0 < value_width <= kv_SK.shape[1]:
        raise ValueError(f"value_width must be in 1 … {kv_SK.shape[1]} (the key width); got {value_width}")
    if backend == "reference":
        return _attend_reference(q_NHK, kv_SK, indices_NC, count_N, scale, value_width)
    out, lse, mass = _SparseAttention.apply(q_NHK, kv_SK, indices_NC, count_N, scale, value_width)  # type: ignore[no-untyped-call]
    return out, lse, mass


def _attend_reference(
    q_NHK: Tensor, kv_SK: Tensor, indices_NC: Tensor, count_N: Tensor, scale: float, value_width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition: one dense masked softmax over all S keys."""
    scores_NHS = torch.einsum("nhk,sk->nhs", q_NHK, kv_SK) * scale
    valid_NC = torch.arange(indices_NC.shape[1], device=count_N.device) < count_N[:, None]
    kept_NS = torch.zeros(q_NHK.shape[0], kv_SK.shape[0], dtype=torch.int32, device=q_NHK.device)
    kept_NS.scatter_add_(1, indices_NC.clamp(min=0).long(), valid_NC.int())
    scores_NHS = scores_NHS.masked_fill(kept_NS[:, None] == 0, -torch.inf)
    lse_NH = scores_NHS.logsumexp(-1)
    probs_NHS = torch.nan_to_num((scores_NHS - lse_NH[..., None]).exp(), nan=0.0)
    out_NHV = torch.einsum("nhs,sv->nhv", probs_NHS, kv_SK[:, :value_width])
    mass_NC = probs_NHS.sum(1).gather(1, indices_NC.clamp(min=0).long()) * valid_NC
    return out_NHV, lse_NH.detach(), mass_NC.detach()


def _probabilities(q_NHK: Tensor, kv_NCK: Tensor, count_N: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(probs_NHC, lse_NH) over gathered keys. The width C is fixed, so a row's bits never depend on its neighbours."""
    scores_NHC = torch.bmm(q_NHK, kv_NCK.transpose(1, 2)).mul_(scale)
    invalid_NC = torch.arange(kv_NCK.shape[1], device=count_N.device) >= count_N[:, None]
    scores_NHC.masked_fill_(invalid_NC[:, None], -torch.inf)
    top_NH1 = scores_NHC.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores_NHC.dtype).min)
    exps_NHC = scores_NHC.sub_(top_NH1).exp_()
    total_NH1 = exps_NHC.sum(-1, keepdim=True)
    lse_NH = (total_NH1.log() + top_NH1).squeeze(-1).masked_fill(count_N[:, None] == 0, -torch.inf)
    return exps_NHC.div_(total_NH1.clamp(min=torch.finfo(total_NH1.dtype).tiny)), lse_NH


class _SparseAttention(torch.autograd.Function):
    """Gathers the selected keys chunk by chunk; the backward recomputes the probabilities instead of storing them."""

    @staticmethod
    def forward(
        ctx: Any, q_NHK: Tensor, kv_SK: Tensor, indices_NC: Tensor, count_N: Tensor, scale: float, value_width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_rows, num_heads, key_width = q_NHK.shape
        num_selected = indices_NC.shape[1]
        out_NHV = q_NHK.new_empty(num_rows, num_heads, value_width)
        lse_NH = q_NHK.new_empty(num_rows, num_heads)
        mass_NC = q_NHK.new_empty(num_rows, num_selected)
        step = max(1, CHUNK_ELEMENTS // (num_selected * key_width))
        for start in range(0, num_rows, step):
            rows = slice(start, start + step)
            kv_NCK = _gather(kv_SK, indices_NC[rows])
            probs_NHC, lse_NH[rows] = _probabilities(q_NHK[rows], kv_NCK, count_N[rows], scale)
            torch.bmm(probs_NHC, kv_NCK[:, :, :value_width], out=out_NHV[rows])
            torch.sum(probs_NHC, 1, out=mass_NC[rows])
        ctx.save_for_backward(q_NHK, kv_SK, indices_NC, count_N, out_NHV)
        ctx.scale, ctx.value_width = scale, value_width
        ctx.mark_non_differentiable(lse_NH, mass_NC)
        return out_NHV, lse_NH, mass_NC

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_NHK, kv_SK, indices_NC, count_N, out_NHV = ctx.saved_tensors
        grad_out_NHV = grads[0].contiguous()
        width = ctx.value_width
        grad_q_NHK = torch.empty_like(q_NHK)
        grad_kv_SK = torch.zeros_like(kv_SK)
        delta_NH1 = (grad_out_NHV * out_NHV).sum(-1, keepdim=True)
        step = max(1, CHUNK_ELEMENTS // (indices_NC.shape[1] * q_NHK.shape[2]))
        for start in range(0, q_NHK.shape[0], step):
            rows = slice(start, start + step)
            kv_NCK = _gather(kv_SK, indices_NC[rows])
            probs_NHC, _ = _probabilities(q_NHK[rows], kv_NCK, count_N[rows], ctx.scale)
            grad_probs_NHC = torch.bmm(grad_out_NHV[rows], kv_NCK[:, :, :width].transpose(1, 2))
            grad_scores_NHC = grad_probs_NHC.sub_(delta_NH1[rows]).mul_(probs_NHC).mul_(ctx.scale)
            torch.bmm(grad_scores_NHC, kv_NCK, out=grad_q_NHK[rows])
            grad_kv_NCK = torch.bmm(grad_scores_NHC.transpose(1, 2), q_NHK[rows])
            grad_kv_NCK[:, :, :width] += torch.bmm(probs_NHC.transpose(1, 2), grad_out_NHV[rows])
            # Serial on CPU, so the sum has one order. Masked entries carry exact zeros to row 0.
            grad_kv_SK.index_add_(0, indices_NC[rows].clamp(min=0).flatten().long(), grad_kv_NCK.flatten(0, 1))
        return grad_q_NHK, grad_kv_SK, None, None, None, None


def _gather(kv_SK: Tensor, indices_NC: Tensor) -> Tensor:
    flat = kv_SK.index_select(0, indices_NC.clamp(min=0).flatten())
    return flat.view(*indices_NC.shape, kv_SK.shape[1])
