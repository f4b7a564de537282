"""Rows grouped by expert (Triton): two small kernels give every (token, slot) pair its row.

Each expert's rows start at a whole block. No size depends on the routing, so nothing waits for the host: there is room for the worst case, and
what lies behind the last used block is never touched. Bound by its two launches: the numbers are few.

Axes: N tokens, X slots a token, E experts, R padded rows.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.gpu.loading import interpreting

COUNTERS = 4
"""Numbers set to 0 for the kernels that follow, which hand out their work by them and leave them 0."""
MAX_BLOCKS = 128
"""Blocks of pairs, at most: a program each."""


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


@triton.jit(do_not_specialize=["num_pairs"])
def _count_pairs(ids, counts, num_pairs, pairs, EXPERTS: tl.constexpr, STEP: tl.constexpr):
    """How many pairs of a block go to each expert."""
    start = tl.program_id(0) * pairs
    count = tl.zeros((EXPERTS,), tl.int32)
    for first in range(start, start + pairs, STEP):
        pair = first + tl.arange(0, STEP)
        expert = tl.load(ids + pair, mask=pair < num_pairs, other=0).to(tl.int32)
        count += tl.histogram(expert, EXPERTS, mask=pair < num_pairs)
    tl.store(counts + tl.program_id(0) * EXPERTS + tl.arange(0, EXPERTS), count)


@triton.jit
def _place_experts(
    total,
    pair_of_row,
    expert_of_tile,
    first_tile,
    first_block,
    num_tiles,
    num_experts,
    EXPERTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    TILES: tl.constexpr,
):
    """First row of each expert, from the pairs it has; the programs share the writing of what is known of tiles and of padding."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    expert = tl.arange(0, EXPERTS)
    blocks = (total + BLOCK_ROWS - 1) // BLOCK_ROWS
    block_end = tl.cumsum(blocks, 0)
    tile_end = tl.cumsum((blocks + TILE_BLOCKS - 1) // TILE_BLOCKS, 0)
    if program == 0:
        tl.store(first_tile, 0)
        tl.store(first_block, 0)
        tl.store(first_tile + 1 + expert, tile_end, mask=expert < num_experts)
        tl.store(first_block + 1 + expert, block_end, mask=expert < num_experts)
    for first in range(program * TILES, num_tiles, TILES * programs):
        tile = first + tl.arange(0, TILES)
        # A tile belongs to the first expert whose tiles end behind it.
        owner = tl.sum((tile_end[None, :] <= tile[:, None]).to(tl.int32), 1)
        tl.store(expert_of_tile + tile, tl.where(owner < num_experts, owner, -1), mask=tile < num_tiles)
    first_row = (block_end - blocks) * BLOCK_ROWS
    for one in range(program, num_experts, programs):
        row = tl.sum(tl.where(expert == one, first_row + total, 0), 0) + tl.arange(0, BLOCK_ROWS)
        end = tl.sum(tl.where(expert == one, block_end, 0), 0) * BLOCK_ROWS
        tl.store(pair_of_row + row, tl.full((BLOCK_ROWS,), -1, tl.int32), mask=row < end)
    return first_row


@triton.jit(do_not_specialize=["num_pairs", "num_blocks", "num_tiles", "num_experts"])
def _place_rows(
    ids,
    counts,
    row_of_pair,
    pair_of_row,
    expert_of_tile,
    first_tile,
    first_block,
    counters,
    num_pairs,
    pairs,
    num_blocks,
    num_tiles,
    num_experts,
    EXPERTS: tl.constexpr,
    STEP: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
    TILES: tl.constexpr,
    COUNTERS: tl.constexpr,
):
    """Give each pair of a block its row: pairs of one expert follow each other in pair order."""
    program = tl.program_id(0)
    expert = tl.arange(0, EXPERTS)
    total = tl.zeros((EXPERTS,), tl.int32)
    before = tl.zeros((EXPERTS,), tl.int32)
    for first in range(0, num_blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        place = counts + block[:, None] * EXPERTS + expert[None, :]
        here = tl.load(place, mask=(block < num_blocks)[:, None], other=0)
        total += tl.sum(here, 0)
        before += tl.sum(tl.where((block < program)[:, None], here, 0), 0)
    if program == 0:
        tl.store(counters + tl.arange(0, COUNTERS), tl.zeros((COUNTERS,), tl.int32))
    next_row = before + _place_experts(
        total,
        pair_of_row,
        expert_of_tile,
        first_tile,
        first_block,
        num_tiles,
        num_experts,
        EXPERTS,
        BLOCK_ROWS,
        TILE_BLOCKS,
        TILES,
    )
    for first in range(program * pairs, program * pairs + pairs, STEP):
        pair = first + tl.arange(0, STEP)
        live = pair < num_pairs
        own = tl.load(ids + pair, mask=live, other=-1).to(tl.int32)
        other_pair = first + tl.arange(0, STEP)
        other = tl.load(ids + other_pair, mask=other_pair < num_pairs, other=-1).to(tl.int32)
        earlier = (other[None, :] == own[:, None]) & (other_pair[None, :] < pair[:, None])
        hits = own[:, None] == expert[None, :]
        row = tl.sum(tl.where(hits, next_row[None, :], 0), 1) + tl.sum(earlier.to(tl.int32), 1)
        next_row += tl.sum(hits.to(tl.int32), 0)
        tl.store(row_of_pair + pair, row, mask=live)
        tl.store(pair_of_row + row, pair, mask=live)


def group_rows(ids_NX: Tensor, num_experts: int, block_rows: int, tile_blocks: int = 1) -> Layout:
    """Group pairs by expert, in token order within an expert; two small kernels.

    Args:
        block_rows: an expert's rows are padded to a multiple of this. tile_blocks: blocks a tile; an expert's last tile may have fewer.
    """
    num_pairs = ids_NX.numel()
    used = min(num_experts, num_pairs)
    num_row_blocks = (num_pairs + (block_rows - 1) * used) // block_rows
    num_tiles = (num_row_blocks + (tile_blocks - 1) * used) // tile_blocks
    experts = max(32, triton.next_power_of_2(num_experts))
    step = 16 if interpreting() else 128
    # Few blocks, because each program of the second kernel reads the counts of all.
    pairs = step * triton.cdiv(max(1, num_pairs), step * MAX_BLOCKS)
    num_blocks = triton.cdiv(num_pairs, pairs)
    sizes = (
        num_pairs,
        num_row_blocks * block_rows,
        num_tiles,
        num_experts + 1,
        num_experts + 1,
        COUNTERS,
        num_blocks * experts,
    )
    # One piece of memory; every part starts at 16 bytes, so that no alignment asks for another compilation.
    padded = [size for exact in sizes for size in (exact, -exact % 4)]
    numbers = (torch.empty if num_pairs else torch.zeros)(sum(padded), dtype=torch.int32, device=ids_NX.device)
    *parts, counts = numbers.split(padded)[::2]
    if num_pairs:
        ids = ids_NX.contiguous()
        _count_pairs[(num_blocks,)](ids, counts, num_pairs, pairs, EXPERTS=experts, STEP=step)
        _place_rows[(num_blocks,)](
            ids,
            counts,
            *parts,
            num_pairs,
            pairs,
            num_blocks,
            num_tiles,
            num_experts,
            EXPERTS=experts,
            STEP=step,
            BLOCKS=max(1, min(32, 8192 // experts)),
            BLOCK_ROWS=block_rows,
            TILE_BLOCKS=tile_blocks,
            TILES=16,
            COUNTERS=COUNTERS,
            num_warps=1 if interpreting() else 8,
        )
    row_of_pair, pair_of_row, expert_of_tile, first_tile_E, first_block_E, counters = parts
    return Layout(
        row_of_pair=row_of_pair,
        pair_of_row=pair_of_row,
        expert_of_tile=expert_of_tile,
        first_tile_E=first_tile_E,
        first_block_E=first_block_E,
        counters=counters,
        num_slots=ids_NX.shape[1],
        block_rows=block_rows,
    )
