"""Attention of a window with a key and a value for each head on the Triton backend: joins mask, forward, mass and backward into one call.

Axes: B sequences, T query rows of each, S keys of each, H heads, K key width, V value width, C selected keys.
"""

from typing import Any

import torch
from torch import Tensor

from samepath.kernels.window_attention.triton_backward import window_backward
from samepath.kernels.window_attention.triton_bits import pack_bits
from samepath.kernels.window_attention.triton_forward import window_forward
from samepath.kernels.window_attention.triton_grid import Grid
from samepath.kernels.window_attention.triton_mass import window_mass


def window_attend(
    q_BTHK: Tensor, k_BSHK: Tensor, v_BSHV: Tensor, ends_BT: Tensor, seen_BTS: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """(out_BTHV, lse [B, H, T] float32 in base 2 without gradient); `seen_BTS` None lets every key up to a query's end count."""
    out, lse = _WindowAttend.apply(q_BTHK, k_BSHK, v_BSHV, ends_BT, seen_BTS, scale)
    return out, lse


@torch.no_grad()
def head_mass(
    q_BTHK: Tensor, k_BSHK: Tensor, ends_BT: Tensor, seen_BTS: Tensor | None, lse_BHT: Tensor, scale: float
) -> Tensor:
    """float32 [B, T, S] probabilities summed over heads, from the LSE that `window_attend` gave."""
    # The values play no part.
    grid = _grid(q_BTHK, k_BSHK, k_BSHK, ends_BT, seen_BTS, scale)
    return window_mass(grid, lse_BHT)


def _grid(
    q_BTHK: Tensor, k_BSHK: Tensor, v_BSHV: Tensor, ends_BT: Tensor, seen_BTS: Tensor | None, scale: float
) -> Grid:
    words_BTW, words_BSW = (None, None) if seen_BTS is None else pack_bits(seen_BTS)
    if v_BSHV.stride(3) != 1 or v_BSHV.stride(0) != v_BSHV.shape[1] * v_BSHV.stride(1):
        v_BSHV = v_BSHV.contiguous()
    return Grid(
        q_BTHK=q_BTHK.contiguous(),
        k_BSHK=k_BSHK.contiguous(),
        v_BSHV=v_BSHV,
        ends_BT=ends_BT.to(torch.int32).contiguous(),
        words_BTW=words_BTW,
        words_BSW=words_BSW,
        scale=scale,
    )


class _WindowAttend(torch.autograd.Function):
    """Keeps inputs, packed mask, output and LSE; the backward recomputes the probabilities."""

    @staticmethod
    def forward(
        ctx: Any,
        q_BTHK: Tensor,
        k_BSHK: Tensor,
        v_BSHV: Tensor,
        ends_BT: Tensor,
        seen_BTS: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        grid = _grid(q_BTHK, k_BSHK, v_BSHV, ends_BT, seen_BTS, scale)
        out_BTHV, lse_BHT = window_forward(grid)
        words = grid.words_BTW, grid.words_BSW
        ctx.save_for_backward(grid.q_BTHK, grid.k_BSHK, grid.v_BSHV, grid.ends_BT, *words, out_BTHV, lse_BHT)
        ctx.scale = scale
        ctx.mark_non_differentiable(lse_BHT)
        return out_BTHV, lse_BHT

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_BTHK, k_BSHK, v_BSHV, ends_BT, words_BTW, words_BSW, out_BTHV, lse_BHT = ctx.saved_tensors
        grid = Grid(
            q_BTHK=q_BTHK,
            k_BSHK=k_BSHK,
            v_BSHV=v_BSHV,
            ends_BT=ends_BT,
            words_BTW=words_BTW,
            words_BSW=words_BSW,
            scale=ctx.scale,
        )
        return *window_backward(grid, out_BTHV, lse_BHT, grads[0]), None, None, None
