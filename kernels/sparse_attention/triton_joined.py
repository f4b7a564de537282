"""Sparse attention with gradients on the Triton backend: joins forward, mass and backward into one differentiable call.

Axes: N query rows, S key rows, H heads, K key width, V value width, C selected keys.
"""

from typing import Any

import torch
from torch import Tensor

from samepath.kernels.sparse_attention.triton_backward import attend_backward
from samepath.kernels.sparse_attention.triton_decode import attend_decode
from samepath.kernels.sparse_attention.triton_forward import attend_forward
from samepath.kernels.sparse_attention.triton_gradients import SavedRows
from samepath.kernels.sparse_attention.triton_mass import attention_mass

FEW_ROWS = 1024
"""Most rows times heads that are cut along their keys. Measured on an H200 under a CUDA graph, 2048 keys, bfloat16, cut against whole: 128 heads,
1 row 20 and 67 µs, 8 rows 48 and 70, 64 rows 350 and 73; 16 heads, 64 rows 73 and 103."""


def attend(
    q_NHK: Tensor,
    kv_SK: Tensor,
    indices_NC: Tensor,
    count_N: Tensor,
    scale: float,
    value_width: int,
    with_mass: bool,
    batch_invariant: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, lse, mass) as `sparse_attention.attend` describes; mass is [N, 0] unless asked for."""
    with_gradients = torch.is_grad_enabled() and (q_NHK.requires_grad or kv_SK.requires_grad)
    if not (batch_invariant or with_gradients or with_mass) and q_NHK.shape[0] * q_NHK.shape[1] <= FEW_ROWS:
        chosen = (indices_NC.to(torch.int32).contiguous(), count_N.to(torch.int32).contiguous())
        out, lse = attend_decode(q_NHK.contiguous(), kv_SK.contiguous(), *chosen, scale, value_width)
        return out, lse, lse.new_empty(q_NHK.shape[0], 0)
    out, lse, mass = _Attend.apply(q_NHK, kv_SK, indices_NC, count_N, scale, value_width, with_mass)
    return out, lse, mass


class _Attend(torch.autograd.Function):
    """Keeps inputs, output and LSE; the backward recomputes the probabilities."""

    @staticmethod
    def forward(
        ctx: Any,
        q_NHK: Tensor,
        kv_SK: Tensor,
        indices_NC: Tensor,
        count_N: Tensor,
        scale: float,
        value_width: int,
        with_mass: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        q_NHK, kv_SK = q_NHK.contiguous(), kv_SK.contiguous()
        indices_NC, count_N = indices_NC.to(torch.int32).contiguous(), count_N.to(torch.int32).contiguous()
        out_NHV, lse_NH = attend_forward(q_NHK, kv_SK, indices_NC, count_N, scale, value_width)
        if with_mass:
            mass_NC = attention_mass(q_NHK, kv_SK, indices_NC, count_N, lse_NH, scale)
        else:
            mass_NC = lse_NH.new_empty(q_NHK.shape[0], 0)
        ctx.save_for_backward(q_NHK, kv_SK, indices_NC, count_N, out_NHV, lse_NH)
        ctx.scale = scale
        ctx.mark_non_differentiable(lse_NH, mass_NC)
        return out_NHV, lse_NH, mass_NC

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_NHK, kv_SK, indices_NC, count_N, out_NHV, lse_NH = ctx.saved_tensors
        saved = SavedRows(
            q_NHK=q_NHK,
            kv_SK=kv_SK,
            indices_NC=indices_NC,
            count_N=count_N,
            out_NHV=out_NHV,
            lse_NH=lse_NH,
            scale=ctx.scale,
        )
        gradients = attend_backward(saved, grads[0].contiguous())
        return gradients.q_NHK, gradients.kv_SK, None, None, None, None, None
