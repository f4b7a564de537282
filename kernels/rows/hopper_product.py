"""Tile product x · weightᵀ for Hopper by warps with roles (Gluon): one warp copies, one or two warpgroups multiply and finish their tiles.

Programs stay and take tile after tile, so the copies of the next tile run under the end of this one. Every element is one sum over the inner
width, first to last, 16 products at a time, whatever the tile: a row keeps its bits in any batch although tiles follow the shape.
`buffers` are (x tiles, weight tiles, full, empty): the steps in flight and their barriers. `grid` is (row tiles, column tiles, steps a tile).

Axes: N rows, D inner width, O columns.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from samepath.kernels.gpu.gluon import block_barrier, tile_from_shared, tile_to_shared

PART_ROWS = gl.constexpr(64)
"""Rows of a warpgroup."""


@gluon.jit
def tile_place(tile, grid, GROUP: gl.constexpr):
    """(row tile, column tile): GROUP row tiles go through the columns together and share them in L2."""
    num_row_tiles, num_column_tiles, _ = grid
    group = tile // (GROUP * num_column_tiles)
    inside = tile % (GROUP * num_column_tiles)
    height = gl.minimum(num_row_tiles - group * GROUP, GROUP)
    return group * GROUP + inside % height, inside // height


@gluon.jit
def copy_tiles(maps, buffers, grid, GROUP: gl.constexpr):
    """Role of one warp: fill the buffers, tile after tile and step after step, as they become empty."""
    x_map, weight_map = maps
    x_tiles, weight_tiles, full, empty = buffers
    num_row_tiles, num_column_tiles, num_steps = grid
    STAGES: gl.constexpr = x_tiles.shape[0]
    ROWS: gl.constexpr = x_tiles.shape[1]
    COLUMNS: gl.constexpr = weight_tiles.shape[1]
    INNER: gl.constexpr = x_tiles.shape[2]
    # Rows of a box that reaches beyond the matrix come slowly, so the box may be lower than the tile; what is below it reaches no row that counts.
    BOX: gl.constexpr = x_map.block_shape[0]
    step = 0
    for tile in range(gl.program_id(0), num_row_tiles * num_column_tiles, gl.num_programs(0)):
        row_tile, column_tile = tile_place(tile, grid, GROUP)
        for number in range(num_steps):
            stage = step % STAGES
            place = full.index(stage)
            mbarrier.wait(empty.index(stage), ((step // STAGES) & 1) ^ 1)
            # What is outside the matrices is copied as 0 and counts as bytes too.
            mbarrier.expect(place, (BOX + COLUMNS) * INNER * 2)
            tile_to_shared(x_map, [row_tile * ROWS, number * INNER], place, x_tiles.index(stage).slice(0, BOX))
            tile_to_shared(weight_map, [column_tile * COLUMNS, number * INNER], place, weight_tiles.index(stage))
            step += 1


@gluon.jit
def multiply_tile(buffers, step, num_steps, PART: gl.constexpr):
    """Product of one tile for one warpgroup, which takes PART_ROWS rows from PART · PART_ROWS; `step` counts the steps before it."""
    x_tiles, weight_tiles, full, empty = buffers
    STAGES: gl.constexpr = x_tiles.shape[0]
    COLUMNS: gl.constexpr = weight_tiles.shape[1]
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])
    product = gl.zeros([PART_ROWS, COLUMNS], gl.float32, LAYOUT)
    for number in range(num_steps):
        stage = (step + number) % STAGES
        mbarrier.wait(full.index(stage), ((step + number) // STAGES) & 1)
        x_part = x_tiles.index(stage).slice(PART * PART_ROWS, PART_ROWS)
        product = hopper.warpgroup_mma(x_part, weight_tiles.index(stage).permute((1, 0)), product, is_async=True)
        # With at most one step under way the one before it is done.
        product = hopper.warpgroup_mma_wait(1, deps=[product])
        block_barrier()
        mbarrier.arrive(empty.index((step + number + STAGES - 1) % STAGES), count=1, pred=number > 0)
    product = hopper.warpgroup_mma_wait(0, deps=[product])
    block_barrier()
    mbarrier.arrive(empty.index((step + num_steps - 1) % STAGES), count=1)
    return product


@gluon.jit
def _store_part(out_map, out_tiles, values, row, column, PART: gl.constexpr):
    tma.store_wait(0)
    block_barrier()
    out_tiles.index(PART).store(values)
    hopper.fence_async_shared()
    block_barrier()
    tile_from_shared(out_map, [row, column], out_tiles.index(PART))


@gluon.jit
def store_tile(out_map, out_tiles, values, row, column, PART: gl.constexpr):
    """Write a warpgroup's [PART_ROWS, columns] through its tile of shared memory, which holds all columns or a half."""
    WIDTH: gl.constexpr = out_tiles.shape[2]
    if values.shape[1] == WIDTH:
        _store_part(out_map, out_tiles, values, row, column, PART)
    else:
        gl.static_assert(values.shape[1] == 2 * WIDTH)
        left, right = values.reshape([PART_ROWS, 2, WIDTH]).permute([0, 2, 1]).split()
        _store_part(out_map, out_tiles, left, row, column, PART)
        _store_part(out_map, out_tiles, right, row, column + WIDTH, PART)


