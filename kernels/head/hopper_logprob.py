"""Tiles of the log-probability head for Hopper (Gluon): `rows.hopper_product`'s products with the sums, or the gradient, at their end.

Axes: N rows, D width, V vocabulary.
"""

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma

from samepath.kernels.head.triton_tiles import HeadRows
from samepath.kernels.rows.hopper_product import (
    PART_ROWS,
    Tiles,
    box_rows,
    copy_tiles,
    make_buffers,
    multiply_tile,
    multiprocessors,
    row_map,
    store_tile,
    tile_place,
)

LOG2_E = gl.constexpr(1.4426950408889634)
OUTSIDE = gl.constexpr(-1e38)
"""Product of columns beyond the vocabulary or the support: e is 0 there, and 0 · −inf would be NaN."""


@gluon.jit
def _kept_columns(bitmap, row, first_column, num_rows, num_words, COLUMNS: gl.constexpr, LAYOUT: gl.constexpr):
    """Which columns are in each row's support."""
    GROUPED: gl.constexpr = (
        gl.zeros([PART_ROWS, COLUMNS], gl.int32, LAYOUT).reshape([PART_ROWS, COLUMNS // 32, 32]).type.layout
    )
    row = gl.convert_layout(row, gl.SliceLayout(1, gl.SliceLayout(2, GROUPED)))
    word = first_column // 32 + gl.arange(0, COLUMNS // 32, gl.SliceLayout(0, gl.SliceLayout(2, GROUPED)))
    place = gl.expand_dims(row.to(gl.int64) * num_words, 1) + gl.expand_dims(word, 0)
    keep = gl.expand_dims(row < num_rows, 1) & gl.expand_dims(word < num_words, 0)
    words = gl.load(bitmap + place, mask=keep, other=0)
    bit = gl.arange(0, 32, gl.SliceLayout(0, gl.SliceLayout(1, GROUPED)))
    kept = (gl.expand_dims(words, 2) >> gl.expand_dims(gl.expand_dims(bit, 0), 1)) & 1
    return gl.convert_layout(kept.reshape([PART_ROWS, COLUMNS]), LAYOUT) > 0


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
def _row_scale(temperature, row, num_rows):
    """1 / temperature of each row."""
    return 1.0 / gl.load(temperature + row, mask=row < num_rows, other=1.0).to(gl.float32)


@gluon.jit
def _targets_here(targets, row, num_rows, first_column, COLUMNS: gl.constexpr):
    """(target of each row as a column of this tile, whether it is one)."""
    target = gl.load(targets + row, mask=row < num_rows, other=-1).to(gl.int32) - first_column
    return target, (target >= 0) & (target < COLUMNS)


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
        target, here = _targets_here(targets, row, num_rows, first_column, COLUMNS)
        natural = _row_scale(temperature, row, num_rows)
        products = multiply_tile(buffers, step, num_steps, PART)
        step += num_steps
        if first_column + COLUMNS > vocab_size:
            products = gl.where(gl.expand_dims(first_column + column < vocab_size, 0), products, OUTSIDE)
        if RESTRICTED:
            kept = _kept_columns(bitmap, row, first_column, num_rows, num_words, COLUMNS, LAYOUT)
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
def _tile_sums(
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
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
    INNER: gl.constexpr,
    STAGES: gl.constexpr,
    GROUP: gl.constexpr,
    RESTRICTED: gl.constexpr,
):
    UPPER: gl.constexpr = 0
    LOWER: gl.constexpr = 1
    buffers = make_buffers(ROWS, COLUMNS, INNER, STAGES)
    rows = (targets, temperature)
    results = (sums, target_logits)
    sizes = (num_rows, vocab_size, num_words)
    grid = (gl.cdiv(num_rows, ROWS), gl.cdiv(vocab_size, COLUMNS), gl.cdiv(width, INNER))
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
        target, here = _targets_here(targets, row, num_rows, first_column + column_tile * COLUMNS, COLUMNS)
        natural = _row_scale(temperature, row, num_rows)
        factor = gl.load(upstream + row, mask=live, other=0.0) * natural
        base = gl.load(normalisers + row, mask=live, other=0.0) * LOG2_E
        products = multiply_tile(buffers, step, num_steps, PART)
        step += num_steps
        scale = gl.expand_dims(natural * LOG2_E, 1).broadcast_to(products.shape)
        shift = gl.expand_dims(-base, 1).broadcast_to(products.shape)
        values = gl.exp2(gl.fma(products, scale, shift)) * gl.expand_dims(-factor, 1)
        if RESTRICTED:
            kept = _kept_columns(bitmap, row, column_tile * COLUMNS, num_rows, num_words, COLUMNS, LAYOUT)
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
def _logit_gradients(
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
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
    INNER: gl.constexpr,
    STAGES: gl.constexpr,
    GROUP: gl.constexpr,
    RESTRICTED: gl.constexpr,
):
    UPPER: gl.constexpr = 0
    LOWER: gl.constexpr = 1
    WIDTH: gl.constexpr = out_map.block_shape[1]
    buffers = make_buffers(ROWS, COLUMNS, INNER, STAGES)
    out_tiles = gl.allocate_shared_memory(gl.bfloat16, [ROWS // PART_ROWS, PART_ROWS, WIDTH], out_map.layout)
    rows = (targets, temperature, normalisers, upstream)
    sizes = (first_column, num_rows, num_words)
    grid = (gl.cdiv(num_rows, ROWS), gl.cdiv(num_columns, COLUMNS), gl.cdiv(width, INNER))
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


def columns_a_tile(dtype: torch.dtype) -> int:
    """Vocabulary columns of one tile of `tile_sums`."""
    return Tiles().columns


def tile_sums(
    rows: HeadRows, bitmap: Tensor | None, sums: Tensor, target_logits: Tensor, tiles: Tiles | None = None
) -> bool:
    """As `triton_tiles.tile_sums`. A row's sums have the same bits in tiles of 64 and of 128 rows."""
    num_rows, width = rows.hidden_ND.shape
    vocab_size = rows.weight_VD.shape[0]
    tiles = tiles or Tiles(rows=64 if num_rows <= 64 else 128, group=8)
    num_tiles = triton.cdiv(num_rows, tiles.rows) * triton.cdiv(vocab_size, tiles.columns)
    _tile_sums[(min(multiprocessors(sums.device), num_tiles),)](
        row_map(rows.hidden_ND, box_rows(num_rows, tiles), tiles.inner),
        row_map(rows.weight_VD, tiles.columns, tiles.inner),
        rows.targets_N,
        rows.temperature_N,
        sums if bitmap is None else bitmap,
        sums,
        target_logits,
        num_rows,
        vocab_size,
        width,
        triton.cdiv(vocab_size, 32),
        ROWS=tiles.rows,
        COLUMNS=tiles.columns,
        INNER=tiles.inner,
        STAGES=tiles.stages,
        GROUP=tiles.group,
        RESTRICTED=bitmap is not None,
        num_warps=4,
    )
    return bitmap is not None


def logit_gradients(
    rows: HeadRows,
    normaliser_N: Tensor,
    upstream_N: Tensor,
    bitmap: Tensor | None,
    first_column: int,
    gradients: Tensor,
    tiles: Tiles | None = None,
) -> None:
    """As `triton_tiles.logit_gradients`."""
    tiles = tiles or Tiles(group=8)
    num_rows, num_columns = gradients.shape
    weight = rows.weight_VD[first_column : first_column + num_columns]
    # The copy engine writes rows at multiples of 16 bytes; the last columns of an odd vocabulary go by way of wider rows.
    wide = gradients if num_columns % 8 == 0 else gradients.new_empty(num_rows, triton.cdiv(num_columns, 8) * 8)
    num_tiles = triton.cdiv(num_rows, tiles.rows) * triton.cdiv(num_columns, tiles.columns)
    _logit_gradients[(min(multiprocessors(gradients.device), num_tiles),)](
        row_map(rows.hidden_ND, box_rows(num_rows, tiles), tiles.inner),
        row_map(weight, tiles.columns, tiles.inner),
        row_map(wide, PART_ROWS.value, 128),
        rows.targets_N,
        rows.temperature_N,
        normaliser_N if bitmap is None else bitmap,
        normaliser_N,
        upstream_N,
        first_column,
        num_rows,
        num_columns,
        rows.hidden_ND.shape[1],
        triton.cdiv(num_columns, 32),
        ROWS=tiles.rows,
        COLUMNS=tiles.columns,
        INNER=tiles.inner,
        STAGES=tiles.stages,
        GROUP=tiles.group,
        RESTRICTED=bitmap is not None,
        num_warps=4,
    )
    if wide is not gradients:
        gradients.copy_(wide[:, :num_columns])
