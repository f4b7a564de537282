"""Norms of each head, rotation by position and the key rows' layout in one kernel, and their gradients in another (Triton).

Bound by memory: both read and write every channel once. The forward rounds where the separate operations round, and a head's squares are added in
the order in which `_rms_norm` adds them where the width is a power of two, spelled out because it must not follow from the tile. Weight gradients are
sums over the batch: each program adds its rows in order, and the programs' sums are added in order.
Axes: N rows, X heads of the product (H query, G key, G value heads), K head width, R rotated channels, W = 2K, P programs.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.rows.grouped_heads import HeadNorms

TILE = 1024
"""Channels of a tile of heads: four 16-byte pieces a thread of two warps."""
MAX_PROGRAMS = 528
"""Row ranges of a backward pass, each of every tile of heads."""


@triton.jit
def _pairs_in_order(value, HEADS: tl.constexpr, WIDTH: tl.constexpr):
    """[HEADS, WIDTH] summed over the first of two: lanes of a warp 16, 8, 4, 2, 1 apart, then warps two apart, then neighbours."""
    if WIDTH > 128:
        # A thread's own channels come first.
        value = tl.sum(tl.reshape(value, (HEADS * 128, WIDTH // 128)), 1)
    LANES: tl.constexpr = 32 if WIDTH > 32 else WIDTH
    WARPS: tl.constexpr = (128 if WIDTH > 128 else WIDTH) // LANES
    value = tl.reshape(value, (HEADS * WARPS, LANES))
    if LANES >= 32:
        value = tl.sum(tl.reshape(value, (HEADS * WARPS, 2, 16)), 1)
    if LANES >= 16:
        value = tl.sum(tl.reshape(value, (HEADS * WARPS, 2, 8)), 1)
    if LANES >= 8:
        value = tl.sum(tl.reshape(value, (HEADS * WARPS, 2, 4)), 1)
    if LANES >= 4:
        value = tl.sum(tl.reshape(value, (HEADS * WARPS, 2, 2)), 1)
    if LANES >= 2:
        value = tl.sum(tl.reshape(value, (HEADS * WARPS, 2)), 1)
    if WARPS >= 4:
        value = tl.sum(tl.reshape(value, (HEADS, 2, 2)), 1)
    if WARPS >= 2:
        value = tl.sum(tl.reshape(value, (HEADS, 2)), 1)
    return tl.reshape(value, (HEADS, 1))


@triton.jit
def _weight(query_weight, key_weight, channel, of_query, keep):
    """Each head's own weight."""
    of_queries = tl.load(query_weight + channel, mask=keep & of_query, other=0.0).to(tl.float32)
    return of_queries + tl.load(key_weight + channel, mask=keep & (of_query == 0), other=0.0).to(tl.float32)


@triton.jit
def _normed(x, root, weight, KIND: tl.constexpr):
    """x·r, rounded, times the head's weight, rounded, as two operations would."""
    return ((x * root).to(KIND).to(tl.float32) * weight).to(KIND).to(tl.float32)