@gluon.jit
def tile_grid(num_rows, num_columns, width, TILES: gl.constexpr):
    """(row tiles, column tiles, steps a tile)."""
    return gl.cdiv(num_rows, TILES.rows), gl.cdiv(num_columns, TILES.columns), gl.cdiv(width, TILES.inner)


@gluon.jit
def make_buffers(TILES: gl.constexpr):
    """Buffers and barriers, before the roles part."""
    ROWS: gl.constexpr = TILES.rows
    COLUMNS: gl.constexpr = TILES.columns
    INNER: gl.constexpr = TILES.inner
    STAGES: gl.constexpr = TILES.stages
    SHARED: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    x_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, ROWS, INNER], SHARED)
    weight_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, COLUMNS, INNER], SHARED)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        # Every warpgroup says when it is done with a step.
        mbarrier.init(empty.index(stage), count=ROWS // PART_ROWS)
    return x_tiles, weight_tiles, full, empty


@gluon.jit
def _write_tiles(out, out_tiles, sizes, buffers, grid, PART: gl.constexpr, GROUP: gl.constexpr, MAPPED: gl.constexpr):
    """Role of a warpgroup: multiply and write."""
    x_tiles, weight_tiles, _, _ = buffers
    num_row_tiles, num_column_tiles, num_steps = grid
    COLUMNS: gl.constexpr = weight_tiles.shape[1]
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])
    step = 0
    for tile in range(gl.program_id(0), num_row_tiles * num_column_tiles, gl.num_programs(0)):
        row_tile, column_tile = tile_place(tile, grid, GROUP)
        product = multiply_tile(buffers, step, num_steps, PART)
        step += num_steps
        first_row = row_tile * x_tiles.shape[1] + PART * PART_ROWS
        if MAPPED:
            store_tile(out, out_tiles, product.to(out.dtype), first_row, column_tile * COLUMNS, PART)
        else:
            num_rows, num_columns = sizes
            row = first_row + gl.arange(0, PART_ROWS, gl.SliceLayout(1, LAYOUT))
            column = column_tile * COLUMNS + gl.arange(0, COLUMNS, gl.SliceLayout(0, LAYOUT))
            place = gl.expand_dims(row.to(gl.int64) * num_columns, 1) + gl.expand_dims(column, 0)
            keep = gl.expand_dims(row < num_rows, 1) & gl.expand_dims(column < num_columns, 0)
            gl.store(out + place, product.to(out.dtype.element_ty), mask=keep)
    if MAPPED:
        tma.store_wait(0)


