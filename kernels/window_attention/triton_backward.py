"""Backward of attention with a key and a value for each head under a bit mask (Triton): key gradients by tiles of keys, then query gradients.

Both kernels recompute the probabilities from the forward's LSE; each sum is one program's, in a fixed order.

Axes: B sequences, T query rows of each, S keys of each, H heads, K key width, V value width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.gpu.row_parts import LOG2_E, add_product, no_parts
from samepath.kernels.sparse_attention.triton_deltas import row_deltas
from samepath.kernels.window_attention.triton_bits import mask_bits
from samepath.kernels.window_attention.triton_grid import (
    Grid,
    WindowTiles,
    form,
    head_main,
    head_parts,
    head_rest,
    key_sources,
    score_head,
    sizes,
    small_tiles,
    source,
    store_head,
    store_part,
    window_rows,
)


@triton.jit
def _window_backward_keys(
    q,
    q_rest,
    k,
    k_rest,
    v,
    upstream,
    ends,
    words,
    lse,
    delta,
    grad_k,
    grad_v,
    scale,
    sizes,
    FORM: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Keys stay, queries pass; `words` are packed along the queries."""
    num_queries, num_keys, num_heads, v_row, v_head, num_words = sizes
    OPERAND: tl.constexpr = FORM.operand
    KEY: tl.constexpr = FORM.keys
    VALUE: tl.constexpr = FORM.values
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    zero = tl.full((), 0, tl.int64)
    first_key = tl.program_id(0) * KEYS
    rows = window_rows(sequence, first_key, num_keys, KEYS)
    key, inside, key_row, _first_row = rows
    v_stride = num_heads * VALUE.total
    k_main, k_last = head_parts((k, k_rest), head, rows, num_heads, FORM)
    grad_main, grad_last = no_parts(KEYS, KEY)
    values = head_main(v, head, rows, v_row, v_head, VALUE, FORM)
    grad_values, _ = no_parts(KEYS, VALUE)
    factor = scale * LOG2_E
    numbers = (zero + sequence * num_heads + head) * num_queries
    # Query t of a sequence sees the keys before its first query's end + t.
    before = tl.load(ends + (zero + sequence) * num_queries) - 1
    for first in range(tl.maximum(first_key - before, 0) // QUERIES * QUERIES, num_queries, QUERIES):
        query_rows = window_rows(sequence, first, num_queries, QUERIES)
        place, live, row, _first_row = query_rows
        end = tl.load(ends + row, mask=live, other=0)
        scores, q_main, q_last = score_head(k_main, k_last, (q, q_rest), head, query_rows, num_heads, FORM)
        logs = tl.load(lse + numbers + place, mask=live, other=float("inf"))
        keep = key[:, None] < end[None, :]
        if FORM.masked:
            keep = keep & mask_bits(words, key_row, num_words, inside, first, QUERIES)
        probs = tl.where(keep, tl.exp2(scores * factor - logs[None, :]), 0.0)
        grad_out = head_main(upstream, head, query_rows, v_stride, VALUE.total, VALUE, FORM)
        grad_values = tl.dot(probs.to(OPERAND), grad_out, grad_values, input_precision="ieee")
        grad_probs = tl.dot(values, tl.trans(grad_out), input_precision="ieee")
        deltas = tl.load(delta + numbers + place, mask=live, other=0.0)
        grad_scores = (probs * (grad_probs - deltas[None, :])).to(OPERAND)
        grad_main, grad_last = add_product(grad_scores, q_main, q_last, grad_main, grad_last, KEY)
    store_head(grad_k, head, rows, num_heads, grad_main, grad_last, scale, KEY)
    store_head(grad_v, head, rows, num_heads, grad_values, grad_values, 1.0, VALUE)


@triton.jit
def _window_backward_queries(
    q,
    q_rest,
    k,
    k_rest,
    v,
    upstream,
    ends,
    words,
    lse,
    delta,
    grad_q,
    scale,
    sizes,
    FORM: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Queries stay, keys pass."""
    num_queries, num_keys, num_heads, v_row, v_head, num_words = sizes
    KEY: tl.constexpr = FORM.keys
    VALUE: tl.constexpr = FORM.values
    MAIN: tl.constexpr = KEY.main
    REST: tl.constexpr = KEY.rest
    OPERAND: tl.constexpr = FORM.operand
    # The last queries see most keys: they start first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    zero = tl.full((), 0, tl.int64)
    place = tile * QUERIES + tl.arange(0, QUERIES)
    live = place < num_queries
    row = (zero + sequence) * num_queries + place
    first_row = sequence * num_queries + tile * QUERIES
    rows = (place, live, row, first_row)
    stride = num_heads * KEY.total
    v_stride = num_heads * VALUE.total
    q_main = head_main(q, head, rows, stride, KEY.total, KEY, FORM)
    grad_main = tl.zeros((QUERIES, MAIN), tl.float32)
    if REST:
        q_last = head_rest(q_rest, head, rows, stride, KEY.total, KEY, FORM)
        grad_last = tl.zeros((QUERIES, REST), tl.float32)
    grad_out = head_main(upstream, head, rows, v_stride, VALUE.total, VALUE, FORM)
    end = tl.load(ends + row, mask=live, other=0)
    numbers = (zero + sequence * num_heads + head) * num_queries
    logs = tl.load(lse + numbers + place, mask=live, other=float("inf"))
    deltas = tl.load(delta + numbers + place, mask=live, other=0.0)
    factor = scale * LOG2_E
    for first in range(0, tl.max(end, 0), KEYS):
        key = first + tl.arange(0, KEYS)
        inside = key < num_keys
        key_row = (zero + sequence) * num_keys + key
        first_key = sequence * num_keys + first
        key_rows = (key, inside, key_row, first_key)
        k_main = head_main(k, head, key_rows, stride, KEY.total, KEY, FORM)
        scores = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")
        if REST:
            k_last = head_rest(k_rest, head, key_rows, stride, KEY.total, KEY, FORM)
            scores = tl.dot(q_last, tl.trans(k_last), scores, input_precision="ieee")
        keep = key[None, :] < end[:, None]
        if FORM.masked:
            keep = keep & mask_bits(words, row, num_words, live, first, KEYS)
        probs = tl.where(keep, tl.exp2(scores * factor - logs[:, None]), 0.0)
        values = head_main(v, head, key_rows, v_row, v_head, VALUE, FORM)
        grad_probs = tl.dot(grad_out, tl.trans(values), input_precision="ieee")
        grad_scores = (probs * (grad_probs - deltas[:, None])).to(OPERAND)
        grad_main = tl.dot(grad_scores, k_main, grad_main, input_precision="ieee")
        if REST:
            grad_last = tl.dot(grad_scores, k_last, grad_last, input_precision="ieee")
    store_part(grad_q, head, rows, num_heads, grad_main * scale, 0, KEY, MAIN)
    if REST:
        store_part(grad_q, head, rows, num_heads, grad_last * scale, MAIN, KEY, REST)


def window_backward(
    grid: Grid,
    out_BTHV: Tensor,
    lse_BHT: Tensor,
    upstream_BTHV: Tensor,
    by_keys: WindowTiles | None = None,
    by_queries: WindowTiles | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, contiguous, in their types."""
    num_sequences, num_queries, num_heads = grid.q_BTHK.shape[:3]
    num_keys = grid.k_BSHK.shape[1]
    by_keys = by_keys or small_tiles(grid) or WindowTiles(queries=32, num_warps=4)
    by_queries = by_queries or small_tiles(grid) or WindowTiles(queries=64, keys=32, num_warps=4, num_stages=3)
    upstream_BTHV = upstream_BTHV.contiguous()
    delta_NH = row_deltas(out_BTHV.flatten(0, 1), upstream_BTHV.flatten(0, 1))
    delta_BHT = delta_NH.view(num_sequences, num_queries, num_heads).transpose(1, 2).contiguous()
    grad_q, grad_k = torch.empty_like(grid.q_BTHK), torch.empty_like(grid.k_BSHK)
    grad_v = torch.empty(grid.v_BSHV.shape, dtype=grid.v_BSHV.dtype, device=grad_k.device)

    shape = form(grid)

    def sources(tiles: WindowTiles) -> tuple[Any, ...]:
        width = shape.values.main
        values = source(grid.v_BSHV, tiles.keys, width, shape.mapped)
        return (
            *key_sources(grid, tiles),
            values,
            source(upstream_BTHV, tiles.queries, width, shape.mapped),
            grid.ends_BT,
        )

    def launch(kernel: Any, steps: int, words: Tensor | None, targets: tuple[Tensor, ...], tiles: WindowTiles) -> None:
        kernel[(steps, num_heads, num_sequences)](
            *sources(tiles),
            words,
            lse_BHT,
            delta_BHT,
            *targets,
            grid.scale,
            sizes(grid, words),
            FORM=shape,
            QUERIES=tiles.queries,
            KEYS=tiles.keys,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )

    key_steps, query_steps = triton.cdiv(num_keys, by_keys.keys), triton.cdiv(num_queries, by_queries.queries)
    launch(_window_backward_keys, key_steps, grid.words_BSW, (grad_k, grad_v), by_keys)
    launch(_window_backward_queries, query_steps, grid.words_BTW, (grad_q,), by_queries)
    return grad_q, grad_k, grad_v
