"""Attention over all keys with gradients on the Triton backend: joins forward and backward into one differentiable call.

Axes: N query rows, H query heads, G key heads, S rows of the store, W row width, V value width.
"""

from typing import Any

import torch
from torch import Tensor

from samepath.kernels.dense_attention.triton_backward import SavedRows, attend_backward
from samepath.kernels.dense_attention.triton_forward import attend_forward
from samepath.kernels.dense_attention.triton_latent import latent_backward, latent_forward
from samepath.kernels.window import AttentionPlan


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
        run = attend_forward if value_start else latent_forward
        out_NHV, lse_NH = run(q_NHK, rows_GSW, plan, scale, value_start, value_width)
        ctx.save_for_backward(q_NHK, rows_GSW, out_NHV, lse_NH)
        ctx.plan, ctx.scale, ctx.value_start = plan, scale, value_start
        ctx.mark_non_differentiable(lse_NH)
        return out_NHV, lse_NH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_NHK, rows_GSW, out_NHV, lse_NH = ctx.saved_tensors
        saved = SavedRows(
            q_NHK=q_NHK,
            rows_GSW=rows_GSW,
            out_NHV=out_NHV,
            lse_NH=lse_NH,
            plan=ctx.plan,
            scale=ctx.scale,
            value_start=ctx.value_start,
        )
        run = attend_backward if ctx.value_start else latent_backward
        grad_q_NHK, grad_rows_GSW = run(saved, grads[0].contiguous())
        return grad_q_NHK, grad_rows_GSW, None, None, None, None