@gluon.jit(do_not_specialize=["num_rows", "width"])
def _product(
    x_map,
    weight_map,
    out,
    num_rows,
    num_columns,
    width,
    TILES: gl.constexpr,
    MAPPED: gl.constexpr,
):
    UPPER: gl.constexpr = 0
    LOWER: gl.constexpr = 1
    ROWS: gl.constexpr = TILES.rows
    GROUP: gl.constexpr = TILES.group
    buffers = make_buffers(TILES)
    out_tiles = buffers[0]
    if MAPPED:
        WIDTH: gl.constexpr = out.block_shape[1]
        out_tiles = gl.allocate_shared_memory(out.dtype, [ROWS // PART_ROWS, PART_ROWS, WIDTH], out.layout)
    sizes = (num_rows, num_columns)
    grid = tile_grid(num_rows, num_columns, width, TILES)
    maps = (x_map, weight_map)
    if ROWS == PART_ROWS:
        gl.warp_specialize(
            [
                (_write_tiles, (out, out_tiles, sizes, buffers, grid, UPPER, GROUP, MAPPED)),
                (copy_tiles, (maps, buffers, grid, GROUP)),
            ],
            [1],
            [24],
        )
    else:
        gl.warp_specialize(
            [
                (_write_tiles, (out, out_tiles, sizes, buffers, grid, UPPER, GROUP, MAPPED)),
                (_write_tiles, (out, out_tiles, sizes, buffers, grid, LOWER, GROUP, MAPPED)),
                (copy_tiles, (maps, buffers, grid, GROUP)),
            ],
            [4, 1],
            [240, 24],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Shape of the tiles; changes the speed alone."""

    rows: int = 128
    """Rows a tile, one or two warpgroups' 64."""
    columns: int = 256
    """Columns a tile."""
    inner: int = 64
    """Inner width of one step."""
    stages: int = 4
    """Steps in flight."""
    group: int = 16
    """Row tiles that share columns in L2."""


TILES = (
    Tiles(group=8),
    Tiles(columns=128, stages=6),
    Tiles(rows=64, stages=5),
    Tiles(rows=64, columns=128, stages=8),
    Tiles(rows=64, columns=64, inner=128, stages=6),
    Tiles(rows=64, columns=32, inner=128, stages=8),
    Tiles(rows=64, columns=16, inner=128, stages=8),
)
"""Tiles to choose from; of equals the first."""


def choose_tiles(num_rows: int, num_columns: int, programs: int) -> Tiles:
    """The tiles that should take least time on so many programs at once.

    A tile's time goes with what it copies, height + width + 25, or with its products, height · width / 43 (fitted to an H200).
    """

    def cost(tiles: Tiles) -> float:
        rounds = triton.cdiv(triton.cdiv(num_rows, tiles.rows) * triton.cdiv(num_columns, tiles.columns), programs)
        return rounds * max(tiles.rows + tiles.columns + 25, tiles.rows * tiles.columns / 43)

    return min(TILES, key=cost)


def box_rows(num_rows: int, tiles: Tiles) -> int:
    """Rows of x that are copied for a tile: all, or what a batch of few rows needs."""
    return min(tiles.rows, max(16, triton.next_power_of_2(num_rows)))


def row_map(rows: Tensor, height: int, width: int) -> TensorDescriptor:
    """Tensor map of bfloat16 rows, contiguous, in tiles [height, width]."""
    shared = gl.NVMMASharedLayout(swizzle_byte_width=min(128, 2 * width), element_bitwidth=16, rank=2)
    # The map needs 16-byte addresses; a view into an odd place of another tensor has none.
    aligned = rows if rows.data_ptr() % 16 == 0 else rows.clone()
    return TensorDescriptor.from_tensor(aligned, [height, width], shared)


def multiprocessors(device: torch.device) -> int:
    """How many programs of full size run at once."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def product(x_ND: Tensor, weight_OD: Tensor, out_type: torch.dtype, tiles: Tiles | None = None) -> Tensor:
    """x · weightᵀ of contiguous bfloat16 matrices that `fits_hopper` accepts, in `out_type`."""
    num_rows, width = x_ND.shape
    num_columns = weight_OD.shape[0]
    out_NO = torch.empty(num_rows, num_columns, dtype=out_type, device=x_ND.device)
    if not out_NO.numel():
        return out_NO
    programs = multiprocessors(x_ND.device)
    tiles = tiles or choose_tiles(num_rows, num_columns, programs)
    mapped = out_type == torch.bfloat16 and num_columns % 8 == 0
    num_tiles = triton.cdiv(num_rows, tiles.rows) * triton.cdiv(num_columns, tiles.columns)
    _product[(min(programs, num_tiles),)](
        row_map(x_ND, box_rows(num_rows, tiles), tiles.inner),
        row_map(weight_OD, tiles.columns, tiles.inner),
        row_map(out_NO, PART_ROWS.value, min(128, tiles.columns)) if mapped else out_NO,
        num_rows,
        num_columns,
        width,
        TILES=tiles,
        MAPPED=mapped,
        num_warps=4,
    )
    return out_NO
