"""Attention in expanded (multi-head) form over a window's grid, under a bit mask (Triton): forward, backward and head-summed mass.

Every head has a key and a value of its own, which costs (192 + 128) instead of (576 + 512) multiplications a pair at the published widths,
but all keys up to a query's end are multiplied, whether selected or not; those that are not count nothing.

Axes: B sequences, T query rows of each, S keys of each, H heads, K key width, V value width; N = B·T query rows.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.triton_attention_forward import LOG2_E, load_rows, split_width
from samepath.kernels.triton_loading import interpreting
from samepath.kernels.triton_product import operand_type


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowTiles:
    """Shape of the products; changes the speed, never a result's meaning."""

    queries: int = 128
    """Query rows a program, or a step of the key gradients."""
    keys: int = 64
    """Keys a step, or a program of the key gradients; a multiple of 32."""
    num_warps: int = 8
    """Warps a program."""
    num_stages: int = 3
    """Tiles in flight."""


@triton.jit
def _bits(words, row, stride, live, first, WIDTH: tl.constexpr):
    """bool [rows, WIDTH]: bits first … first + WIDTH − 1 of each row's packed words; `first` is a multiple of 32, WIDTH 32 or 64."""
    place = tl.arange(0, WIDTH)
    base = words + row * stride + first // 32
    low = tl.load(base, mask=live, other=0)
    if WIDTH == 32:
        return ((low[:, None] >> place[None, :]) & 1) != 0
    high = tl.load(base + 1, mask=live, other=0)
    word = tl.where(place[None, :] < 32, low[:, None], high[:, None])
    return ((word >> (place[None, :] & 31)) & 1) != 0


