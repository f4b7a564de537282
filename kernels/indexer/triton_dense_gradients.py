"""Gradients of the indexer's loss over all keys (Triton): one kernel of query rows (queries and head weights), one of keys; no atomics.

Both recompute the index products from the attention mass and two numbers a row, which costs less than to keep [T, S, I].

Axes: N query rows, S key rows of the store or of a window, I indexer heads, J index head width; B, T of a window as in `window.py`; C products of
one step, (query row, head) pairs.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.dense_attention.triton_gradients import add_rows, seeing_queries
from samepath.kernels.gpu.loading import interpreting
from samepath.kernels.gpu.tiles import operand_type


@triton.jit
def _pair_gradients(
    k_KJ, q_CJ, weight_C, mass_TS, lse_T, sum_T, upstream_T, seen, ROWS: tl.constexpr, HEADS: tl.constexpr
):
    """(ReLU(q·k) [KEYS, C], gradients of the logits [KEYS, ROWS], of the products [KEYS, C]) of a tile of keys and some rows."""
    scores = tl.dot(k_KJ, tl.trans(q_CJ), input_precision="ieee")
    positive = tl.maximum(scores, 0.0)
    KEYS: tl.constexpr = scores.shape[0]
    logits = tl.sum(tl.reshape(positive * weight_C[None, :], (KEYS, ROWS, HEADS)), 2)
    grads = (tl.exp(logits - lse_T[None, :]) - mass_TS / sum_T[None, :]) * upstream_T[None, :]
    grads = tl.where(seen, grads, 0.0)
    spread = tl.reshape(tl.broadcast_to(grads[:, :, None], (KEYS, ROWS, HEADS)), (KEYS, ROWS * HEADS))
    return positive, spread, tl.where(scores > 0, spread * weight_C[None, :], 0.0)


@triton.jit
def _row_numbers(sums, lses, upstream, row, end):
    """(Σ mass, logsumexp of the logits, upstream gradient) of some rows."""
    sum_T = tl.load(sums + row, mask=end > 0, other=1.0)
    lse_T = tl.load(lses + row, mask=end > 0, other=0.0)
    return sum_T, lse_T, tl.load(upstream + row, mask=end > 0, other=0.0)


@triton.jit
def row_gradients(
    q,
    k,
    weights,
    tables,
    mass,
    numbers,
    grad_q,
    grad_weights,
    sizes,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Gradients of the queries and head weights of ROWS query rows."""
    rows_BT, ends_BT, keys_BS = tables
    sums, lses, upstream = numbers
    num_queries, num_keys, num_heads, width = sizes
    zero = tl.full((), 0, tl.int64)
    sequence = zero + tl.program_id(1)
    first_query = tl.program_id(0) * ROWS
    query = first_query + tl.arange(0, ROWS)
    end = tl.load(ends_BT + sequence * num_queries + query, mask=query < num_queries, other=0).to(tl.int32)
    row = tl.load(rows_BT + sequence * num_queries + query, mask=query < num_queries, other=0).to(tl.int64)
    sum_T, lse_T, upstream_T = _row_numbers(sums, lses, upstream, row, end)
    head = tl.arange(0, ROWS * HEADS) % HEADS
    pair_query = first_query + tl.arange(0, ROWS * HEADS) // HEADS
    at = rows_BT + sequence * num_queries + pair_query
    pair_row = tl.load(at, mask=pair_query < num_queries, other=0).to(tl.int64)
    pair_end = tl.load(ends_BT + sequence * num_queries + pair_query, mask=pair_query < num_queries, other=0)
    live_pair = (pair_end > 0) & (head < num_heads)
    channel = tl.arange(0, WIDTH)
    places = pair_row * num_heads + head
    keep = live_pair[:, None] & (channel < width)[None, :]
    q_CJ = tl.load(q + places[:, None] * width + channel[None, :], mask=keep, other=0.0).to(OPERAND)
    weight_C = tl.load(weights + places, mask=live_pair, other=0.0).to(tl.float32)
    grad_CJ = tl.zeros((ROWS * HEADS, WIDTH), tl.float32)
    grad_weight = tl.zeros((ROWS * HEADS,), tl.float32)
    high = tl.max(end, 0)
    table = keys_BS + sequence * num_keys
    slots = tl.arange(0, KEYS)
    key_rows = tl.load(table + slots, mask=slots < high, other=0)
    mass_of = mass + (sequence * num_queries + query)[None, :] * num_keys
    for first in range(0, high, KEYS):
        inside = (first + slots < high)[:, None] & (channel < width)[None, :]
        k_KJ = tl.load(k + key_rows[:, None] * width + channel[None, :], mask=inside, other=0.0).to(OPERAND)
        seen = (first + slots)[:, None] < end[None, :]
        mass_KT = tl.load(mass_of + (first + slots)[:, None], mask=seen, other=0.0)
        key_rows = tl.load(table + first + KEYS + slots, mask=first + KEYS + slots < high, other=0)
        positive, spread, grads = _pair_gradients(
            k_KJ, q_CJ, weight_C, mass_KT, lse_T, sum_T, upstream_T, seen, ROWS, HEADS
        )
        grad_weight += tl.sum(positive * spread, 0)
        grad_CJ = tl.dot(tl.trans(grads.to(OPERAND)), k_KJ, grad_CJ, input_precision="ieee")
    tl.store(grad_weights + places, grad_weight, mask=live_pair)
    target = grad_q + places[:, None] * width + channel[None, :]
    tl.store(target, grad_CJ.to(grad_q.dtype.element_ty), mask=keep)