@triton.jit(do_not_specialize=["num_rows"])
def _grouped_heads(
    qkv,
    query_weight,
    key_weight,
    rope,
    queries,
    key_rows,
    roots,
    num_rows,
    num_heads,
    num_groups,
    width,
    rotary,
    eps,
    NORMED: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Some heads of one row."""
    row = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    channel = tl.arange(0, WIDTH)[None, :]
    kind: tl.constexpr = queries.dtype.element_ty
    moved = num_heads + num_groups
    inside = (head < moved + num_groups) & (channel < width)
    # Value heads are neither normed nor rotated.
    turns = (head < moved) & (channel < rotary)
    partner = tl.where(channel < rotary // 2, channel + rotary // 2, channel - rotary // 2)
    start = qkv + (row * (moved + num_groups) + head) * width
    plain = tl.load(start + channel, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(start + partner, mask=inside & turns, other=0.0).to(tl.float32)
    if NORMED:
        total = _pairs_in_order(plain * plain, HEADS, WIDTH)
        root = 1.0 / tl.sqrt(total / width + eps)
        tl.store(roots + row * moved + head, root, mask=head < moved)
        of_query = head < num_heads
        normed = _normed(plain, root, _weight(query_weight, key_weight, channel, of_query, channel < width), kind)
        plain = tl.where(head < moved, normed, plain)
        other = _normed(other, root, _weight(query_weight, key_weight, partner, of_query, channel < rotary), kind)
    cosine = tl.load(rope + row * 2 * rotary + channel, mask=channel < rotary, other=0.0).to(tl.float32)
    sine = tl.load(rope + (row * 2 + 1) * rotary + channel, mask=channel < rotary, other=0.0).to(tl.float32)
    # Each product is rounded to the type before the sum, as an operation of its own would.
    rotated = (plain * cosine).to(kind).to(tl.float32) + (other * sine).to(kind).to(tl.float32)
    result = tl.where(turns, rotated, plain).to(kind)
    tl.store(queries + (row * num_heads + head) * width + channel, result, mask=inside & (head < num_heads))
    group = tl.where(head < moved, head - num_heads, head - moved)
    of_value = (head >= moved).to(tl.int64)
    place = ((group * num_rows + row) * 2 + of_value) * width + channel
    tl.store(key_rows + place, result, mask=inside & (head >= num_heads))


@triton.jit(do_not_specialize=["num_rows", "rows_each"])
def _grouped_heads_backward(
    qkv,
    query_weight,
    key_weight,
    rope,
    roots,
    grad_queries,
    grad_key_rows,
    grad_qkv,
    grad_weights,
    num_rows,
    rows_each,
    num_heads,
    num_groups,
    width,
    rotary,
    NORMED: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Gradients of some heads of some rows, and these rows' part of each head's weight gradient.

    With n = x·r and m = n·w, channel c of the result is m_c·cos_c + m_p·sin_c with p the partner of c, so dm_c = g_c·cos_c + g_p·sin_p.
    """
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    channel = tl.arange(0, WIDTH)[None, :]
    moved = num_heads + num_groups
    inside = (head < moved + num_groups) & (channel < width)
    turns = inside & (head < moved) & (channel < rotary)
    partner = tl.where(channel < rotary // 2, channel + rotary // 2, channel - rotary // 2)
    of_query = head < num_heads
    group = tl.where(head < moved, head - num_heads, head - moved)
    of_value = (head >= moved).to(tl.int64)
    parts = tl.zeros((HEADS, WIDTH), tl.float32)
    if NORMED:
        weight = _weight(query_weight, key_weight, channel, of_query, channel < width)
    start = tl.program_id(0) * rows_each
    for number in range(start, tl.minimum(start + rows_each, num_rows)):
        row = tl.full((), 0, tl.int64) + number
        from_query = grad_queries + (row * num_heads + head) * width
        from_key = grad_key_rows + ((group * num_rows + row) * 2 + of_value) * width
        gradient = tl.load(from_query + channel, mask=inside & of_query, other=0.0).to(tl.float32)
        gradient += tl.load(from_key + channel, mask=inside & (head >= num_heads), other=0.0).to(tl.float32)
        other = tl.load(from_query + partner, mask=turns & of_query, other=0.0).to(tl.float32)
        other += tl.load(from_key + partner, mask=turns & (head >= num_heads), other=0.0).to(tl.float32)
        cosine = tl.load(rope + row * 2 * rotary + channel, mask=channel < rotary, other=0.0).to(tl.float32)
        sine = tl.load(rope + (row * 2 + 1) * rotary + partner, mask=channel < rotary, other=0.0).to(tl.float32)
        gradient = tl.where(turns, gradient * cosine + other * sine, gradient)
        place = (row * (moved + num_groups) + head) * width + channel
        if NORMED:
            root = tl.load(roots + row * moved + head, mask=head < moved, other=0.0)
            normed = tl.load(qkv + place, mask=inside, other=0.0).to(tl.float32) * root
            parts += gradient * normed
            scaled = gradient * weight
            # d(x·r) = r·(s − n·mean(s·n))
            share = tl.sum(scaled * normed, 1)[:, None] / width
            gradient = tl.where(head < moved, root * (scaled - normed * share), gradient)
        tl.store(grad_qkv + place, gradient.to(grad_qkv.dtype.element_ty), mask=inside)
    if NORMED:
        place = (tl.program_id(0) * moved + head) * width + channel
        tl.store(grad_weights + place, parts, mask=inside & (head < moved))


def grouped_heads(qkv_NXK: Tensor, norms: HeadNorms | None, rope_N2R: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """(queries [N, H, K], key rows [G, N, W]) as `grouped_heads.grouped_heads` describes."""
    weights = (None, None, 0.0) if norms is None else (norms.query_K, norms.key_K, norms.eps)
    q_NHK, rows_GNW = _GroupedHeads.apply(qkv_NXK, *weights, rope_N2R, num_heads)
    return q_NHK, rows_GNW


def _tile(num_all: int, width: int) -> tuple[int, int]:
    """(heads of a tile, its channels), by the sizes of the model alone."""
    block = triton.next_power_of_2(width)
    return min(max(1, TILE // block), triton.next_power_of_2(num_all)), block


class _GroupedHeads(torch.autograd.Function):
    """Keeps the product and one root a head."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv_NXK: Tensor,
        query_K: Tensor | None,
        key_K: Tensor | None,
        eps: float,
        rope_N2R: Tensor,
        num_heads: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.num_heads = num_heads
        qkv_NXK, rope_N2R = qkv_NXK.contiguous(), rope_N2R.contiguous()
        num_rows, num_all, width = qkv_NXK.shape
        num_groups = (num_all - num_heads) // 2
        weights = None if query_K is None or key_K is None else (query_K.contiguous(), key_K.contiguous())
        q_NHK = qkv_NXK.new_empty(num_rows, num_heads, width)
        rows_GNW = qkv_NXK.new_empty(num_groups, num_rows, 2 * width)
        root_NX = q_NHK.new_empty(0 if weights is None else num_rows, num_heads + num_groups, dtype=torch.float32)
        heads, block = _tile(num_all, width)
        if num_rows:
            _grouped_heads[(num_rows, triton.cdiv(num_all, heads))](
                qkv_NXK,
                *(weights or (qkv_NXK, qkv_NXK)),
                rope_N2R,
                q_NHK,
                rows_GNW,
                root_NX,
                num_rows,
                num_heads,
                num_groups,
                width,
                rope_N2R.shape[2],
                eps,
                NORMED=weights is not None,
                HEADS=heads,
                WIDTH=block,
                num_warps=2,
                # A product that were added unrounded would be another number.
                enable_fp_fusion=False,
            )
        if weights is None:
            ctx.save_for_backward(rope_N2R)
        else:
            ctx.save_for_backward(rope_N2R, qkv_NXK, root_NX, *weights)
        return q_NHK, rows_GNW

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rope_N2R, *normed = ctx.saved_tensors
        grad_q_NHK, grad_rows_GNW = (one.contiguous() for one in grads)
        num_rows, num_heads, width = grad_q_NHK.shape
        num_groups = grad_rows_GNW.shape[0]
        grad_NXK = grad_q_NHK.new_empty(num_rows, num_heads + 2 * num_groups, width)
        qkv_NXK, root_NX, query_K, key_K = normed or 4 * [grad_NXK]
        heads, block = _tile(num_heads + 2 * num_groups, width)
        rows_each = triton.cdiv(num_rows, MAX_PROGRAMS)
        programs = triton.cdiv(num_rows, rows_each) if num_rows else 0
        part_PXK = torch.empty(
            programs if normed else 0, num_heads + num_groups, width, dtype=torch.float32, device=grad_NXK.device
        )
        if programs:
            _grouped_heads_backward[(programs, triton.cdiv(num_heads + 2 * num_groups, heads))](
                qkv_NXK,
                query_K,
                key_K,
                rope_N2R,
                root_NX,
                grad_q_NHK,
                grad_rows_GNW,
                grad_NXK,
                part_PXK,
                num_rows,
                rows_each,
                num_heads,
                num_groups,
                width,
                rope_N2R.shape[2],
                NORMED=bool(normed),
                HEADS=heads,
                WIDTH=block,
                num_warps=2,
            )
        if not normed:
            return grad_NXK, None, None, None, None, None
        summed_XK = part_PXK.sum(0)
        grad_query_K, grad_key_K = summed_XK[:num_heads].sum(0), summed_XK[num_heads:].sum(0)
        return grad_NXK, grad_query_K.to(query_K.dtype), grad_key_K.to(key_K.dtype), None, None, None
