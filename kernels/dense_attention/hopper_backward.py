"""Attention over all keys for Hopper, backward, at key and value widths of 64 or 128: lines of numbers, then the gradients of the keys and of the queries.

Axes: N query rows, H query heads, G key heads, S rows of the store, W row width; B, T, S of a window as in `window.py`; M (query, head) rows of
one sequence and key head, padded to whole tiles.
"""

import triton
from torch import Tensor

from samepath.kernels.dense_attention.hopper_key_gradients import KEYS, ROWS, backward_keys
from samepath.kernels.dense_attention.hopper_lines import row_lines
from samepath.kernels.dense_attention.hopper_query_gradients import backward_queries

QUERY_TILE = 64
"""Keys a tile of the query gradients: with 128 the registers would not last."""


def backward(
    inputs: tuple[Tensor, ...],
    saved: tuple[Tensor, Tensor],
    targets: tuple[Tensor, Tensor],
    scale: float,
    sizes: tuple[int, ...],
    pairs: bool,
) -> None:
    """Both kernels, as those of `triton_backward`: write the query gradients; store or add the key gradients.

    Args:
        inputs: q, store, grad_out, rows_BT, ends_BT, keys_BS. saved: out, lse. targets: of the queries, of the keys.
        sizes: shared, group_stride, row_width, value_start.
    """
    q_NHK, store_GSW, grad_out_NHV, rows_BT, ends_BT, keys_BS = inputs
    (num_sequences, num_queries), num_keys = rows_BT.shape, keys_BS.shape[1]
    num_groups, width = store_GSW.shape[0], q_NHK.shape[2]
    tile = 2 * ROWS.value
    num_padded = triton.cdiv(num_queries * sizes[0], tile) * tile
    places, lines = row_lines(saved, grad_out_NHV, rows_BT, ends_BT, num_groups, num_padded)
    walk = (scale, num_queries, num_padded, num_keys, *sizes)
    keys = triton.cdiv(num_keys, 2 * KEYS.value)
    backward_keys[(keys, num_groups, num_sequences)](
        q_NHK,
        store_GSW,
        grad_out_NHV,
        ends_BT,
        keys_BS,
        places,
        lines,
        targets[1],
        *walk,
        WIDTH=width,
        STAGES=3 if width == 128 else 4,
        PAIRS=pairs,
        num_warps=4,
    )
    backward_queries[(num_padded // tile, num_groups, num_sequences)](
        *inputs, places, lines, targets[0], *walk, TILE_KEYS=QUERY_TILE, WIDTH=width, STAGES=4, num_warps=4
    )
