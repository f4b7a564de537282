"""Tiles of the log-probability head in plain Triton: (row block, vocabulary tile) by (row block, vocabulary tile), any type and width.

`hopper_logprob` has the same two functions for the products that it fits.

Axes: N rows, D width, V vocabulary.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.gpu.tiles import Tiles, operand_type
from samepath.kernels.gpu.tiles import default_tiles as product_tiles

LOG2_E = tl.constexpr(1.4426950408889634)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRows:
    """What both directions read, contiguous."""

    hidden_ND: Tensor
    """Hidden states."""
    weight_VD: Tensor
    """The head."""
    targets_N: Tensor
    """int64 target tokens."""
    temperature_N: Tensor
    """Temperatures above 0."""

    def part(self, start: int, stop: int) -> "HeadRows":
        """Rows start … stop − 1."""
        return HeadRows(
            hidden_ND=self.hidden_ND[start:stop],
            weight_VD=self.weight_VD,
            targets_N=self.targets_N[start:stop],
            temperature_N=self.temperature_N[start:stop],
        )


def default_tiles(dtype: torch.dtype) -> Tiles:
    """Tiles that fit the multiprocessor for this type, with the sums of the vocabulary beside them."""
    tiles = product_tiles(dtype)
    return replace(tiles, num_stages=min(tiles.num_stages, 3))


def columns_a_tile(dtype: torch.dtype) -> int:
    """Vocabulary columns of one tile of `tile_sums`."""
    return default_tiles(dtype).columns


@triton.jit
def _logit_tile(
    hidden,
    weight,
    temperature,
    row,
    column,
    num_rows,
    vocab_size,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """hidden · weightᵀ / temperature of a tile; −inf beyond the vocabulary."""
    accumulator = tl.zeros((ROWS, COLUMNS), tl.float32)
    live = (row < num_rows)[:, None]
    known = (column < vocab_size)[:, None]
    for first in range(0, width, INNER):
        step = first + tl.arange(0, INNER)
        inside = (step < width)[None, :]
        a = tl.load(hidden + row.to(tl.int64)[:, None] * width + step[None, :], mask=live & inside, other=0.0)
        b = tl.load(weight + column.to(tl.int64)[:, None] * width + step[None, :], mask=known & inside, other=0.0)
        accumulator = tl.dot(a.to(OPERAND), tl.trans(b.to(OPERAND)), accumulator, input_precision="ieee")
    scaled = accumulator / tl.load(temperature + row, mask=row < num_rows, other=1.0).to(tl.float32)[:, None]
    return tl.where((column < vocab_size)[None, :], scaled, float("-inf"))


@triton.jit
def _kept_columns(bitmap, row, column, num_rows, num_words):
    """Which columns are in each row's support: all if there are no words."""
    words = tl.load(
        bitmap + row.to(tl.int64)[:, None] * num_words + column[None, :] // 32,
        mask=(row < num_rows)[:, None] & (column // 32 < num_words)[None, :],
        other=-1,
    )
    return ((words >> (column % 32)[None, :]) & 1) > 0


@triton.jit(do_not_specialize=["num_words"])
def _tile_sums(
    hidden,
    weight,
    temperature,
    targets,
    bitmap,
    sums,
    target_logits,
    num_rows,
    vocab_size,
    width,
    num_words,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Per row and vocabulary tile: maximum, Σe, Σz·e, and maximum and Σe over the support.

    One program for rows with and without supports: two would not add up in the same order.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    logits = _logit_tile(
        hidden, weight, temperature, row, column, num_rows, vocab_size, width, ROWS, COLUMNS, INNER, OPERAND
    )
    live = row < num_rows
    target = tl.load(targets + row, mask=live, other=-1)
    kept = _kept_columns(bitmap, row, column, num_rows, num_words)
    hit = (column[None, :] == target[:, None]) & kept
    found = tl.sum(tl.where(hit, logits, 0.0), 1)
    tl.store(target_logits + row, found, mask=live & (tl.sum(hit.to(tl.int32), 1) > 0))
    top = tl.max(logits, 1)
    exps = tl.exp2((logits - top[:, None]) * LOG2_E)
    place = sums + tl.program_id(1).to(tl.int64) * 5 * num_rows + row
    tl.store(place, top, mask=live)
    tl.store(place + num_rows, tl.sum(exps, 1), mask=live)
    # 0 · −inf beyond the vocabulary would be NaN.
    products = tl.where((column < vocab_size)[None, :], logits, 0.0) * exps
    tl.store(place + 2 * num_rows, tl.sum(products, 1), mask=live)
    kept_top = tl.max(tl.where(kept, logits, float("-inf")), 1)
    base = tl.where(kept_top == float("-inf"), 0.0, kept_top)
    exps = tl.where(kept, tl.exp2((logits - base[:, None]) * LOG2_E), 0.0)
    tl.store(place + 3 * num_rows, kept_top, mask=live)
    tl.store(place + 4 * num_rows, tl.sum(exps, 1), mask=live)


@triton.jit
def _logit_gradients(
    hidden,
    weight,
    temperature,
    targets,
    bitmap,
    normalisers,
    upstream,
    gradients,
    first_column,
    num_rows,
    vocab_size,
    width,
    num_words,
    num_columns,
    RESTRICTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """(onehot − softmax) · upstream / temperature of some vocabulary columns."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    local = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    column = first_column + local
    logits = _logit_tile(
        hidden, weight, temperature, row, column, num_rows, vocab_size, width, ROWS, COLUMNS, INNER, OPERAND
    )
    live = row < num_rows
    kept_sum = tl.load(normalisers + row, mask=live, other=0.0)
    probs = tl.exp2((logits - kept_sum[:, None]) * LOG2_E)
    if RESTRICTED:
        probs = tl.where(_kept_columns(bitmap, row, local, num_rows, num_words), probs, 0.0)
    target = tl.load(targets + row, mask=live, other=-1)
    factor = tl.load(upstream + row, mask=live, other=0.0) / tl.load(temperature + row, mask=live, other=1.0).to(
        tl.float32
    )
    values = (tl.where(column[None, :] == target[:, None], 1.0, 0.0) - probs) * factor[:, None]
    place = row.to(tl.int64)[:, None] * num_columns + local[None, :]
    keep = live[:, None] & (local < num_columns)[None, :]
    tl.store(gradients + place, values.to(gradients.dtype.element_ty), mask=keep)


def tile_sums(rows: HeadRows, bitmap: Tensor | None, sums: Tensor, target_logits: Tensor) -> bool:
    """Fill `sums` [tiles, 5, N], and `target_logits` [N] where the target is in its support; return whether the support's sums are filled."""
    tiles = default_tiles(rows.hidden_ND.dtype)
    num_rows, width = rows.hidden_ND.shape
    vocab_size = rows.weight_VD.shape[0]
    _tile_sums[(triton.cdiv(num_rows, tiles.rows), triton.cdiv(vocab_size, tiles.columns))](
        rows.hidden_ND,
        rows.weight_VD,
        rows.temperature_N,
        rows.targets_N,
        torch.empty(1, dtype=torch.int32, device=sums.device) if bitmap is None else bitmap,
        sums,
        target_logits,
        num_rows,
        vocab_size,
        width,
        0 if bitmap is None else triton.cdiv(vocab_size, 32),
        ROWS=tiles.rows,
        COLUMNS=tiles.columns,
        OPERAND=operand_type(rows.hidden_ND.dtype),
        **tiles.arguments(),
    )
    return True


def logit_gradients(
    rows: HeadRows,
    normaliser_N: Tensor,
    upstream_N: Tensor,
    bitmap: Tensor | None,
    first_column: int,
    gradients: Tensor,
) -> None:
    """Fill `gradients` [N, columns] with those of the logits of the vocabulary columns from `first_column`; the bitmap is of these columns."""
    tiles = default_tiles(rows.hidden_ND.dtype)
    num_rows, width = rows.hidden_ND.shape
    num_columns = gradients.shape[1]
    _logit_gradients[(triton.cdiv(num_rows, tiles.rows), triton.cdiv(num_columns, tiles.columns))](
        rows.hidden_ND,
        rows.weight_VD,
        rows.temperature_N,
        rows.targets_N,
        normaliser_N if bitmap is None else bitmap,
        normaliser_N,
        upstream_N,
        gradients,
        first_column,
        num_rows,
        rows.weight_VD.shape[0],
        width,
        triton.cdiv(num_columns, 32),
        num_columns,
        RESTRICTED=bitmap is not None,
        ROWS=tiles.rows,
        COLUMNS=tiles.columns,
        OPERAND=operand_type(rows.hidden_ND.dtype),
        **tiles.arguments(),
    )