@triton.jit
def key_gradients(
    q,
    k,
    weights,
    tables,
    mass,
    numbers,
    target,
    sizes,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PAIRS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Gradients of one tile of keys: with PAIRS stored by sequence and place, else added to the rows' own."""
    rows_BT, ends_BT, keys_BS = tables
    sums, lses, upstream = numbers
    num_queries, num_keys, num_heads, width = sizes
    zero = tl.full((), 0, tl.int64)
    sequence = zero + tl.program_id(1)
    first_key = tl.program_id(0) * KEYS
    slots = first_key + tl.arange(0, KEYS)
    rows, ends = rows_BT + sequence * num_queries, ends_BT + sequence * num_queries
    low, high, longest = seeing_queries(ends, num_queries, first_key)
    live = slots < longest
    key_rows = tl.load(keys_BS + sequence * num_keys + slots, mask=live, other=0)
    channel = tl.arange(0, WIDTH)
    inside = live[:, None] & (channel < width)[None, :]
    k_KJ = tl.load(k + key_rows[:, None] * width + channel[None, :], mask=inside, other=0.0).to(OPERAND)
    grad_KJ = tl.zeros((KEYS, WIDTH), tl.float32)
    head = tl.arange(0, ROWS * HEADS) % HEADS
    for first in range(low, high, ROWS):
        query = first + tl.arange(0, ROWS)
        end = tl.load(ends + query, mask=query < num_queries, other=0).to(tl.int32)
        row = tl.load(rows + query, mask=query < num_queries, other=0).to(tl.int64)
        sum_T, lse_T, upstream_T = _row_numbers(sums, lses, upstream, row, end)
        pair_query = first + tl.arange(0, ROWS * HEADS) // HEADS
        pair_row = tl.load(rows + pair_query, mask=pair_query < num_queries, other=0).to(tl.int64)
        live_pair = (pair_query < num_queries) & (head < num_heads)
        places = pair_row * num_heads + head
        keep = live_pair[:, None] & (channel < width)[None, :]
        q_CJ = tl.load(q + places[:, None] * width + channel[None, :], mask=keep, other=0.0).to(OPERAND)
        weight_C = tl.load(weights + places, mask=live_pair, other=0.0).to(tl.float32)
        seen = slots[:, None] < end[None, :]
        mass_of = mass + (sequence * num_queries + query)[None, :] * num_keys
        mass_KT = tl.load(mass_of + slots[:, None], mask=seen, other=0.0)
        _, _, grads = _pair_gradients(k_KJ, q_CJ, weight_C, mass_KT, lse_T, sum_T, upstream_T, seen, ROWS, HEADS)
        grad_KJ = tl.dot(grads.to(OPERAND), q_CJ, grad_KJ, input_precision="ieee")
    place = sequence * num_keys + slots if PAIRS else key_rows
    add_rows(target, place, live, grad_KJ, 0, width, WIDTH, width, not PAIRS)


def tile_shape(q_NIJ: Tensor, keys: int, num_warps: int) -> dict[str, Any]:
    """Compile-time arguments of a gradient kernel that works on `keys` keys at once."""
    heads = triton.next_power_of_2(q_NIJ.shape[1])
    small = interpreting() or q_NIJ.dtype == torch.float32
    return {
        "HEADS": heads,
        "WIDTH": max(16, triton.next_power_of_2(q_NIJ.shape[2])),
        "ROWS": max(1, (16 if small else 64) // heads),
        "KEYS": 16 if interpreting() else 32 if small else keys,
        "OPERAND": operand_type(q_NIJ.dtype),
        "num_warps": 4 if small else num_warps,
        "num_stages": 1 if small else 2,
    }
