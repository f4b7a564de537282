"""Tiles of the log-probability head for Hopper (Gluon): the products of `triton_product_hopper` with the sums, or the gradient, at their end.

Axes: N rows, D width, V vocabulary.
"""

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import tma

from samepath.kernels.triton_product_hopper import PART_ROWS, copy_tiles, make_buffers, multiply_tile, row_map, store_tile, tile_place

LOG2_E = gl.constexpr(1.4426950408889634)
OUTSIDE = gl.constexpr(-1e38)
"""Product of columns beyond the vocabulary: e is 0 there, and 0 · −inf would be NaN."""


@gluon.jit
def _kept_columns(bitmap, row, first_column, num_rows, num_words, COLUMNS: gl.constexpr, LAYOUT: gl.constexpr):
    """Which columns are in each row's support."""
    GROUPED: gl.constexpr = gl.zeros([PART_ROWS, COLUMNS], gl.int32, LAYOUT).reshape([PART_ROWS, COLUMNS // 32, 32]).type.layout
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
def _sum_tiles(
    temperature, targets, bitmap, sums, target_logits, x_tiles, weight_tiles, full, empty,
    num_rows, vocab_size, num_words, num_row_tiles, num_column_tiles, num_steps,
    PART: gl.constexpr, GROUP: gl.constexpr, RESTRICTED: gl.constexpr,
):
    """Role of a warpgroup: per row and tile the maximum, Σe, Σz·e, and maximum and Σe over the support."""
    ROWS: gl.constexpr = x_tiles.shape[1]
    COLUMNS: gl.constexpr = weight_tiles.shape[1]
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])
    step = 0
    for tile in range(gl.program_id(0), num_row_tiles * num_column_tiles, gl.num_programs(0)):
        row_tile, column_tile = tile_place(tile, num_row_tiles, num_column_tiles, GROUP)
        row = row_tile * ROWS + PART * PART_ROWS + gl.arange(0, PART_ROWS, gl.SliceLayout(1, LAYOUT))
        column = column_tile * COLUMNS + gl.arange(0, COLUMNS, gl.SliceLayout(0, LAYOUT))
        live = row < num_rows
        target = gl.load(targets + row, mask=live, other=-1).to(gl.int32)
        natural = 1.0 / gl.load(temperature + row, mask=live, other=1.0).to(gl.float32)
        products = multiply_tile(x_tiles, weight_tiles, full, empty, step, num_steps, PART)
        step += num_steps
        if (column_tile + 1) * COLUMNS > vocab_size:
            products = gl.where(gl.expand_dims(column < vocab_size, 0), products, OUTSIDE)
        if RESTRICTED:
            kept = _kept_columns(bitmap, row, column_tile * COLUMNS, num_rows, num_words, COLUMNS, LAYOUT)
        here = (target >= column_tile * COLUMNS) & (target < (column_tile + 1) * COLUMNS)
        # Few tiles hold a target of their rows.
        if gl.max(here.to(gl.int32), 0) > 0:
            hit = gl.expand_dims(column, 0) == gl.expand_dims(target, 1)
            if RESTRICTED:
                hit = hit & kept
                here = here & (gl.sum(hit.to(gl.int32), 1) > 0)
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
            products = gl.where(kept, products, OUTSIDE)
            best = gl.max(products, 1)
            some = best > OUTSIDE
            total, weighted = _sum_exps(products, scale, best * scale)
            gl.store(place + 3 * num_rows, gl.where(some, best * natural, float("-inf")), mask=live)
            gl.store(place + 4 * num_rows, gl.where(some, total, 0.0), mask=live)


