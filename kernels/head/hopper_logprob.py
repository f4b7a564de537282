"""Tiles of the log-probability head for Hopper: the two functions of `triton_tiles`, launched with the kernels of `hopper_sums` and `hopper_gradients`.

Axes: N rows, D width, V vocabulary.
"""

import torch
import triton
from torch import Tensor

from samepath.kernels.head.hopper_gradients import logit_gradients_kernel
from samepath.kernels.head.hopper_sums import tile_sums_kernel
from samepath.kernels.head.triton_tiles import HeadRows
from samepath.kernels.rows.hopper_product import PART_ROWS, Tiles, box_rows, multiprocessors, row_map


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
    tile_sums_kernel[(min(multiprocessors(sums.device), num_tiles),)](
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
        TILES=tiles,
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
    logit_gradients_kernel[(min(multiprocessors(gradients.device), num_tiles),)](
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
        TILES=tiles,
        RESTRICTED=bitmap is not None,
        num_warps=4,
    )
    if wide is not gradients:
        gradients.copy_(wide[:, :num_columns])
