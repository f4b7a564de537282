"""Rows grouped by expert (Triton): one kernel gives every (token, slot) pair its row, others carry tokens to rows and back.

Each expert's rows start at a whole block. No size depends on the routing, so nothing waits for the host: there is room for the worst case, and
what lies behind the last used block is never touched. Axes: N tokens, X slots a token, D width, E experts, R padded rows.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.triton_loading import interpreting

COUNTERS = 4
"""Numbers set to 0 for the kernels that follow, which hand out their work by them and leave them 0."""
SPREAD_ROWS, SPREAD_WIDTH = 8, 1024
"""Rows and channels that one program of `spread_rows` copies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where each (token, slot) pair stands."""

    row_of_pair: Tensor
    """int32 [N·X] row of each pair, pairs in token-major order; rows of one expert follow each other in pair order."""
    pair_of_row: Tensor
    """int32 [R] pair of each row, −1 for padding; anything behind the last used block."""
    expert_of_tile: Tensor
    """int32 expert of each tile of up to `tile_blocks` blocks, −1 for unused ones."""
    first_tile_E: Tensor
    """int32 [E + 1] first tile of each expert, and the end of the last."""
    first_block_E: Tensor
    """int32 [E + 1] first block of each expert, and the end of the last."""
    counters: Tensor
    """int32 [COUNTERS] zeros."""
    num_slots: int
    """X."""
    block_rows: int
    """Rows a block."""

    @property
    def num_rows(self) -> int:
        """R."""
        return self.pair_of_row.shape[0]


@triton.jit
def _count_pairs(ids, start, stop, EXPERTS: tl.constexpr, CHUNK: tl.constexpr):
    """How many of the pairs start … stop − 1 go to each expert."""
    counts = tl.zeros((EXPERTS,), tl.int32)
    for first in range(start, stop, CHUNK):
        pair = first + tl.arange(0, CHUNK)
        expert = tl.load(ids + pair, mask=pair < stop, other=0).to(tl.int32)
        counts += tl.histogram(expert, EXPERTS, mask=pair < stop)
    return counts


@triton.jit(do_not_specialize=["num_pairs", "num_tiles", "num_experts", "num_slots"])
def _place_rows(
    ids,
    row_of_pair,
    pair_of_row,
    expert_of_tile,
    first_tile,
    first_block,
    counters,
    tokens,
    rows,
    num_pairs,
    num_tiles,
    num_experts,
    num_slots,
    width,
    EXPERTS: tl.constexpr,
    PAIRS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    COPY: tl.constexpr,
    COUNTERS: tl.constexpr,
):
    """Give the pairs of a block their rows, and copy their tokens there. Every program counts all pairs itself, so none waits for another."""
    program = tl.program_id(0)
    start = program * PAIRS
    before = _count_pairs(ids, 0, start, EXPERTS, CHUNK)
    total = before + _count_pairs(ids, start, num_pairs, EXPERTS, CHUNK)
    blocks = (total + BLOCK_ROWS - 1) // BLOCK_ROWS
    block_end = tl.cumsum(blocks, 0)
    tiles = (blocks + TILE_BLOCKS - 1) // TILE_BLOCKS
    tile_end = tl.cumsum(tiles, 0)
    expert = tl.arange(0, EXPERTS)
    if program == 0:
        tl.store(first_tile + expert, tile_end - tiles, mask=expert <= num_experts)
        tl.store(first_block + expert, block_end - blocks, mask=expert <= num_experts)
        tl.store(counters + tl.arange(0, COUNTERS), tl.zeros((COUNTERS,), tl.int32))
    for first in range(program * 16, num_tiles, 16 * tl.num_programs(0)):
        tile = first + tl.arange(0, 16)
        # A tile belongs to the first expert whose tiles end behind it.
        owner = tl.sum((tile_end[None, :] <= tile[:, None]).to(tl.int32), 1)
        tl.store(expert_of_tile + tile, tl.where(owner < num_experts, owner, -1), mask=tile < num_tiles)
    first_row = (block_end - blocks) * BLOCK_ROWS
    for one in range(program, num_experts, tl.num_programs(0)):
        row = tl.sum(tl.where(expert == one, first_row + total, 0), 0) + tl.arange(0, BLOCK_ROWS)
        end = tl.sum(tl.where(expert == one, block_end, 0), 0) * BLOCK_ROWS
        tl.store(pair_of_row + row, tl.full((BLOCK_ROWS,), -1, tl.int32), mask=row < end)
    pair = start + tl.arange(0, PAIRS)
    live = pair < num_pairs
    own = tl.load(ids + pair, mask=live, other=-1).to(tl.int32)
    other_pair = start + tl.arange(0, PAIRS)
    other = tl.load(ids + other_pair, mask=other_pair < num_pairs, other=-1).to(tl.int32)
    earlier = (other[None, :] == own[:, None]) & (other_pair[None, :] < pair[:, None])
    row = tl.sum(tl.where(own[:, None] == expert[None, :], (first_row + before)[None, :], 0), 1)
    row += tl.sum(earlier.to(tl.int32), 1)
    tl.store(row_of_pair + pair, row, mask=live)
    tl.store(pair_of_row + row, pair, mask=live)
    if COPY:
        token = (pair // num_slots).to(tl.int64)[:, None] * width
        place = row.to(tl.int64)[:, None] * width
        for first in range(0, width, COPY):
            channel = (first + tl.arange(0, COPY))[None, :]
            keep = live[:, None] & (channel < width)
            tl.store(rows + place + channel, tl.load(tokens + token + channel, mask=keep), mask=keep)


def group_rows(
    ids_NX: Tensor, num_experts: int, block_rows: int, tile_blocks: int = 1, x_ND: Tensor | None = None
) -> tuple[Layout, Tensor]:
    """(layout, `[R, D]` each pair's token at its row, anything on padding; [0, D] without `x_ND`): one small kernel.

    Args:
        block_rows: an expert's rows are padded to a multiple of this. tile_blocks: blocks a tile; an expert's last tile may have fewer.
    """
    num_pairs = ids_NX.numel()
    used = min(num_experts, num_pairs)
    num_blocks = (num_pairs + (block_rows - 1) * used) // block_rows
    num_tiles = (num_blocks + (tile_blocks - 1) * used) // tile_blocks
    sizes = (num_pairs, num_blocks * block_rows, num_tiles, num_experts + 1, num_experts + 1, COUNTERS)
    # One piece of memory; every part starts at 16 bytes, so that no alignment asks for another compilation.
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + (size + 3) // 4 * 4)
    numbers = (torch.empty if num_pairs else torch.zeros)(starts[-1], dtype=torch.int32, device=ids_NX.device)
    parts = [numbers[start : start + size] for start, size in zip(starts, sizes)]
    source = ids_NX.contiguous() if x_ND is None else x_ND
    rows_RD = source.new_empty(0 if x_ND is None else num_blocks * block_rows, source.shape[1])
    few = num_pairs <= 2048
    pairs = 16 if few else 128
    if num_pairs:
        _place_rows[(triton.cdiv(num_pairs, pairs),)](
            ids_NX.contiguous(),
            *parts,
            source,
            rows_RD,
            num_pairs,
            num_tiles,
            num_experts,
            ids_NX.shape[1],
            source.shape[1],
            EXPERTS=max(32, triton.next_power_of_2(num_experts + 1)),
            PAIRS=pairs,
            CHUNK=1024 if few else 8192,
            BLOCK_ROWS=block_rows,
            TILE_BLOCKS=tile_blocks,
            COPY=0 if x_ND is None else 512 if few else 128,
            COUNTERS=COUNTERS,
            num_warps=1 if interpreting() else 8 if few else 16,
        )
    row_of_pair, pair_of_row, expert_of_tile, first_tile_E, first_block_E, counters = parts
    layout = Layout(
        row_of_pair=row_of_pair,
        pair_of_row=pair_of_row,
        expert_of_tile=expert_of_tile,
        first_tile_E=first_tile_E,
        first_block_E=first_block_E,
        counters=counters,
        num_slots=ids_NX.shape[1],
        block_rows=block_rows,
    )
    return layout, rows_RD


@triton.jit(do_not_specialize=["num_slots"])
def _spread_rows(
    first,
    second,
    first_rows,
    second_rows,
    pair_of_row,
    last_block,
    num_slots,
    width,
    BLOCK_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Copy the token rows of two matrices to some rows of their pairs; padding becomes 0."""
    end = tl.load(last_block) * BLOCK_ROWS
    if tl.program_id(0) * ROWS < end:
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        pair = tl.load(pair_of_row + row, mask=row < end, other=-1)
        token = tl.where(pair < 0, 0, pair // num_slots).to(tl.int64)
        channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        source = token[:, None] * width + channel[None, :]
        live = (pair >= 0)[:, None] & (channel < width)[None, :]
        one = tl.load(first + source, mask=live, other=0.0)
        other = tl.load(second + source, mask=live, other=0.0)
        place = row.to(tl.int64)[:, None] * width + channel[None, :]
        inside = (row < end)[:, None] & (channel < width)[None, :]
        tl.store(first_rows + place, one, mask=inside)
        tl.store(second_rows + place, other, mask=inside)


def spread_rows(first_ND: Tensor, second_ND: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Two matrices' token rows at the rows of their pairs `[R, D]`, 0 on padding."""
    width = first_ND.shape[1]
    first_RD, second_RD = (one.new_empty(layout.num_rows, width) for one in (first_ND, second_ND))
    if layout.num_rows:
        _spread_rows[(triton.cdiv(layout.num_rows, SPREAD_ROWS), triton.cdiv(width, SPREAD_WIDTH))](
            first_ND,
            second_ND,
            first_RD,
            second_RD,
            layout.pair_of_row,
            layout.first_block_E[-1:],
            layout.num_slots,
            width,
            BLOCK_ROWS=layout.block_rows,
            ROWS=SPREAD_ROWS,
            WIDTH=SPREAD_WIDTH,
        )
    return first_RD, second_RD


@triton.jit
def _combine(rows, gates, row_of_pair, out, width, SLOTS: tl.constexpr, WIDTH: tl.constexpr, GATED: tl.constexpr):
    """out[n] = Σ_x gate·row, slot after slot; each token reads its own rows, so nothing is added by atomics."""
    token = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH,), tl.float32)
    for slot in tl.static_range(SLOTS):
        row = tl.load(row_of_pair + token * SLOTS + slot).to(tl.int64)
        value = tl.load(rows + row * width + channel, mask=channel < width, other=0.0).to(tl.float32)
        if GATED:
            value = value * tl.load(gates + token * SLOTS + slot).to(tl.float32)
        total += value
    tl.store(out + token * width + channel, total.to(out.dtype.element_ty), mask=channel < width)


def combine(rows_RD: Tensor, gates_NX: Tensor | None, layout: Layout) -> Tensor:
    """[N, D] sum of each token's rows in slot order, times the gates if given."""
    num_tokens = layout.row_of_pair.shape[0] // layout.num_slots
    width = rows_RD.shape[1]
    out_ND = rows_RD.new_empty(num_tokens, width)
    block = min(1024, triton.next_power_of_2(width))
    if num_tokens:
        _combine[(num_tokens, triton.cdiv(width, block))](
            rows_RD,
            rows_RD if gates_NX is None else gates_NX,
            layout.row_of_pair,
            out_ND,
            width,
            SLOTS=layout.num_slots,
            WIDTH=block,
            GATED=gates_NX is not None,
        )
    return out_ND
