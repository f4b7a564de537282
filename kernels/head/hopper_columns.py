"""Columns of the vocabulary as the head's tiles for Hopper see them (Gluon): which are in a row's support, where its target stands.

Axes: N rows, V vocabulary.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from samepath.kernels.rows.hopper_product import PART_ROWS

LOG2_E = gl.constexpr(1.4426950408889634)
OUTSIDE = gl.constexpr(-1e38)
"""Product of columns beyond the vocabulary or the support: e is 0 there, and 0 · −inf would be NaN."""


@gluon.jit
def kept_columns(bitmap, row, first_column, num_rows, num_words, COLUMNS: gl.constexpr, LAYOUT: gl.constexpr):
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
def row_scale(temperature, row, num_rows):
    """1 / temperature of each row."""
    return 1.0 / gl.load(temperature + row, mask=row < num_rows, other=1.0).to(gl.float32)


@gluon.jit
def targets_here(targets, row, num_rows, first_column, COLUMNS: gl.constexpr):
    """(target of each row as a column of this tile, whether it is one)."""
    target = gl.load(targets + row, mask=row < num_rows, other=-1).to(gl.int32) - first_column
    return target, (target >= 0) & (target < COLUMNS)
