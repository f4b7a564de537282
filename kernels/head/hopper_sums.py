"""The head's sums for Hopper (Gluon): `rows.hopper_product`'s products with maximum, Σe and Σz·e of each row and tile at their end.

Bound by the products; the exponentials of one tile run under the copies of the next, a quarter of the columns at a time so that the registers last.

Axes: N rows, D width, V vocabulary.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from samepath.kernels.head.hopper_columns import LOG2_E, OUTSIDE, kept_columns, row_scale, targets_here
from samepath.kernels.rows.hopper_product import (
    PART_ROWS,
    copy_tiles,
    make_buffers,
    multiply_tile,
    tile_grid,
    tile_place,
)


@gluon.jit
def _sum_part(part, scale, top):
    ROWS: gl.constexpr = gl.SliceLayout(1, part.type.layout)
    factor = gl.expand_dims(gl.convert_layout(scale, ROWS), 1).broadcast_to(part.shape)
    base = gl.expand_dims(gl.convert_layout(-top, ROWS), 1).broadcast_to(part.shape)
    exps = gl.exp2(gl.fma(part, factor, base))
    total = gl.convert_layout(gl.sum(exps, 1), top.type.layout)
    return total, gl.convert_layout(gl.sum(part * exps, 1), top.type.layout)


@gluon.jit
def _sum_exps(products, scale, top):
    """(Σe, Σ product·e) of each row with e = 2^(product · scale − top), the columns in quarters so that the registers last."""
    QUARTER: gl.constexpr = products.shape[1] // 4
    halves = products.reshape([PART_ROWS, 2, QUARTER * 2]).permute([0, 2, 1]).split()
    total = gl.zeros_like(top)
    weighted = gl.zeros_like(top)
    for half in gl.static_range(2):
        quarters = halves[half].reshape([PART_ROWS, 2, QUARTER]).permute([0, 2, 1]).split()
        for quarter in gl.static_range(2):
            more, heavier = _sum_part(quarters[quarter], scale, top)
            total += more
            weighted += heavier
    return total, weighted


@gluon.jit
def _sum_tiles(
    rows, bitmap, results, sizes, buffers, grid, PART: gl.constexpr, GROUP: gl.constexpr, RESTRICTED: gl.constexpr
):
    """Role of a warpgroup: per row and tile the maximum, Σe, Σz·e, and maximum and Σe over the support."""
    targets, temperature = rows
    sums, target_logits = results
    num_rows, vocab_size, num_words = sizes
    x_tiles, weight_tiles, _, _ = buffers
    num_row_tiles, num_column_tiles, num_steps = grid
    COLUMNS: gl.constexpr = weight_tiles.shape[1]
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])
    column = gl.arange(0, COLUMNS, gl.SliceLayout(0, LAYOUT))
    step = 0
    for tile in range(gl.program_id(0), num_row_tiles * num_column_tiles, gl.num_programs(0)):
        row_tile, column_tile = tile_place(tile, grid, GROUP)
        row = row_tile * x_tiles.shape[1] + PART * PART_ROWS + gl.arange(0, PART_ROWS, gl.SliceLayout(1, LAYOUT))
        first_column = column_tile * COLUMNS
        live = row < num_rows
        target, here = targets_here(targets, row, num_rows, first_column, COLUMNS)
        natural = row_scale(temperature, row, num_rows)
        products = multiply_tile(buffers, step, num_steps, PART)
        step += num_steps
        if first_column + COLUMNS > vocab_size:
            products = gl.where(gl.expand_dims(first_column + column < vocab_size, 0), products, OUTSIDE)
        if RESTRICTED:
            kept = kept_columns(bitmap, row, first_column, num_rows, num_words, COLUMNS, LAYOUT)
        # Few tiles hold a target of their rows.
        if gl.max(here.to(gl.int32), 0) > 0:
            hit = gl.expand_dims(column, 0) == gl.expand_dims(target, 1)
            if RESTRICTED:
                hit = hit & kept
                here = gl.sum(hit.to(gl.int32), 1) > 0
            found = gl.sum(gl.where(hit, products, 0.0), 1)
            gl.store(target_logits + row, found * natural, mask=live & here)
        scale = natural * LOG2_E
        best = gl.max(products, 1)
        total, weighted = _sum_exps(products, scale, best * scale)
        place = sums + column_tile.to(gl.int64) * 5 * num_rows + row
        gl.store(place, best * natural, mask=live)
        gl.store(place + num_rows, total, mask=live)
        gl.store(place + 2 * num_rows, weighted * natural, mask=live)
        if RESTRICTED:
            # Where all are kept the same numbers follow by the same operations, so such a row has the bits of one without a support.
            products = gl.where(kept, products, OUTSIDE)
            best = gl.max(products, 1)
            some = best > OUTSIDE
            total, weighted = _sum_exps(products, scale, best * scale)
            gl.store(place + 3 * num_rows, gl.where(some, best * natural, float("-inf")), mask=live)
            gl.store(place + 4 * num_rows, gl.where(some, total, 0.0), mask=live)


@gluon.jit(
    do_not_specialize=["num_rows", "vocab_size", "width", "num_words"],
    do_not_specialize_on_alignment=["targets", "temperature", "bitmap", "sums", "target_logits"],
)
def tile_sums_kernel(
    hidden_map,
    weight_map,
    targets,
    temperature,
    bitmap,
    sums,
    target_logits,
    num_rows,
    vocab_size,
    width,
    num_words,
    TILES: gl.constexpr,
    RESTRICTED: gl.constexpr,
):
    UPPER: gl.constexpr = 0
    LOWER: gl.constexpr = 1
    ROWS: gl.constexpr = TILES.rows
    GROUP: gl.constexpr = TILES.group
    buffers = make_buffers(TILES)
    rows = (targets, temperature)
    results = (sums, target_logits)
    sizes = (num_rows, vocab_size, num_words)
    grid = tile_grid(num_rows, vocab_size, width, TILES)
    maps = (hidden_map, weight_map)
    if ROWS == PART_ROWS:
        gl.warp_specialize(
            [
                (_sum_tiles, (rows, bitmap, results, sizes, buffers, grid, UPPER, GROUP, RESTRICTED)),
                (copy_tiles, (maps, buffers, grid, GROUP)),
            ],
            [1],
            [24],
        )
    else:
        gl.warp_specialize(
            [
                (_sum_tiles, (rows, bitmap, results, sizes, buffers, grid, UPPER, GROUP, RESTRICTED)),
                (_sum_tiles, (rows, bitmap, results, sizes, buffers, grid, LOWER, GROUP, RESTRICTED)),
                (copy_tiles, (maps, buffers, grid, GROUP)),
            ],
            [4, 1],
            [240, 24],
        )
