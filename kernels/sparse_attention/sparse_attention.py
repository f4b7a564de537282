"""Attention of each query row over its own selected keys, in the absorbed (multi-query) form of MLA.

One shared key row per token serves all heads; its first `value_width` channels are the value. A row with no valid key gives 0 and
LSE −inf. Axes: N query rows, S key rows, H heads, K key width, V value width, C selected keys.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from samepath.kernels.backend import Backend
from samepath.kernels.gpu.loading import fused_kernels
from samepath.kernels.rows.pair_product import pair_product
from samepath.kernels.rows.row_product import widened
from samepath.kernels.window import AttentionPlan, Window

CHUNK_ELEMENTS = 1 << 19
"""Gathered key elements, or scores of a dense window, held at once by the `torch` backend (2 MiB in float32, about the cache of a core)."""

DENSE_CROSSOVER = 8
"""The backward runs as dense masked products on windows with at most this many times C keys: measured on CPU, one product of a
whole sequence costs less than one small product per row, although it multiplies more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseWindows:
    """Lets the backward treat short sequences densely; the forward, whose bits must not depend on the batch, never does."""

    plan: AttentionPlan
    """Windows whose keys are rows of the same `kv`."""
    positions_NC: Tensor
    """int32 [N, C] in-sequence positions of the selected keys."""

    def worth_it(self) -> bool:
        """True if every window is short enough against C, and bounded."""
        limit = DENSE_CROSSOVER * self.positions_NC.shape[1]
        return all(window.longest <= limit for window in self.plan.windows)


def attend(
    q_NHK: Tensor,
    kv_SK: Tensor,
    indices_NC: Tensor,
    count_N: Tensor,
    *,
    scale: float,
    value_width: int,
    backend: Backend,
    dense: DenseWindows | None = None,
    with_mass: bool = True,
    batch_invariant: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sparse attention with gradients for `q` and `kv`.

    Args:
        q_NHK: absorbed queries. kv_SK: latent and RoPE key rows. indices_NC: int32 rows of `kv`, the valid ones first.
        count_N: number of valid indices of each row. scale: softmax scale. value_width: V ≤ K.
        dense: where the rows' sequences stand, so that the `torch` backward may choose dense products; None always gathers.
        with_mass: False lets a backend that needs an extra product for the mass leave it out (then [N, 0]).
        batch_invariant: False lets the number of rows choose the kernel (fused backends: few rows without gradients are cut along their keys).

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
    fused = fused_kernels(backend, "attend", q_NHK, kv_SK, indices_NC, count_N)
    if fused is not None:
        return fused.attend(q_NHK, kv_SK, indices_NC, count_N, scale, value_width, with_mass, batch_invariant)
    if not torch.is_grad_enabled():
        out, lse, mass = _attend_gathered(widened(q_NHK), widened(kv_SK), indices_NC, count_N, scale, value_width)
        return out.to(q_NHK.dtype), lse, mass
    out, lse, mass = _SparseAttention.apply(q_NHK, kv_SK, indices_NC, count_N, scale, value_width, dense)  # type: ignore[no-untyped-call]
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
    scores_NHC = pair_product(q_NHK, kv_NCK.transpose(1, 2)).mul_(scale)
    invalid_NC = torch.arange(kv_NCK.shape[1], device=count_N.device) >= count_N[:, None]
    scores_NHC.masked_fill_(invalid_NC[:, None], -torch.inf)
    top_NH1 = scores_NHC.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores_NHC.dtype).min)
    exps_NHC = scores_NHC.sub_(top_NH1).exp_()
    total_NH1 = exps_NHC.sum(-1, keepdim=True)
    lse_NH = (total_NH1.log() + top_NH1).squeeze(-1).masked_fill(count_N[:, None] == 0, -torch.inf)
    return exps_NHC.div_(total_NH1.clamp(min=torch.finfo(total_NH1.dtype).tiny)), lse_NH