@triton.jit
def _window_forward(
    q,
    k,
    v,
    ends,
    words,
    out,
    lse,
    scale,
    num_queries,
    num_keys,
    num_heads,
    v_row,
    v_head,
    num_words,
    KEY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    VALUES: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
    OPERAND: tl.constexpr,
):
    # The last queries see most keys: they start first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    sequence = tl.full((), 0, tl.int64) + tl.program_id(2)
    place = tile * QUERIES + tl.arange(0, QUERIES)
    live = place < num_queries
    row = sequence * num_queries + place
    k_stride = num_heads * KEY_WIDTH
    q_base = q + head * KEY_WIDTH
    k_base = k + sequence * num_keys * k_stride + head * KEY_WIDTH
    v_base = v + sequence * num_keys * v_row + head * v_head
    q_main = load_rows(q_base, row, 0, KEY_WIDTH, k_stride, live, MAIN, MAIN <= KEY_WIDTH).to(OPERAND)
    if REST:
        q_rest = load_rows(q_base, row, MAIN, KEY_WIDTH, k_stride, live, REST, MAIN + REST == KEY_WIDTH).to(OPERAND)
    end = tl.load(ends + row, mask=live, other=0)
    accumulator = tl.zeros((QUERIES, VALUES), tl.float32)
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    factor = scale * LOG2_E
    for first in range(0, tl.max(end, 0), KEYS):
        key = first + tl.arange(0, KEYS)
        inside = key < num_keys
        k_main = load_rows(k_base, key, 0, KEY_WIDTH, k_stride, inside, MAIN, MAIN <= KEY_WIDTH).to(OPERAND)
        scores = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")
        if REST:
            k_rest = load_rows(k_base, key, MAIN, KEY_WIDTH, k_stride, inside, REST, MAIN + REST == KEY_WIDTH).to(
                OPERAND
            )
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="ieee")
        keep = key[None, :] < end[:, None]
        if MASKED:
            keep = keep & _bits(words, row, num_words, live, first, KEYS)
        scores = tl.where(keep, scores * factor, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        # A row may have seen no key yet.
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        rescale = tl.exp2(top - base)
        probs = tl.exp2(scores - base[:, None])
        total = total * rescale + tl.sum(probs, 1)
        top = new_top
        values = load_rows(v_base, key, 0, VALUE_WIDTH, v_row, inside, VALUES, VALUES <= VALUE_WIDTH).to(OPERAND)
        accumulator = tl.dot(probs.to(OPERAND), values, accumulator * rescale[:, None], input_precision="ieee")
    seen = total > 0
    divisor = tl.where(seen, total, 1.0)
    # Base 2, for the other kernels; +inf makes every probability of an empty row 0.
    logs = tl.where(seen, top + tl.log2(divisor), float("inf"))
    tl.store(lse + (sequence * num_heads + head) * num_queries + place, logs, mask=live)
    channel = tl.arange(0, VALUES)
    target = out + (row * num_heads + head)[:, None] * VALUE_WIDTH + channel[None, :]
    result = (accumulator / divisor[:, None]).to(out.dtype.element_ty)
    tl.store(target, result, mask=live[:, None] & (channel < VALUE_WIDTH)[None, :])


@triton.jit
def _window_backward_keys(
    q,
    k,
    v,
    ends,
    words,
    grad_out,
    lse,
    delta,
    grad_k,
    grad_v,
    scale,
    num_queries,
    num_keys,
    num_heads,
    v_row,
    v_head,
    num_words,
    KEY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    VALUES: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Key and value gradients of KEYS keys of one head; `words` are packed along the queries here."""
    head = tl.program_id(1)
    sequence = tl.full((), 0, tl.int64) + tl.program_id(2)
    key = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    inside = key < num_keys
    key_row = sequence * num_keys + key
    k_stride = num_heads * KEY_WIDTH
    o_stride = num_heads * VALUE_WIDTH
    k_base = k + head * KEY_WIDTH
    q_base = q + head * KEY_WIDTH
    o_base = grad_out + head * VALUE_WIDTH
    k_main = load_rows(k_base, key_row, 0, KEY_WIDTH, k_stride, inside, MAIN, MAIN <= KEY_WIDTH).to(OPERAND)
    grad_main = tl.zeros((KEYS, MAIN), tl.float32)
    if REST:
        k_rest = load_rows(k_base, key_row, MAIN, KEY_WIDTH, k_stride, inside, REST, MAIN + REST == KEY_WIDTH).to(
            OPERAND
        )
        grad_rest = tl.zeros((KEYS, REST), tl.float32)
    values = load_rows(v + head * v_head, key_row, 0, VALUE_WIDTH, v_row, inside, VALUES, VALUES <= VALUE_WIDTH).to(
        OPERAND
    )
    grad_values = tl.zeros((KEYS, VALUES), tl.float32)
    factor = scale * LOG2_E
    # Query t of a sequence sees the keys before its first query's end + t.
    before = tl.load(ends + sequence * num_queries) - 1
    start = tl.maximum(tl.program_id(0) * KEYS - before, 0) // QUERIES * QUERIES
    for first in range(start, num_queries, QUERIES):
        place = first + tl.arange(0, QUERIES)
        live = place < num_queries
        row = sequence * num_queries + place
        end = tl.load(ends + row, mask=live, other=0)
        q_main = load_rows(q_base, row, 0, KEY_WIDTH, k_stride, live, MAIN, MAIN <= KEY_WIDTH).to(OPERAND)
        scores = tl.dot(k_main, tl.trans(q_main), input_precision="ieee")
        if REST:
            q_rest = load_rows(q_base, row, MAIN, KEY_WIDTH, k_stride, live, REST, MAIN + REST == KEY_WIDTH).to(OPERAND)
            scores = tl.dot(k_rest, tl.trans(q_rest), scores, input_precision="ieee")
        logs = tl.load(lse + (sequence * num_heads + head) * num_queries + place, mask=live, other=float("inf"))
        keep = key[:, None] < end[None, :]
        if MASKED:
            keep = keep & _bits(words, key_row, num_words, inside, first, QUERIES)
        probs = tl.where(keep, tl.exp2(scores * factor - logs[None, :]), 0.0)
        upstream = load_rows(o_base, row, 0, VALUE_WIDTH, o_stride, live, VALUES, VALUES <= VALUE_WIDTH).to(OPERAND)
        grad_values = tl.dot(probs.to(OPERAND), upstream, grad_values, input_precision="ieee")
        grad_probs = tl.dot(values, tl.trans(upstream), input_precision="ieee")
        deltas = tl.load(delta + (sequence * num_heads + head) * num_queries + place, mask=live, other=0.0)
        grad_scores = (probs * (grad_probs - deltas[None, :])).to(OPERAND)
        grad_main = tl.dot(grad_scores, q_main, grad_main, input_precision="ieee")
        if REST:
            grad_rest = tl.dot(grad_scores, q_rest, grad_rest, input_precision="ieee")
    channel = tl.arange(0, MAIN)
    target = grad_k + key_row[:, None] * k_stride + head * KEY_WIDTH
    keep_main = inside[:, None] & (channel < KEY_WIDTH)[None, :]
    tl.store(target + channel[None, :], (grad_main * scale).to(grad_k.dtype.element_ty), mask=keep_main)
    if REST:
        channel = MAIN + tl.arange(0, REST)
        keep_rest = inside[:, None] & (channel < KEY_WIDTH)[None, :]
        tl.store(target + channel[None, :], (grad_rest * scale).to(grad_k.dtype.element_ty), mask=keep_rest)
    channel = tl.arange(0, VALUES)
    target = grad_v + key_row[:, None] * o_stride + head * VALUE_WIDTH + channel[None, :]
    tl.store(target, grad_values.to(grad_v.dtype.element_ty), mask=inside[:, None] & (channel < VALUE_WIDTH)[None, :])


@triton.jit
def _window_backward_queries(
    q,
    k,
    v,
    ends,
    words,
    grad_out,
    lse,
    delta,
    grad_q,
    scale,
    num_queries,
    num_keys,
    num_heads,
    v_row,
    v_head,
    num_words,
    KEY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    VALUES: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
    OPERAND: tl.constexpr,
):
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    sequence = tl.full((), 0, tl.int64) + tl.program_id(2)
    place = tile * QUERIES + tl.arange(0, QUERIES)
    live = place < num_queries
    row = sequence * num_queries + place
    k_stride = num_heads * KEY_WIDTH
    q_base = q + head * KEY_WIDTH
    k_base = k + sequence * num_keys * k_stride + head * KEY_WIDTH
    v_base = v + sequence * num_keys * v_row + head * v_head
    q_main = load_rows(q_base, row, 0, KEY_WIDTH, k_stride, live, MAIN, MAIN <= KEY_WIDTH).to(OPERAND)
    grad_main = tl.zeros((QUERIES, MAIN), tl.float32)
    if REST:
        q_rest = load_rows(q_base, row, MAIN, KEY_WIDTH, k_stride, live, REST, MAIN + REST == KEY_WIDTH).to(OPERAND)
        grad_rest = tl.zeros((QUERIES, REST), tl.float32)
    upstream = load_rows(
        grad_out + head * VALUE_WIDTH, row, 0, VALUE_WIDTH, num_heads * VALUE_WIDTH, live, VALUES, VALUES <= VALUE_WIDTH
    ).to(OPERAND)
    end = tl.load(ends + row, mask=live, other=0)
    logs = tl.load(lse + (sequence * num_heads + head) * num_queries + place, mask=live, other=float("inf"))
    deltas = tl.load(delta + (sequence * num_heads + head) * num_queries + place, mask=live, other=0.0)
    factor = scale * LOG2_E
    for first in range(0, tl.max(end, 0), KEYS):
        key = first + tl.arange(0, KEYS)
        inside = key < num_keys
        k_main = load_rows(k_base, key, 0, KEY_WIDTH, k_stride, inside, MAIN, MAIN <= KEY_WIDTH).to(OPERAND)
        scores = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")
        if REST:
            k_rest = load_rows(k_base, key, MAIN, KEY_WIDTH, k_stride, inside, REST, MAIN + REST == KEY_WIDTH).to(
                OPERAND
            )
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="ieee")
        keep = key[None, :] < end[:, None]
        if MASKED:
            keep = keep & _bits(words, row, num_words, live, first, KEYS)
        probs = tl.where(keep, tl.exp2(scores * factor - logs[:, None]), 0.0)
        values = load_rows(v_base, key, 0, VALUE_WIDTH, v_row, inside, VALUES, VALUES <= VALUE_WIDTH).to(OPERAND)
        grad_probs = tl.dot(upstream, tl.trans(values), input_precision="ieee")
        grad_scores = (probs * (grad_probs - deltas[:, None])).to(OPERAND)
        grad_main = tl.dot(grad_scores, k_main, grad_main, input_precision="ieee")
        if REST:
            grad_rest = tl.dot(grad_scores, k_rest, grad_rest, input_precision="ieee")
    channel = tl.arange(0, MAIN)
    target = grad_q + row[:, None] * k_stride + head * KEY_WIDTH
    keep_main = live[:, None] & (channel < KEY_WIDTH)[None, :]
    tl.store(target + channel[None, :], (grad_main * scale).to(grad_q.dtype.element_ty), mask=keep_main)
    if REST:
        channel = MAIN + tl.arange(0, REST)
        keep_rest = live[:, None] & (channel < KEY_WIDTH)[None, :]
        tl.store(target + channel[None, :], (grad_rest * scale).to(grad_q.dtype.element_ty), mask=keep_rest)


@triton.jit
def _window_mass(
    q,
    k,
    ends,
    words,
    lse,
    mass,
    scale,
    num_queries,
    num_keys,
    num_heads,
    num_words,
    KEY_WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Sum over heads of the probabilities of one tile of pairs, head by head."""
    sequence = tl.full((), 0, tl.int64) + tl.program_id(2)
    place = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    live = place < num_queries
    row = sequence * num_queries + place
    end = tl.load(ends + row, mask=live, other=0)
    key = tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    inside = key < num_keys
    key_row = sequence * num_keys + key
    stride = num_heads * KEY_WIDTH
    total = tl.zeros((QUERIES, KEYS), tl.float32)
    factor = scale * LOG2_E
    heads = tl.where(tl.max(end, 0) > tl.program_id(1) * KEYS, num_heads, 0)
    for head in range(heads):
        q_main = load_rows(q + head * KEY_WIDTH, row, 0, KEY_WIDTH, stride, live, MAIN, MAIN <= KEY_WIDTH).to(OPERAND)
        k_main = load_rows(k + head * KEY_WIDTH, key_row, 0, KEY_WIDTH, stride, inside, MAIN, MAIN <= KEY_WIDTH).to(
            OPERAND
        )
        scores = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")
        if REST:
            q_rest = load_rows(
                q + head * KEY_WIDTH, row, MAIN, KEY_WIDTH, stride, live, REST, MAIN + REST == KEY_WIDTH
            ).to(OPERAND)
            k_rest = load_rows(
                k + head * KEY_WIDTH, key_row, MAIN, KEY_WIDTH, stride, inside, REST, MAIN + REST == KEY_WIDTH
            ).to(OPERAND)
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="ieee")
        logs = tl.load(lse + (sequence * num_heads + head) * num_queries + place, mask=live, other=float("inf"))
        total += tl.exp2(scores * factor - logs[:, None])
    keep = key[None, :] < end[:, None]
    if MASKED:
        keep = keep & _bits(words, row, num_words, live, tl.program_id(1) * KEYS, KEYS)
    target = mass + row[:, None] * num_keys + key[None, :]
    tl.store(target, tl.where(keep, total, 0.0), mask=live[:, None] & inside[None, :])


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """One window's operands."""

    q_BTHK: Tensor
    """Queries, contiguous."""
    k_BSHK: Tensor
    """Keys, contiguous."""
    v_BSHV: Tensor
    """Values; the last axis is dense."""
    ends_BT: Tensor
    """int32, keys each query may see: its sequence's first query's + t; 0 for padding, at the end."""
    seen_BTS: Tensor | None
    """bool, True where a key counts at all; None if all do up to the end."""
    scale: float
    """Softmax scale."""

    def sizes(self) -> tuple[int, int, int, int, int, int, int]:
        """(B, T, S, H, K, V, words of a row)."""
        num_sequences, num_queries, num_heads, key_width = self.q_BTHK.shape
        num_keys, value_width = self.k_BSHK.shape[1], self.v_BSHV.shape[3]
        return num_sequences, num_queries, num_keys, num_heads, key_width, value_width, -(-num_keys // 64) * 2


def pack_bits(seen_BTS: Tensor) -> Tensor:
    """int32 [B, T, W]: 32 keys a word, an even number of words."""
    missing = -seen_BTS.shape[2] % 64
    bits = torch.nn.functional.pad(seen_BTS, (0, missing)).unflatten(2, (-1, 32)).to(torch.int32)
    return (bits << torch.arange(32, dtype=torch.int32, device=bits.device)).sum(3, dtype=torch.int32)


def _widths(key_width: int, value_width: int, dtype: torch.dtype) -> dict[str, object]:
    main, rest = split_width(key_width)
    values = max(16, triton.next_power_of_2(value_width))
    return {
        "KEY_WIDTH": key_width,
        "VALUE_WIDTH": value_width,
        "MAIN": main,
        "REST": rest,
        "VALUES": values,
        "OPERAND": operand_type(dtype),
    }


def window_forward(grid: Grid, words: Tensor | None, tiles: WindowTiles | None = None) -> tuple[Tensor, Tensor]:
    """(out_BTHV, lse [B, H, T] in base 2)."""
    num_sequences, num_queries, num_keys, num_heads, key_width, value_width, num_words = grid.sizes()
    tiles = tiles or default_tiles(grid, "forward")
    out = torch.empty(
        num_sequences, num_queries, num_heads, value_width, dtype=grid.q_BTHK.dtype, device=grid.q_BTHK.device
    )
    lse = torch.empty(num_sequences, num_heads, num_queries, dtype=torch.float32, device=out.device)
    _window_forward[(triton.cdiv(num_queries, tiles.queries), num_heads, num_sequences)](
        grid.q_BTHK,
        grid.k_BSHK,
        grid.v_BSHV,
        grid.ends_BT,
        words,
        out,
        lse,
        grid.scale,
        num_queries,
        num_keys,
        num_heads,
        grid.v_BSHV.stride(1),
        grid.v_BSHV.stride(2),
        num_words,
        **_widths(key_width, value_width, out.dtype),
        QUERIES=tiles.queries,
        KEYS=tiles.keys,
        MASKED=words is not None,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return out, lse


def window_backward(
    grid: Grid,
    words: Tensor | None,
    words_T: Tensor | None,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    key_tiles: WindowTiles | None = None,
    query_tiles: WindowTiles | None = None,
    parts="qk",
):
    num_sequences, num_queries, num_keys, num_heads, key_width, value_width, num_words = grid.sizes()
    key_tiles = key_tiles or default_tiles(grid, "keys")
    query_tiles = query_tiles or default_tiles(grid, "queries")
    delta = (out.float() * grad_out.float()).sum(-1).transpose(1, 2).contiguous()
    grad_q, grad_k = torch.empty_like(grid.q_BTHK), torch.empty_like(grid.k_BSHK)
    grad_v = torch.empty(num_sequences, num_keys, num_heads, value_width, dtype=out.dtype, device=out.device)
    widths = _widths(key_width, value_width, out.dtype)
    rest = (grid.scale, num_queries, num_keys, num_heads, grid.v_BSHV.stride(1), grid.v_BSHV.stride(2))
    if "k" in parts:
        _window_backward_keys[(triton.cdiv(num_keys, key_tiles.keys), num_heads, num_sequences)](
            grid.q_BTHK,
            grid.k_BSHK,
            grid.v_BSHV,
            grid.ends_BT,
            words_T,
            grad_out,
            lse,
            delta,
            grad_k,
            grad_v,
            *rest,
            -(-num_queries // 64) * 2,
            **widths,
            QUERIES=key_tiles.queries,
            KEYS=key_tiles.keys,
            MASKED=words is not None,
            num_warps=key_tiles.num_warps,
            num_stages=key_tiles.num_stages,
        )
    if "q" in parts:
        _window_backward_queries[(triton.cdiv(num_queries, query_tiles.queries), num_heads, num_sequences)](
            grid.q_BTHK,
            grid.k_BSHK,
            grid.v_BSHV,
            grid.ends_BT,
            words,
            grad_out,
            lse,
            delta,
            grad_q,
            *rest,
            num_words,
            **widths,
            QUERIES=query_tiles.queries,
            KEYS=query_tiles.keys,
            MASKED=words is not None,
            num_warps=query_tiles.num_warps,
            num_stages=query_tiles.num_stages,
        )
    return grad_q, grad_k, grad_v


def window_mass(grid: Grid, words: Tensor | None, lse: Tensor, tiles: WindowTiles | None = None) -> Tensor:
    num_sequences, num_queries, num_keys, num_heads, key_width, value_width, num_words = grid.sizes()
    tiles = tiles or default_tiles(grid, "mass")
    mass = torch.empty(num_sequences, num_queries, num_keys, dtype=torch.float32, device=lse.device)
    widths = _widths(key_width, value_width, grid.q_BTHK.dtype)
    for name in ("VALUE_WIDTH", "VALUES"):
        widths.pop(name)
    _window_mass[(triton.cdiv(num_queries, tiles.queries), triton.cdiv(num_keys, tiles.keys), num_sequences)](
        grid.q_BTHK,
        grid.k_BSHK,
        grid.ends_BT,
        words,
        lse,
        mass,
        grid.scale,
        num_queries,
        num_keys,
        num_heads,
        num_words,
        **widths,
        QUERIES=tiles.queries,
        KEYS=tiles.keys,
        MASKED=words is not None,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return mass


def default_tiles(grid: Grid, kernel: str) -> WindowTiles:
    if interpreting():
        return WindowTiles(queries=32, keys=32, num_warps=4, num_stages=1)
    return {
        "forward": WindowTiles(),
        "keys": WindowTiles(queries=64, keys=128, num_stages=2),
        "queries": WindowTiles(num_stages=2),
        "mass": WindowTiles(keys=128, num_stages=2),
    }[kernel]