@gluon.jit
def _tile_sums(
    x_map, weight_map, temperature, targets, bitmap, sums, target_logits, num_rows, vocab_size, width, num_words,
    ROWS: gl.constexpr, COLUMNS: gl.constexpr, INNER: gl.constexpr, STAGES: gl.constexpr, GROUP: gl.constexpr, RESTRICTED: gl.constexpr,
):
    PARTS: gl.constexpr = ROWS // PART_ROWS
    UPPER: gl.constexpr = 0
    LOWER: gl.constexpr = 1
    x_tiles, weight_tiles, full, empty = make_buffers(ROWS, COLUMNS, INNER, STAGES, PARTS)
    num_row_tiles = gl.cdiv(num_rows, ROWS)
    num_column_tiles = gl.cdiv(vocab_size, COLUMNS)
    num_steps = gl.cdiv(width, INNER)
    if PARTS == 1:
        gl.warp_specialize(
            [
                (_sum_tiles, (temperature, targets, bitmap, sums, target_logits, x_tiles, weight_tiles, full, empty, num_rows, vocab_size, num_words, num_row_tiles, num_column_tiles, num_steps, UPPER, GROUP, RESTRICTED)),
                (copy_tiles, (x_map, weight_map, x_tiles, weight_tiles, full, empty, num_row_tiles, num_column_tiles, width, GROUP)),
            ],
            [1],
            [24],
        )
    else:
        gl.warp_specialize(
            [
                (_sum_tiles, (temperature, targets, bitmap, sums, target_logits, x_tiles, weight_tiles, full, empty, num_rows, vocab_size, num_words, num_row_tiles, num_column_tiles, num_steps, UPPER, GROUP, RESTRICTED)),
                (_sum_tiles, (temperature, targets, bitmap, sums, target_logits, x_tiles, weight_tiles, full, empty, num_rows, vocab_size, num_words, num_row_tiles, num_column_tiles, num_steps, LOWER, GROUP, RESTRICTED)),
                (copy_tiles, (x_map, weight_map, x_tiles, weight_tiles, full, empty, num_row_tiles, num_column_tiles, width, GROUP)),
            ],
            [4, 1],
            [240, 24],
        )


@gluon.jit
def _gradient_tiles(
    temperature, targets, bitmap, normalisers, upstream, out_map, out_tiles, x_tiles, weight_tiles, full, empty,
    first_column, num_rows, num_words, num_row_tiles, num_column_tiles, num_steps,
    PART: gl.constexpr, GROUP: gl.constexpr, RESTRICTED: gl.constexpr,
):
    """Role of a warpgroup: (onehot − softmax) · upstream / temperature."""
    ROWS: gl.constexpr = x_tiles.shape[1]
    COLUMNS: gl.constexpr = weight_tiles.shape[1]
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])
    step = 0
    for tile in range(gl.program_id(0), num_row_tiles * num_column_tiles, gl.num_programs(0)):
        row_tile, column_tile = tile_place(tile, num_row_tiles, num_column_tiles, GROUP)
        first_row = row_tile * ROWS + PART * PART_ROWS
        row = first_row + gl.arange(0, PART_ROWS, gl.SliceLayout(1, LAYOUT))
        column = first_column + column_tile * COLUMNS + gl.arange(0, COLUMNS, gl.SliceLayout(0, LAYOUT))
        live = row < num_rows
        target = gl.load(targets + row, mask=live, other=-1).to(gl.int32)
        natural = 1.0 / gl.load(temperature + row, mask=live, other=1.0).to(gl.float32)
        factor = gl.load(upstream + row, mask=live, other=0.0) * natural
        base = gl.load(normalisers + row, mask=live, other=0.0) * LOG2_E
        products = multiply_tile(x_tiles, weight_tiles, full, empty, step, num_steps, PART)
        step += num_steps
        scale = gl.expand_dims(natural * LOG2_E, 1).broadcast_to(products.shape)
        values = gl.exp2(gl.fma(products, scale, gl.expand_dims(-base, 1).broadcast_to(products.shape))) * gl.expand_dims(-factor, 1)
        if RESTRICTED:
            kept = _kept_columns(bitmap, row, first_column + column_tile * COLUMNS, num_rows, num_words, COLUMNS, LAYOUT)
            values = gl.where(kept, values, 0.0)
        here = (target >= first_column + column_tile * COLUMNS) & (target < first_column + (column_tile + 1) * COLUMNS)
        if gl.max(here.to(gl.int32), 0) > 0:
            hit = gl.expand_dims(column, 0) == gl.expand_dims(target, 1)
            values = gl.where(hit, values + gl.expand_dims(factor, 1), values)
        store_tile(out_map, out_tiles, values.to(gl.bfloat16), first_row, column_tile * COLUMNS, PART)
    tma.store_wait(0)


