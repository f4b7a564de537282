"""Rotary embedding in one kernel (Triton): the products and sums of the separate operations, rounded where they round. The gradient
is the same kernel turning back.

Axes: N rows, H heads, K channels of a head, Q half of those that are rotated, which come first.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rotate(
    x,
    cosines,
    sines,
    out,
    num_heads,
    half,
    width,
    x_row,
    x_head,
    table_row,
    INTERLEAVED: tl.constexpr,
    BACK: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    pair = tl.arange(0, HALF)[None, :]
    keep = (head < num_heads) & (pair < half)
    first_place = pair
    second_place = pair + half
    if INTERLEAVED:
        first_place = 2 * pair
        second_place = 2 * pair + 1
    start = x + row * x_row + head * x_head
    first = tl.load(start + first_place, mask=keep, other=0.0).to(tl.float32)
    second = tl.load(start + second_place, mask=keep, other=0.0).to(tl.float32)
    cosine = tl.load(cosines + row * table_row + pair, mask=pair < half, other=0.0).to(tl.float32)
    sine = tl.load(sines + row * table_row + pair, mask=pair < half, other=0.0).to(tl.float32)
    if BACK:
        sine = -sine
    kind = out.dtype.element_ty
    # Each product is rounded to the type before the sum, as an operation of its own would.
    left = (first * cosine).to(kind).to(tl.float32) - (second * sine).to(kind).to(tl.float32)
    right = (second * cosine).to(kind).to(tl.float32) + (first * sine).to(kind).to(tl.float32)
    end = out + (row * num_heads + head) * width
    tl.store(end + first_place, left.to(kind), mask=keep)
    tl.store(end + second_place, right.to(kind), mask=keep)
    if REST:
        channel = 2 * half + tl.arange(0, REST)[None, :]
        keep = (head < num_heads) & (channel < width)
        tl.store(end + channel, tl.load(start + channel, mask=keep, other=0.0), mask=keep)


def rotate(x_NHK: Tensor, cos_NQ: Tensor, sin_NQ: Tensor, interleaved: bool) -> Tensor:
    """Pairs (2i, 2i + 1) if interleaved, else (i, i + Q), rotated, `[N, H, K]`, with gradient for x; channels behind them stay.

    The last axis of all inputs is dense.
    """
    out_NHK: Tensor = _Rotate.apply(x_NHK, cos_NQ, sin_NQ, interleaved)
    return out_NHK


class _Rotate(torch.autograd.Function):
    """Keeps the table alone."""

    @staticmethod
    def forward(ctx: Any, x_NHK: Tensor, cos_NQ: Tensor, sin_NQ: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos_NQ, sin_NQ)
        ctx.interleaved = interleaved
        return _rotated(x_NHK, cos_NQ, sin_NQ, interleaved, back=False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos_NQ, sin_NQ = ctx.saved_tensors
        grad_NHK = grads[0] if grads[0].stride(-1) == 1 else grads[0].contiguous()
        return _rotated(grad_NHK, cos_NQ, sin_NQ, ctx.interleaved, back=True), None, None, None


def _rotated(x_NHK: Tensor, cos_NQ: Tensor, sin_NQ: Tensor, interleaved: bool, *, back: bool) -> Tensor:
    (num_rows, num_heads, width), half = x_NHK.shape, cos_NQ.shape[1]
    out_NHK = torch.empty(num_rows, num_heads, width, dtype=x_NHK.dtype, device=x_NHK.device)
    if num_rows:
        _rotate[(num_rows,)](
            x_NHK,
            cos_NQ,
            sin_NQ,
            out_NHK,
            num_heads,
            half,
            width,
            x_NHK.stride(0),
            x_NHK.stride(1),
            cos_NQ.stride(0),
            INTERLEAVED=interleaved,
            BACK=back,
            HEADS=triton.next_power_of_2(num_heads),
            HALF=triton.next_power_of_2(half),
            REST=triton.next_power_of_2(width - 2 * half) if width > 2 * half else 0,
            num_warps=1 if num_heads * width <= 512 else 4,
            # A product that were added unrounded would be another number.
            enable_fp_fusion=False,
        )
    return out_NHK
