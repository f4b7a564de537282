"""The triton backend with the operations between products taken apart: kernels for forward sums alone, and for all else PyTorch's own operations and their
gradients. What the fused kernels are timed and compared against, by whole passes.

Axes: N rows, D width, H heads, G key heads, K head width, R rotated channels, E experts, X experts chosen.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import samepath.kernels.rows.triton_rms_norm as triton_rms_norm
from samepath.kernels.experts.expert_choice import ChoiceRule, gate_weights
from samepath.kernels.experts.triton_choice import choose
from samepath.kernels.gpu import loading
from samepath.kernels.rows.gated_unit import swiglu
from samepath.kernels.rows.grouped_heads import HeadNorms, rotate_whole
from samepath.kernels.triton_backend import TritonKernels


class _RmsNorm(torch.autograd.Function):
    """Forward by the kernel, gradients by PyTorch's operations."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x_ND, _, out_ND, root_N = triton_rms_norm._normed(x_ND.contiguous(), None, weight_D, eps)
        ctx.save_for_backward(x_ND, weight_D, root_N)
        return out_ND

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight_D, root_N = ctx.saved_tensors
        normed_ND, grad_ND = x_ND.float() * root_N[:, None], grads[0].float()
        scaled_ND = grad_ND * weight_D.float()
        share_N1 = (scaled_ND * normed_ND).mean(-1, keepdim=True)
        grad_x_ND = root_N[:, None] * (scaled_ND - normed_ND * share_N1)
        return grad_x_ND.to(x_ND.dtype), (grad_ND * normed_ND).sum(0).to(weight_D.dtype), None


def rms_norm(x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """As `dense_rows.rms_norm`."""
    return _RmsNorm.apply(x_ND, weight_D, eps)


def add_norm(x_ND: Tensor, added_ND: Tensor | None, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `dense_rows.add_norm`."""
    total_ND = x_ND if added_ND is None else x_ND + added_ND
    return total_ND, rms_norm(total_ND, weight_D, eps)


def grouped_heads(qkv_NXK: Tensor, norms: HeadNorms | None, rope_N2R: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """As `grouped_heads.grouped_heads`."""
    rotary, moved = rope_N2R.shape[2], (num_heads + qkv_NXK.shape[1]) // 2
    qk_NXK, v_NGK = qkv_NXK[:, :moved], qkv_NXK[:, moved:]
    if norms is not None:
        weights_XK = torch.cat([norms.query_K.expand(num_heads, -1), norms.key_K.expand(moved - num_heads, -1)])
        plain = rms_norm(qk_NXK.flatten(0, 1), torch.ones_like(norms.query_K), norms.eps)
        qk_NXK = plain.view(qk_NXK.shape) * weights_XK
    turned = rotate_whole(qk_NXK[..., :rotary], rope_N2R[:, :1], rope_N2R[:, 1:])
    if rotary < qk_NXK.shape[2]:
        turned = torch.cat([turned, qk_NXK[..., rotary:]], -1)
    q_NHK, k_NGK = turned[:, :num_heads], turned[:, num_heads:]
    return q_NHK, torch.cat([k_NGK.transpose(0, 1), v_NGK.transpose(0, 1)], -1)


def rotate(x_NHK: Tensor, cos_NQ: Tensor, sin_NQ: Tensor, interleaved: bool) -> Tensor:
    """As `triton_rotary.rotate`."""
    cosine, sine = cos_NQ[:, None], sin_NQ[:, None]
    if interleaved:
        even, odd = x_NHK[..., 0::2], x_NHK[..., 1::2]
        return torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], -1).flatten(-2)
    half = cos_NQ.shape[1]
    first, second, rest = x_NHK[..., :half], x_NHK[..., half : 2 * half], x_NHK[..., 2 * half :]
    rotated = torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)
    return torch.cat([rotated, rest], -1) if rest.shape[2] else rotated


def choose_with_gates(scores_NE: Tensor, bias_E: Tensor | None, rule: ChoiceRule) -> tuple[Tensor, Tensor]:
    """As `expert_choice.choose_with_gates`."""
    ids_NX = choose(scores_NE.detach(), bias_E, rule)[0]
    return ids_NX, gate_weights(scores_NE, ids_NX, rule)


class SeparateOperations(TritonKernels):
    """The table with those operations in it."""

    rms_norm = staticmethod(rms_norm)
    add_norm = staticmethod(add_norm)
    grouped_heads = staticmethod(grouped_heads)
    rotate = staticmethod(rotate)
    swiglu = staticmethod(swiglu)
    choose_with_gates = staticmethod(choose_with_gates)
    gate_weights = staticmethod(gate_weights)


@contextmanager
def separate_operations() -> Iterator[None]:
    """The triton backend is this table meanwhile."""
    fused = loading._LOADED.get("triton")
    loading._LOADED["triton"] = SeparateOperations()
    try:
        yield
    finally:
        del loading._LOADED["triton"]
        if fused is not None:
            loading._LOADED["triton"] = fused