def _attend_gathered(
    q_NHK: Tensor, kv_SK: Tensor, indices_NC: Tensor, count_N: Tensor, scale: float, value_width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, lse, mass), some rows at a time."""
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
        pair_product(probs_NHC, kv_NCK[:, :, :value_width], out=out_NHV[rows])
        torch.sum(probs_NHC, 1, out=mass_NC[rows])
    return out_NHV, lse_NH, mass_NC


class _SparseAttention(torch.autograd.Function):
    """Gathers the selected keys chunk by chunk; the backward recomputes the probabilities instead of storing them."""

    @staticmethod
    def forward(
        ctx: Any,
        q_NHK: Tensor,
        kv_SK: Tensor,
        indices_NC: Tensor,
        count_N: Tensor,
        scale: float,
        value_width: int,
        dense: DenseWindows | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        out_NHV, lse_NH, mass_NC = _attend_gathered(q_NHK, kv_SK, indices_NC, count_N, scale, value_width)
        ctx.save_for_backward(q_NHK, kv_SK, indices_NC, count_N, out_NHV, lse_NH)
        ctx.scale, ctx.value_width, ctx.dense = scale, value_width, dense
        ctx.mark_non_differentiable(lse_NH, mass_NC)
        return out_NHV, lse_NH, mass_NC

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_NHK, kv_SK, indices_NC, count_N, out_NHV, lse_NH = ctx.saved_tensors
        grad_out_NHV = grads[0].contiguous()
        if ctx.dense is not None and ctx.dense.worth_it():
            saved = _WindowRows(q_NHK=q_NHK, kv_SK=kv_SK, grad_out_NHV=grad_out_NHV, out_NHV=out_NHV, lse_NH=lse_NH)
            grad_q_NHK, grad_kv_SK = _backward_by_windows(saved, ctx.dense, ctx.scale)
            return grad_q_NHK, grad_kv_SK, None, None, None, None, None
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
        return grad_q_NHK, grad_kv_SK, None, None, None, None, None


@dataclass(frozen=True, slots=True, kw_only=True)
class _WindowRows:
    """Saved rows of one attention call."""

    q_NHK: Tensor
    kv_SK: Tensor
    grad_out_NHV: Tensor
    out_NHV: Tensor
    lse_NH: Tensor


def _backward_by_windows(rows: _WindowRows, dense: DenseWindows, scale: float) -> tuple[Tensor, Tensor]:
    """(grad_q, grad_kv) by dense masked products over each window's sequences, some sequences at a time."""
    num_heads, key_width = rows.q_NHK.shape[1:]
    grad_kv_SK = torch.zeros_like(rows.kv_SK)
    grads_q = []
    for window in dense.plan.windows:
        num_sequences, num_queries = window.rows_BT.shape
        step = max(1, CHUNK_ELEMENTS // (num_queries * num_heads * window.keys_BS.shape[1]))
        for start in range(0, num_sequences, step):
            part = Window(
                rows_BT=window.rows_BT[start : start + step],
                ends_BT=window.ends_BT[start : start + step],
                keys_BS=window.keys_BS[start : start + step],
                longest=window.longest,
            )
            grad_q, grad_kv = _window_backward(rows, dense.positions_NC, part, scale)
            grads_q.append(grad_q.view(-1, num_heads, key_width))
            # Serial on CPU, so the sum has one order; keys beyond a sequence's end carry exact zeros to row 0.
            grad_kv_SK.index_add_(0, part.keys_BS.flatten(), grad_kv.flatten(0, 1))
    nothing = rows.q_NHK.new_zeros(1, num_heads, key_width)
    return torch.cat([*grads_q, nothing])[dense.plan.source_N], grad_kv_SK


def _window_backward(rows: _WindowRows, positions_NC: Tensor, window: Window, scale: float) -> tuple[Tensor, Tensor]:
    """(grad_q [B, T·H, K], grad_kv [B, S, K]) of one window; queries of the padding give nothing."""
    flat = window.rows_BT.flatten()
    num_sequences, num_keys = window.keys_BS.shape
    value_width = rows.out_NHV.shape[2]

    def grid(values: Tensor) -> Tensor:
        return values[flat].view(num_sequences, -1, values.shape[-1])

    # Column 0 takes the −1 tail and is cut off again.
    kept = torch.zeros(flat.shape[0], num_keys + 1, dtype=torch.bool, device=flat.device)
    kept.scatter_(1, positions_NC[flat].long() + 1, True)
    dropped = ~(kept[:, 1:] & (window.ends_BT.flatten() > 0)[:, None])
    q, grad_out, keys = grid(rows.q_NHK), grid(rows.grad_out_NHV), embedding(window.keys_BS, rows.kv_SK)
    scores = torch.bmm(q, keys.transpose(1, 2)).mul_(scale)
    shape = (flat.shape[0], rows.q_NHK.shape[1], num_keys)
    probs = (
        scores.view(shape)
        .sub_(rows.lse_NH[flat][..., None])
        .masked_fill_(dropped[:, None], -torch.inf)
        .exp_()
        .view_as(scores)
    )
    delta = (grad_out * grid(rows.out_NHV)).sum(-1, keepdim=True)
    grad_scores = torch.bmm(grad_out, keys[:, :, :value_width].transpose(1, 2)).sub_(delta).mul_(probs).mul_(scale)
    grad_keys = torch.bmm(grad_scores.transpose(1, 2), q)
    grad_keys[:, :, :value_width] += torch.bmm(probs.transpose(1, 2), grad_out)
    return torch.bmm(grad_scores, keys), grad_keys


def _gather(kv_SK: Tensor, indices_NC: Tensor) -> Tensor:
    flat = kv_SK.index_select(0, indices_NC.clamp(min=0).flatten())
    return flat.view(*indices_NC.shape, kv_SK.shape[1])
