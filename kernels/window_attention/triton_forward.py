"""Attention of a window with a key and a value for each head, under a bit mask (Triton), forward.

All keys before a query's end are multiplied; those that are not selected count nothing. Sums run in a fixed order, nothing is added by atomics.

Axes: B sequences, T query rows of each, S keys of each, H heads, K key width, V value width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.gpu.row_parts import LOG2_E
from samepath.kernels.window_attention.triton_bits import mask_bits
from samepath.kernels.window_attention.triton_grid import (
    Grid,
    WindowTiles,
    form,
    head_main,
    head_rest,
    key_sources,
    sizes,
    small_tiles,
    source,
)


@triton.jit
def _window_forward(
    q,
    q_rest,
    k,
    k_rest,
    v,
    ends,
    words,
    out,
    lse,
    scale,
    sizes,
    FORM: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    num_queries, num_keys, num_heads, v_row, v_head, num_words = sizes
    KEY: tl.constexpr = FORM.keys
    VALUE: tl.constexpr = FORM.values
    REST: tl.constexpr = KEY.rest
    VALUES: tl.constexpr = VALUE.main
    OPERAND: tl.constexpr = FORM.operand
    # The last queries see most keys: they start first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    place = tile * QUERIES + tl.arange(0, QUERIES)
    live = place < num_queries
    first_row = sequence * num_queries + tile * QUERIES
    zero = tl.full((), 0, tl.int64)
    row = (zero + sequence) * num_queries + place
    rows = (place, live, row, first_row)
    stride = num_heads * KEY.total
    q_main = head_main(q, head, rows, stride, KEY.total, KEY, FORM)
    if REST:
        q_last = head_rest(q_rest, head, rows, stride, KEY.total, KEY, FORM)
    end = tl.load(ends + row, mask=live, other=0)
    accumulator = tl.zeros((QUERIES, VALUES), tl.float32)
    # Finite, so that a row that has seen no key yet gives probability 0 and no NaN.
    top = tl.full((QUERIES,), -1e30, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    factor = scale * LOG2_E
    for first in range(0, tl.max(end, 0), KEYS):
        key = first + tl.arange(0, KEYS)
        inside = key < num_keys
        first_key = sequence * num_keys + first
        key_rows = (key, inside, (zero + sequence) * num_keys + key, first_key)
        k_main = head_main(k, head, key_rows, stride, KEY.total, KEY, FORM)
        scores = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")
        if REST:
            k_last = head_rest(k_rest, head, key_rows, stride, KEY.total, KEY, FORM)
            scores = tl.dot(q_last, tl.trans(k_last), scores, input_precision="ieee")
        keep = key[None, :] < end[:, None]
        if FORM.masked:
            keep = keep & mask_bits(words, row, num_words, live, first, KEYS)
        scores = tl.where(keep, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * factor)
        rescale = tl.exp2(top - new_top)
        probs = tl.exp2(scores * factor - new_top[:, None])
        total = total * rescale + tl.sum(probs, 1)
        top = new_top
        values = head_main(v, head, key_rows, v_row, v_head, VALUE, FORM)
        accumulator = tl.dot(probs.to(OPERAND), values, accumulator * rescale[:, None], input_precision="ieee")
    seen = total > 0
    divisor = tl.where(seen, total, 1.0)
    # In base 2 for the other kernels; +inf makes every probability of a row without keys 0.
    logs = tl.where(seen, top + tl.log2(divisor), float("inf"))
    tl.store(lse + (zero + sequence * num_heads + head) * num_queries + place, logs, mask=live)
    channel = tl.arange(0, VALUES)
    target = out + (row * num_heads + head)[:, None] * VALUE.total + channel[None, :]
    result = (accumulator / divisor[:, None]).to(out.dtype.element_ty)
    tl.store(target, result, mask=live[:, None] & (channel < VALUE.total)[None, :])


def window_forward(grid: Grid, tiles: WindowTiles | None = None) -> tuple[Tensor, Tensor]:
    """(out_BTHV, lse [B, H, T] float32 in base 2, +inf for a row without keys)."""
    num_sequences, num_queries, num_heads = grid.q_BTHK.shape[:3]
    shape = form(grid)
    tiles = tiles or small_tiles(grid) or WindowTiles(queries=64, num_warps=4)
    device = grid.q_BTHK.device
    out_BTHV = torch.empty(*grid.q_BTHK.shape[:3], shape.values.total, dtype=grid.q_BTHK.dtype, device=device)
    lse_BHT = torch.empty(num_sequences, num_heads, num_queries, dtype=torch.float32, device=device)
    _window_forward[(triton.cdiv(num_queries, tiles.queries), num_heads, num_sequences)](
        *key_sources(grid, tiles),
        source(grid.v_BSHV, tiles.keys, shape.values.main, shape.mapped),
        grid.ends_BT,
        grid.words_BTW,
        out_BTHV,
        lse_BHT,
        grid.scale,
        sizes(grid, grid.words_BTW),
        FORM=shape,
        QUERIES=tiles.queries,
        KEYS=tiles.keys,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return out_BTHV, lse_BHT
