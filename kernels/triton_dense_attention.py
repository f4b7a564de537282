"""Attention over all keys with gradients on the Triton backend: joins forward and backward into one differentiable call.

Where the value is the front of the key (MLA), every row selects all keys of its window and the kernels of sparse attention do the rest, so that dense
and sparse attention over the same keys agree to the last bit.

Axes: N query rows, H query heads, G key heads, S rows of the store, W row width, K key width, V value width, C keys of a window.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from samepath.kernels.triton_attention_backward import SavedRows, attend_backward
from samepath.kernels.triton_attention_forward import attend_forward
from samepath.kernels.triton_dense_backward import SavedRows as WindowRows
from samepath.kernels.triton_dense_backward import attend_backward as grouped_backward
from samepath.kernels.triton_dense_forward import attend_forward as grouped_forward
from samepath.kernels.window import AttentionPlan

INDEX_ELEMENTS = 1 << 24
"""Key indices held at once where every row gets its own list of keys (64 MiB)."""


def attend(
    q_NHK: Tensor, rows_GSW: Tensor, plan: AttentionPlan, scale: float, value_start: int, value_width: int
) -> tuple[Tensor, Tensor]:
    """(out_NHV, lse_NH float32 without gradient) as `dense_attention.dense_attend` describes.

    Raises ValueError unless the value stands behind the key or at its front.
    """
    if 0 < value_start < q_NHK.shape[2]:
        raise ValueError(
            f"backend triton needs the value at channel 0 of a key row or behind the key's {q_NHK.shape[2]} channels; "
            f"got {value_start}. Move it, or use backend torch."
        )
    out, lse = _Attend.apply(q_NHK, rows_GSW, plan, scale, value_start, value_width)
    return out, lse


class _Attend(torch.autograd.Function):
    """Keeps inputs, output and LSE; the backward recomputes the probabilities."""

    @staticmethod
    def forward(
        ctx: Any,
        q_NHK: Tensor,
        rows_GSW: Tensor,
        plan: AttentionPlan,
        scale: float,
        value_start: int,
        value_width: int,
    ) -> tuple[Tensor, Tensor]:
        q_NHK, rows_GSW = q_NHK.contiguous(), rows_GSW.contiguous()
        run = grouped_forward if value_start else _latent_forward
        out_NHV, lse_NH = run(q_NHK, rows_GSW, plan, scale, value_start, value_width)
        ctx.save_for_backward(q_NHK, rows_GSW, out_NHV, lse_NH)
        ctx.plan, ctx.scale, ctx.value_start = plan, scale, value_start
        ctx.mark_non_differentiable(lse_NH)
        return out_NHV, lse_NH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_NHK, rows_GSW, out_NHV, lse_NH = ctx.saved_tensors
        saved = WindowRows(
            q_NHK=q_NHK,
            rows_GSW=rows_GSW,
            out_NHV=out_NHV,
            lse_NH=lse_NH,
            plan=ctx.plan,
            scale=ctx.scale,
            value_start=ctx.value_start,
        )
        run = grouped_backward if ctx.value_start else _latent_backward
        grad_q_NHK, grad_rows_GSW = run(saved, grads[0].contiguous())
        return grad_q_NHK, grad_rows_GSW, None, None, None, None


def _selections(plan: AttentionPlan, num_rows: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Some rows at a time: (rows [R], where they go, their keys int32 [R, C], key counts int32 [R]); padding has count 0 and goes to row N."""
    for window in plan.windows:
        num_sequences, num_queries = window.rows_BT.shape
        num_keys = window.keys_BS.shape[1]
        queries = max(1, min(num_queries, INDEX_ELEMENTS // max(1, num_keys)))
        sequences = max(1, INDEX_ELEMENTS // max(1, num_keys * num_queries))
        for start in range(0, num_sequences, sequences):
            keys_BS = window.keys_BS[start : start + sequences].to(torch.int32)
            for first in range(0, num_queries, queries):
                place = (slice(start, start + sequences), slice(first, first + queries))
                rows_BT, ends_BT = window.rows_BT[place], window.ends_BT[place]
                keys_BTS = keys_BS[:, None].expand(-1, rows_BT.shape[1], -1)
                targets_BT = rows_BT.masked_fill(ends_BT == 0, num_rows)
                keys_RC = keys_BTS.flatten(0, 1).contiguous()
                yield rows_BT.flatten(), targets_BT.flatten(), keys_RC, ends_BT.flatten().to(torch.int32)


def _groups(q_NHK: Tensor, rows_GSW: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(query heads, key rows [S, K]) of each key head."""
    shared = q_NHK.shape[1] // rows_GSW.shape[0]
    for group, rows_SW in enumerate(rows_GSW):
        yield slice(group * shared, (group + 1) * shared), rows_SW[:, : q_NHK.shape[2]].contiguous()


def _latent_forward(
    q_NHK: Tensor, rows_GSW: Tensor, plan: AttentionPlan, scale: float, value_start: int, value_width: int
) -> tuple[Tensor, Tensor]:
    """(out, lse): each row attends to the keys that its window lists, as sparse attention does."""
    num_rows, num_heads = q_NHK.shape[:2]
    out_NHV = torch.zeros(num_rows + 1, num_heads, value_width, dtype=q_NHK.dtype, device=q_NHK.device)
    lse_NH = torch.full((num_rows + 1, num_heads), -torch.inf, dtype=torch.float32, device=q_NHK.device)
    for heads, keys_SK in _groups(q_NHK, rows_GSW):
        for rows_R, targets_R, keys_RC, count_R in _selections(plan, num_rows):
            picked = q_NHK[rows_R, heads].contiguous()
            out_NHV[targets_R, heads], lse_NH[targets_R, heads] = attend_forward(
                picked, keys_SK, keys_RC, count_R, scale, value_width
            )
    return out_NHV[:num_rows], lse_NH[:num_rows]


def _latent_backward(saved: WindowRows, grad_out_NHV: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the queries and of the key rows; those of a key are added piece by piece in the plan's order."""
    q_NHK, rows_GSW = saved.q_NHK, saved.rows_GSW
    num_rows, num_heads, width = q_NHK.shape
    grad_q_NHK = torch.zeros(num_rows + 1, num_heads, width, dtype=q_NHK.dtype, device=q_NHK.device)
    sums_GSW = torch.zeros(rows_GSW.shape, dtype=torch.float32, device=rows_GSW.device)
    for group, (heads, keys_SK) in enumerate(_groups(q_NHK, rows_GSW)):
        for rows_R, targets_R, keys_RC, count_R in _selections(saved.plan, num_rows):
            part = SavedRows(
                q_NHK=q_NHK[rows_R, heads].contiguous(),
                kv_SK=keys_SK,
                indices_NC=keys_RC,
                count_N=count_R,
                out_NHV=saved.out_NHV[rows_R, heads].contiguous(),
                lse_NH=saved.lse_NH[rows_R, heads].contiguous(),
                scale=saved.scale,
            )
            gradients = attend_backward(part, grad_out_NHV[rows_R, heads].contiguous())
            grad_q_NHK[targets_R, heads] = gradients.q_NHK
            sums_GSW[group, :, :width] += gradients.kv_SK
    return grad_q_NHK[:num_rows], sums_GSW.to(rows_GSW.dtype)
