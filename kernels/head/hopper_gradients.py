"""The gradients of the head's logits for Hopper (Gluon): `rows.hopper_product`'s products with (onehot − softmax) at their end.

Axes: N rows, D width, V vocabulary.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma

from samepath.kernels.head.hopper_columns import LOG2_E, kept_columns, row_scale, targets_here
from samepath.kernels.rows.hopper_product import (
    PART_ROWS,
    copy_tiles,
    make_buffers,
    multiply_tile,
    store_tile,
    tile_grid,
    tile_place,
)


@gluon.jit
def _gradient_tiles(
    rows,
    bitmap,
    out_map,
    out_tiles,
    sizes,
    buffers,
    grid,
    PART: gl.constexpr,
    GROUP: gl.constexpr,
    RESTRICTED: gl.constexpr,
):
    """Role of a warpgroup: (onehot − softmax) · upstream / temperature."""
    targets, temperature, normalisers, upstream = rows
    first_column, num_rows, num_words = sizes
    x_tiles, weight_tiles, _, _ = buffers
    num_row_tiles, num_column_tiles, num_steps = grid
    COLUMNS: gl.constexpr = weight_tiles.shape[1]
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])
    column = gl.arange(0, COLUMNS, gl.SliceLayout(0, LAYOUT))
    step = 0
    for tile in range(gl.program_id(0), num_row_tiles * num_column_tiles, gl.num_programs(0)):
        row_tile, column_tile = tile_place(tile, grid, GROUP)
        first_row = row_tile * x_tiles.shape[1] + PART * PART_ROWS
        row = first_row + gl.arange(0, PART_ROWS, gl.SliceLayout(1, LAYOUT))
        live = row < num_rows
        target, here = targets_here(targets, row, num_rows, first_column + column_tile * COLUMNS, COLUMNS)
        natural = row_scale(temperature, row, num_rows)
        factor = gl.load(upstream + row, mask=live, other=0.0) * natural
        base = gl.load(normalisers + row, mask=live, other=0.0) * LOG2_E
        products = multiply_tile(buffers, step, num_steps, PART)
        step += num_steps
        scale = gl.expand_dims(natural * LOG2_E, 1).broadcast_to(products.shape)
        shift = gl.expand_dims(-base, 1).broadcast_to(products.shape)
        values = gl.exp2(gl.fma(products, scale, shift)) * gl.expand_dims(-factor, 1)
        if RESTRICTED:
            kept = kept_columns(bitmap, row, column_tile * COLUMNS, num_rows, num_words, COLUMNS, LAYOUT)
            values = gl.where(kept, values, 0.0)
        if gl.max(here.to(gl.int32), 0) > 0:
            hit = gl.expand_dims(column, 0) == gl.expand_dims(target, 1)
            values = gl.where(hit, values + gl.expand_dims(factor, 1), values)
        store_tile(out_map, out_tiles, values.to(gl.bfloat16), first_row, column_tile * COLUMNS, PART)
    tma.store_wait(0)


@gluon.jit(
    do_not_specialize=["first_column", "num_rows", "num_columns", "width", "num_words"],
    do_not_specialize_on_alignment=["targets", "temperature", "bitmap", "normalisers", "upstream"],
)
def logit_gradients_kernel(
    hidden_map,
    weight_map,
    out_map,
    targets,
    temperature,
    bitmap,
    normalisers,
    upstream,
    first_column,
    num_rows,
    num_columns,
    width,
    num_words,
    TILES: gl.constexpr,
    RESTRICTED: gl.constexpr,
):
    UPPER: gl.constexpr = 0
    LOWER: gl.constexpr = 1
    ROWS: gl.constexpr = TILES.rows
    GROUP: gl.constexpr = TILES.group
    WIDTH: gl.constexpr = out_map.block_shape[1]
    buffers = make_buffers(TILES)
    out_tiles = gl.allocate_shared_memory(gl.bfloat16, [ROWS // PART_ROWS, PART_ROWS, WIDTH], out_map.layout)
    rows = (targets, temperature, normalisers, upstream)
    sizes = (first_column, num_rows, num_words)
    grid = tile_grid(num_rows, num_columns, width, TILES)
    maps = (hidden_map, weight_map)
    gl.warp_specialize(
        [
            (_gradient_tiles, (rows, bitmap, out_map, out_tiles, sizes, buffers, grid, UPPER, GROUP, RESTRICTED)),
            (_gradient_tiles, (rows, bitmap, out_map, out_tiles, sizes, buffers, grid, LOWER, GROUP, RESTRICTED)),
            (copy_tiles, (maps, buffers, grid, GROUP)),
        ],
        [4, 1],
        [240, 24],
    )
