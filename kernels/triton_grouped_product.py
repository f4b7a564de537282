"""Products of rows with the matrix of their own expert (Triton): rows stand grouped by expert, each expert's rows padded to whole tiles.

No size depends on the routing, so nothing waits for the host: the layout has room for the worst case and unused tiles return at once.
Axes: N tokens, X slots a token, E experts, R padded rows, M and K inner and outer widths.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.triton_loading import interpreting
from samepath.kernels.triton_product import operand_type

GROUP_TILES = 8
"""Row tiles that walk over the columns together, so that they share the weights in L2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Shape of the products; changes the speed, never a result's meaning."""

    rows: int = 128
    """Rows a tile."""
    columns: int = 256
    """Columns a tile."""
    inner: int = 64
    """Inner width of one step."""
    num_warps: int = 8
    """Warps a program."""
    num_stages: int = 4
    """Steps in flight."""


def default_tiles(dtype: torch.dtype) -> Tiles:
    """Tiles that fit the multiprocessor for this type."""
    if interpreting():
        return Tiles(rows=16, columns=32, inner=16)
    if dtype == torch.float32:
        return Tiles(rows=32, columns=64, inner=32, num_warps=4, num_stages=2)
    return Tiles()


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where each (token, slot) pair stands."""

    row_of_pair: Tensor
    """int64 [N·X] row of each pair, pairs in token-major order."""
    pair_of_row: Tensor
    """int32 [R] pair of each row, −1 for padding."""
    expert_of_tile: Tensor
    """int32 [R / rows] expert of each tile of rows, −1 for unused tiles."""
    first_row_E: Tensor
    """int32 [E + 1] first padded row of each expert, and the end of the last."""
    num_slots: int
    """X."""
    tile_rows: int
    """Rows a tile."""

    @property
    def num_rows(self) -> int:
        """R."""
        return self.pair_of_row.shape[0]


@triton.jit
def _count_pairs(ids, counts, num_pairs, EXPERTS: tl.constexpr, PAIRS: tl.constexpr):
    """How many pairs of a block go to each expert."""
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    expert = tl.load(ids + pair, mask=pair < num_pairs, other=-1)
    hits = expert[:, None] == tl.arange(0, EXPERTS)[None, :]
    tl.store(counts + tl.program_id(0) * EXPERTS + tl.arange(0, EXPERTS), tl.sum(hits.to(tl.int32), 0))


@triton.jit
def _place_experts(
    counts,
    expert_of_tile,
    first_row,
    num_blocks,
    num_tiles,
    num_experts,
    EXPERTS: tl.constexpr,
    BLOCKS: tl.constexpr,
    TILES: tl.constexpr,
    TILE_ROWS: tl.constexpr,
):
    """Replace each block's counts by the first row of its pairs of each expert; say whose each tile is."""
    expert = tl.arange(0, EXPERTS)
    total = tl.zeros((EXPERTS,), tl.int32)
    for first in range(0, num_blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        place = counts + block[:, None] * EXPERTS + expert[None, :]
        total += tl.sum(tl.load(place, mask=(block < num_blocks)[:, None], other=0), 0)
    tiles = (total + TILE_ROWS - 1) // TILE_ROWS
    end = tl.cumsum(tiles, 0)
    tl.store(first_row + expert, (end - tiles) * TILE_ROWS, mask=expert < num_experts)
    tl.store(first_row + expert + 1, end * TILE_ROWS, mask=expert == num_experts - 1)
    start = (end - tiles) * TILE_ROWS
    for first in range(0, num_blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        place = counts + block[:, None] * EXPERTS + expert[None, :]
        here = tl.load(place, mask=(block < num_blocks)[:, None], other=0)
        tl.store(place, start[None, :] + tl.cumsum(here, 0) - here, mask=(block < num_blocks)[:, None])
        start += tl.sum(here, 0)
    for first in range(0, num_tiles, TILES):
        tile = first + tl.arange(0, TILES)
        # A tile belongs to the first expert whose tiles end behind it.
        owner = tl.sum((end[None, :] <= tile[:, None]).to(tl.int32), 1)
        tl.store(expert_of_tile + tile, tl.where(owner < num_experts, owner, -1), mask=tile < num_tiles)


@triton.jit
def _place_pairs(ids, firsts, row_of_pair, pair_of_row, num_pairs, EXPERTS: tl.constexpr, PAIRS: tl.constexpr):
    """Give each pair of a block its row: pairs of one expert follow each other in pair order."""
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    live = pair < num_pairs
    expert = tl.load(ids + pair, mask=live, other=0).to(tl.int32)
    other_pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    other = tl.load(ids + other_pair, mask=other_pair < num_pairs, other=-1).to(tl.int32)
    earlier = (other[None, :] == expert[:, None]) & (other_pair[None, :] < pair[:, None])
    row = tl.load(firsts + tl.program_id(0) * EXPERTS + expert, mask=live, other=0)
    row += tl.sum(earlier.to(tl.int32), 1)
    tl.store(row_of_pair + pair, row.to(tl.int64), mask=live)
    tl.store(pair_of_row + row, pair, mask=live)


def group_rows(ids_NX: Tensor, num_experts: int, tile_rows: int) -> Layout:
    """Group pairs by expert, in token order within an expert; three small kernels, nothing waits for the host."""
    device = ids_NX.device
    num_pairs = ids_NX.numel()
    block_pairs = 16 if interpreting() else 128
    num_blocks = triton.cdiv(num_pairs, block_pairs)
    num_tiles = triton.cdiv(num_pairs, tile_rows) + min(num_experts, num_pairs)
    experts = max(2, triton.next_power_of_2(num_experts))
    ids = ids_NX.contiguous()
    counts = torch.empty(num_blocks, experts, dtype=torch.int32, device=device)
    row_of_pair = torch.empty(num_pairs, dtype=torch.int64, device=device)
    pair_of_row = torch.full((num_tiles * tile_rows,), -1, dtype=torch.int32, device=device)
    expert_of_tile = torch.empty(num_tiles, dtype=torch.int32, device=device)
    first_row_E = torch.zeros(num_experts + 1, dtype=torch.int32, device=device)
    if num_pairs:
        _count_pairs[(num_blocks,)](ids, counts, num_pairs, EXPERTS=experts, PAIRS=block_pairs)
        _place_experts[(1,)](
            counts,
            expert_of_tile,
            first_row_E,
            num_blocks,
            num_tiles,
            num_experts,
            EXPERTS=experts,
            BLOCKS=max(1, min(64, 8192 // experts)),
            TILES=max(1, min(64, 8192 // experts)),
            TILE_ROWS=tile_rows,
            num_warps=8,
        )
        _place_pairs[(num_blocks,)](
            ids, counts, row_of_pair, pair_of_row, num_pairs, EXPERTS=experts, PAIRS=block_pairs
        )
    return Layout(
        row_of_pair=row_of_pair,
        pair_of_row=pair_of_row,
        expert_of_tile=expert_of_tile,
        first_row_E=first_row_E,
        num_slots=ids_NX.shape[1],
        tile_rows=tile_rows,
    )


@triton.jit
def tile_place(num_columns, COLUMNS: tl.constexpr, GROUP: tl.constexpr, num_tiles):
    """(row tile, column tile) of this program: GROUP row tiles go through the columns together."""
    across = tl.cdiv(num_columns, COLUMNS)
    group = tl.program_id(0) // (GROUP * across)
    inside = tl.program_id(0) % (GROUP * across)
    height = tl.minimum(num_tiles - group * GROUP, GROUP)
    return group * GROUP + inside % height, inside // height


@triton.jit
def source_rows(pair_of_row, rows, num_slots, GATHERED: tl.constexpr):
    """(row of the left matrix, which hold a pair) of the given padded rows; GATHERED reads the token's row."""
    pair = tl.load(pair_of_row + rows)
    if GATHERED:
        return tl.where(pair < 0, 0, pair // num_slots).to(tl.int64), pair >= 0
    return rows.to(tl.int64), pair >= 0


@triton.jit
def _grouped_product(
    left,
    right,
    out,
    pair_of_row,
    expert_of_tile,
    num_slots,
    num_tiles,
    num_columns,
    num_inner,
    GATHERED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    GROUP: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """out[r] = left[source(r)] · right[expert], with right [E, columns, inner] if TRANSPOSED, else [E, inner, columns]."""
    row_tile, column_tile = tile_place(num_columns, COLUMNS, GROUP, num_tiles)
    expert = tl.load(expert_of_tile + row_tile)
    if expert >= 0:
        rows = row_tile * ROWS + tl.arange(0, ROWS)
        source, live = source_rows(pair_of_row, rows, num_slots, GATHERED)
        column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
        inner = tl.arange(0, INNER)
        matrix = right + expert.to(tl.int64) * num_columns * num_inner
        accumulator = tl.zeros((ROWS, COLUMNS), tl.float32)
        for first in range(0, num_inner, INNER):
            step = first + inner
            a = tl.load(
                left + source[:, None] * num_inner + step[None, :],
                mask=live[:, None] & (step < num_inner)[None, :],
                other=0.0,
            )
            if TRANSPOSED:
                b = tl.load(
                    matrix + column[:, None] * num_inner + step[None, :],
                    mask=(column < num_columns)[:, None] & (step < num_inner)[None, :],
                    other=0.0,
                )
                b = tl.trans(b)
            else:
                b = tl.load(
                    matrix + step[:, None] * num_columns + column[None, :],
                    mask=(step < num_inner)[:, None] & (column < num_columns)[None, :],
                    other=0.0,
                )
            accumulator = tl.dot(a.to(OPERAND), b.to(OPERAND), accumulator, input_precision="ieee")
        place = rows.to(tl.int64)[:, None] * num_columns + column[None, :]
        tl.store(out + place, accumulator.to(out.dtype.element_ty), mask=(column < num_columns)[None, :])


def grouped_product(
    left: Tensor, right: Tensor, layout: Layout, *, gathered: bool, transposed: bool, tiles: Tiles | None = None
) -> Tensor:
    """[R, columns]: each padded row times its expert's matrix; rows of unused tiles hold anything.

    Args:
        left: [N, inner] tokens if `gathered`, else [R, inner] rows. right: [E, columns, inner] if `transposed`, else [E, inner, columns].
    """
    tiles = tiles or default_tiles(left.dtype)
    num_inner = left.shape[1]
    num_columns = right.shape[1] if transposed else right.shape[2]
    out = torch.empty(layout.num_rows, num_columns, dtype=left.dtype, device=left.device)
    num_tiles = layout.expert_of_tile.shape[0]
    if num_tiles:
        _grouped_product[(num_tiles * triton.cdiv(num_columns, tiles.columns),)](
            left,
            right,
            out,
            layout.pair_of_row,
            layout.expert_of_tile,
            layout.num_slots,
            num_tiles,
            num_columns,
            num_inner,
            GATHERED=gathered,
            TRANSPOSED=transposed,
            ROWS=layout.tile_rows,
            COLUMNS=tiles.columns,
            INNER=tiles.inner,
            GROUP=GROUP_TILES,
            OPERAND=operand_type(left.dtype),
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )
    return out


@triton.jit
def _grouped_outer_product(
    left,
    right,
    out,
    pair_of_row,
    first_row,
    num_slots,
    height,
    width,
    LEFT_GATHERED: tl.constexpr,
    RIGHT_GATHERED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    GROUP: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """out[e] = Σ over the rows r of expert e of left[r]ᵀ · right[r]."""
    expert = tl.program_id(1)
    row_tile, column_tile = tile_place(width, COLUMNS, GROUP, tl.cdiv(height, ROWS))
    start = tl.load(first_row + expert)
    stop = tl.load(first_row + expert + 1)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    accumulator = tl.zeros((ROWS, COLUMNS), tl.float32)
    # Read a step ahead, so that the loads of a step wait for no index. Padding, and what is past the end, counts as zero.
    inner = start + tl.arange(0, INNER)
    pair = tl.load(pair_of_row + inner, mask=inner < stop, other=-1)
    for _ in range(start, stop, INNER):
        live = (pair >= 0)[:, None]
        token = tl.where(pair < 0, 0, pair // num_slots).to(tl.int64)
        left_row = token if LEFT_GATHERED else inner.to(tl.int64)
        right_row = token if RIGHT_GATHERED else inner.to(tl.int64)
        a = tl.load(left + left_row[:, None] * height + row[None, :], mask=live & (row < height)[None, :], other=0.0)
        b = tl.load(
            right + right_row[:, None] * width + column[None, :], mask=live & (column < width)[None, :], other=0.0
        )
        inner += INNER
        pair = tl.load(pair_of_row + inner, mask=inner < stop, other=-1)
        accumulator = tl.dot(tl.trans(a.to(OPERAND)), b.to(OPERAND), accumulator, input_precision="ieee")
    place = (expert.to(tl.int64) * height + row)[:, None] * width + column[None, :]
    keep = (row < height)[:, None] & (column < width)[None, :]
    tl.store(out + place, accumulator.to(out.dtype.element_ty), mask=keep)


def grouped_outer_product(
    left: Tensor,
    right: Tensor,
    layout: Layout,
    *,
    left_gathered: bool = False,
    right_gathered: bool = False,
    tiles: Tiles | None = None,
) -> Tensor:
    """[E, left width, right width]: each expert's sum of outer products over its rows, in row order; zero for unused experts."""
    tiles = tiles or default_tiles(left.dtype)
    num_experts = layout.first_row_E.shape[0] - 1
    height, width = left.shape[1], right.shape[1]
    out = torch.empty(num_experts, height, width, dtype=left.dtype, device=left.device)
    grid = (triton.cdiv(height, tiles.rows) * triton.cdiv(width, tiles.columns), num_experts)
    _grouped_outer_product[grid](
        left,
        right,
        out,
        layout.pair_of_row,
        layout.first_row_E,
        layout.num_slots,
        height,
        width,
        LEFT_GATHERED=left_gathered,
        RIGHT_GATHERED=right_gathered,
        ROWS=tiles.rows,
        COLUMNS=tiles.columns,
        INNER=tiles.inner,
        GROUP=GROUP_TILES,
        OPERAND=operand_type(left.dtype),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return out