@gluon.jit
def _logit_gradients(
    x_map, weight_map, out_map, temperature, targets, bitmap, normalisers, upstream, first_column, num_rows, num_columns, width, num_words,
    ROWS: gl.constexpr, COLUMNS: gl.constexpr, INNER: gl.constexpr, STAGES: gl.constexpr, GROUP: gl.constexpr, RESTRICTED: gl.constexpr,
):
    PARTS: gl.constexpr = ROWS // PART_ROWS
    UPPER: gl.constexpr = 0
    LOWER: gl.constexpr = 1
    x_tiles, weight_tiles, full, empty = make_buffers(ROWS, COLUMNS, INNER, STAGES, PARTS)
    out_tiles = gl.allocate_shared_memory(gl.bfloat16, [PARTS, PART_ROWS, out_map.block_shape[1]], out_map.layout)
    num_row_tiles = gl.cdiv(num_rows, ROWS)
    num_column_tiles = gl.cdiv(num_columns, COLUMNS)
    num_steps = gl.cdiv(width, INNER)
    gl.warp_specialize(
        [
            (_gradient_tiles, (temperature, targets, bitmap, normalisers, upstream, out_map, out_tiles, x_tiles, weight_tiles, full, empty, first_column, num_rows, num_words, num_row_tiles, num_column_tiles, num_steps, UPPER, GROUP, RESTRICTED)),
            (_gradient_tiles, (temperature, targets, bitmap, normalisers, upstream, out_map, out_tiles, x_tiles, weight_tiles, full, empty, first_column, num_rows, num_words, num_row_tiles, num_column_tiles, num_steps, LOWER, GROUP, RESTRICTED)),
            (copy_tiles, (x_map, weight_map, x_tiles, weight_tiles, full, empty, num_row_tiles, num_column_tiles, width, GROUP)),
        ],
        [4, 1],
        [240, 24],
    )


def tile_sums(rows, bitmap, sums, target_logits, tiles, programs):
    hidden_ND, weight_VD, targets_N, temperature_N = rows
    num_rows, width = hidden_ND.shape
    vocab_size = weight_VD.shape[0]
    count = triton.cdiv(num_rows, tiles.rows) * triton.cdiv(vocab_size, tiles.columns)
    _tile_sums[(min(programs, count),)](
        row_map(hidden_ND, tiles.rows, tiles.inner), row_map(weight_VD, tiles.columns, tiles.inner),
        temperature_N, targets_N, sums if bitmap is None else bitmap, sums, target_logits,
        num_rows, vocab_size, width, triton.cdiv(vocab_size, 32),
        ROWS=tiles.rows, COLUMNS=tiles.columns, INNER=tiles.inner, STAGES=tiles.stages, GROUP=tiles.group, RESTRICTED=bitmap is not None, num_warps=4,
    )


def logit_gradients(rows, normaliser_N, upstream_N, bitmap, columns, gradients, tiles, programs):
    hidden_ND, weight_VD, targets_N, temperature_N = rows
    start, stop = columns
    num_rows, width = hidden_ND.shape
    count = triton.cdiv(num_rows, tiles.rows) * triton.cdiv(stop - start, tiles.columns)
    _logit_gradients[(min(programs, count),)](
        row_map(hidden_ND, tiles.rows, tiles.inner), row_map(weight_VD[start:stop], tiles.columns, tiles.inner), row_map(gradients, 64, 128),
        temperature_N, targets_N, normaliser_N if bitmap is None else bitmap, normaliser_N, upstream_N,
        start, num_rows, stop - start, width, triton.cdiv(weight_VD.shape[0], 32),
        ROWS=tiles.rows, COLUMNS=tiles.columns, INNER=tiles.inner, STAGES=tiles.stages, GROUP=tiles.group, RESTRICTED=bitmap is not None, num_warps=4,
    )
    return gradients
