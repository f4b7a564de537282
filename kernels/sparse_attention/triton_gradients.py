"""The kernels of sparse attention's backward (Triton): pair gradients and attention mass from one pass over each row's tiles, then query gradients.

The first recomputes the probabilities with keys as rows (Pᵀ, dSᵀ), so that both are ready as left operands of dKV = dSᵀ·Q + Pᵀ·dO, and
leaves dS in memory; the second multiplies it with the gathered keys. Every product of the backward is thus done once.

Axes: N query rows, S key rows, H heads, K key width, V value width, C selected keys, P pairs of a row chunk.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.gpu.loading import interpreting
from samepath.kernels.gpu.row_parts import LOG2_E, load_main, load_rest, load_rows, store_rows
from samepath.kernels.gpu.tiles import operand_type
from samepath.kernels.sparse_attention.triton_forward import widths


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Shape of the products; changes the speed and, through the grouping of sums, rounding."""

    heads: int = 64
    """Heads a program at most."""
    keys: int = 64
    """Keys a tile."""
    num_warps: int = 8
    """Warps a program."""
    num_stages: int = 1
    """Key tiles in flight."""
    hopper: bool = False
    """Run the kernels written for Hopper at the published widths, which have tiles of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRows:
    """What the forward leaves for the backward, all contiguous."""

    q_NHK: Tensor
    kv_SK: Tensor
    indices_NC: Tensor
    count_N: Tensor
    out_NHV: Tensor
    lse_NH: Tensor
    scale: float


@triton.jit
def _backward_keys(
    q,
    kv,
    grad_out,
    indices,
    counts,
    lse,
    delta,
    grad_scores,
    mass,
    target,
    scale,
    num_heads,
    num_selected,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    zero = tl.full((), 0, tl.int64)
    row = zero + tl.program_id(1)
    head = tl.program_id(0) * HEADS + tl.arange(0, HEADS)
    live_head = head < num_heads
    q_rows = row * num_heads + head
    q_main = load_main(q, q_rows, live_head, KEY.total, KEY, OPERAND)
    o_main = load_main(grad_out, q_rows, live_head, VALUE.total, VALUE, OPERAND)
    if KEY.rest:
        q_rest = load_rest(q, q_rows, live_head, KEY.total, KEY, OPERAND)
    if VALUE.rest:
        o_rest = load_rest(grad_out, q_rows, live_head, VALUE.total, VALUE, OPERAND)
    # A row without keys has LSE −inf and runs no tile; a padded head must give P = 0 without NaN.
    lse_H = tl.load(lse + q_rows, mask=live_head, other=float("inf")) * LOG2_E
    delta_H = tl.load(delta + q_rows, mask=live_head, other=0.0)
    count = tl.load(counts + row)
    rows_of = indices + row * num_selected
    # Where this (head block, row) writes its mass and its pairs.
    block = (zero + tl.program_id(0)) * tl.num_programs(1) + row
    for first in range(0, count, KEYS):
        slots = first + tl.arange(0, KEYS)
        live = slots < count
        key_rows = tl.load(rows_of + slots, mask=live, other=0).to(tl.int64)
        # Part by part, as they come.
        k_main = load_main(kv, key_rows, live, KEY.total, KEY, OPERAND)
        scores = tl.dot(k_main, tl.trans(q_main), input_precision="ieee")
        grad_probs = tl.dot(k_main, tl.trans(o_main), input_precision="ieee")
        if KEY.rest:
            k_rest = load_rest(kv, key_rows, live, KEY.total, KEY, OPERAND)
            scores = tl.dot(k_rest, tl.trans(q_rest), scores, input_precision="ieee")
            if VALUE.rest:
                grad_probs = tl.dot(k_rest, tl.trans(o_rest), grad_probs, input_precision="ieee")
        probs = tl.where(live[:, None], tl.exp2(scores * (scale * LOG2_E) - lse_H[None, :]), 0.0)
        grads = probs * (grad_probs - delta_H[None, :]) * scale
        tl.store(mass + block * num_selected + slots, tl.sum(probs, 1), mask=live)
        place = (row * num_heads + head)[None, :] * num_selected + slots[:, None]
        keep = live[:, None] & live_head[None, :]
        tl.store(grad_scores + place, grads.to(grad_scores.dtype.element_ty), mask=keep)
        pairs = block * num_selected + slots
        p, ds = probs.to(OPERAND), grads.to(OPERAND)
        grad_main = tl.dot(p, o_main, tl.dot(ds, q_main, input_precision="ieee"), input_precision="ieee")
        store_rows(target, pairs, live, KEY.total, grad_main, 0, KEY.total, KEY.main)
        if KEY.rest:
            grad_rest = tl.dot(ds, q_rest, input_precision="ieee")
            if VALUE.rest:
                grad_rest = tl.dot(p, o_rest, grad_rest, input_precision="ieee")
            store_rows(target, pairs, live, KEY.total, grad_rest, KEY.main, KEY.total, KEY.rest)


@triton.jit
def _backward_queries(
    grad_scores,
    kv,
    indices,
    counts,
    grad_q,
    first_column,
    num_heads,
    num_selected,
    KEY_WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    FULL: tl.constexpr,
    HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """dQ = dS · K for a block of heads and of channels."""
    zero = tl.full((), 0, tl.int64)
    row = zero + tl.program_id(1)
    first_channel = first_column + tl.program_id(0) * COLUMNS
    head = tl.program_id(2) * HEADS + tl.arange(0, HEADS)
    live_head = head < num_heads
    count = tl.load(counts + row)
    rows_of = indices + row * num_selected
    key_rows = tl.load(rows_of + tl.arange(0, KEYS), mask=tl.arange(0, KEYS) < count, other=0)
    accumulator = tl.zeros((HEADS, COLUMNS), tl.float32)
    for first in range(0, count, KEYS):
        slots = first + tl.arange(0, KEYS)
        live = slots < count
        k = load_rows(
            kv, key_rows.to(tl.int64), first_channel, KEY_WIDTH, KEY_WIDTH, live, COLUMNS, KEY_WIDTH % COLUMNS == 0
        )
        place = (row * num_heads + head)[:, None] * num_selected + slots[None, :]
        ds = tl.load(grad_scores + place, mask=live_head[:, None] & live[None, :], other=0.0)
        key_rows = tl.load(rows_of + slots + KEYS, mask=slots + KEYS < count, other=0)
        accumulator = tl.dot(ds.to(OPERAND), k.to(OPERAND), accumulator, input_precision="ieee")
    store_rows(grad_q, row * num_heads + head, live_head, KEY_WIDTH, accumulator, first_channel, KEY_WIDTH, COLUMNS)


def num_blocks(num_heads: int, tiles: Tiles) -> int:
    """Blocks of heads, each with pairs of its own."""
    return triton.cdiv(num_heads, _block_heads(num_heads, tiles))


def _block_heads(num_heads: int, tiles: Tiles) -> int:
    return max(16, min(tiles.heads, triton.next_power_of_2(num_heads)))


def backward_by_tiles(
    saved: SavedRows, grad_out_NHV: Tensor, delta_NH: Tensor, grad_q_NHK: Tensor, tiles: Tiles
) -> tuple[Tensor, Tensor]:
    """(pairs [blocks · N · C, K], mass of each block of heads [blocks, N, C]) by the portable kernels."""
    num_rows, num_heads, key_width = saved.q_NHK.shape
    num_selected = saved.indices_NC.shape[1]
    blocks = num_blocks(num_heads, tiles)
    mass = torch.zeros(blocks, num_rows, num_selected, dtype=torch.float32, device=grad_q_NHK.device)
    grad_scores = torch.empty(num_rows, num_heads, num_selected, dtype=saved.q_NHK.dtype, device=grad_q_NHK.device)
    pairs_PK = torch.empty(mass.numel(), key_width, dtype=saved.kv_SK.dtype, device=grad_q_NHK.device)
    _backward_keys[(blocks, num_rows)](
        saved.q_NHK,
        saved.kv_SK,
        grad_out_NHV,
        saved.indices_NC,
        saved.count_N,
        saved.lse_NH,
        delta_NH,
        grad_scores,
        mass,
        pairs_PK,
        saved.scale,
        num_heads,
        num_selected,
        **widths(key_width, grad_out_NHV.shape[2]),
        HEADS=_block_heads(num_heads, tiles),
        KEYS=tiles.keys,
        OPERAND=operand_type(saved.q_NHK.dtype),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    _query_gradients(saved, grad_scores, grad_q_NHK)
    return pairs_PK, mass


def _query_gradients(saved: SavedRows, grad_scores: Tensor, grad_q_NHK: Tensor) -> None:
    """Blocks of 256 channels and one narrower block for the rest, so that 576 channels cost no padding."""
    num_rows, num_heads, key_width = grad_q_NHK.shape
    wide = not interpreting() and grad_q_NHK.dtype == torch.bfloat16
    heads = max(16, min(triton.next_power_of_2(num_heads), 128 if wide else 16))
    first = 0
    while first < key_width:
        columns = min(256 if wide else 64, max(16, 1 << ((key_width - first).bit_length() - 1)))
        blocks = max(1, (key_width - first) // columns)
        _backward_queries[(blocks, num_rows, triton.cdiv(num_heads, heads))](
            grad_scores,
            saved.kv_SK,
            saved.indices_NC,
            saved.count_N,
            grad_q_NHK,
            first,
            num_heads,
            saved.indices_NC.shape[1],
            KEY_WIDTH=key_width,
            COLUMNS=columns,
            FULL=first + blocks * columns <= key_width,
            HEADS=heads,
            KEYS=64 if wide else 16,
            OPERAND=operand_type(grad_q_NHK.dtype),
            num_warps=8 if wide else 4,
            num_stages=3 if wide else 1,
        )
        first += blocks * columns
