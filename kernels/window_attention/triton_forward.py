"""Attention of a window with a key and a value for each head, under a bit mask (Triton): forward and head-summed mass.

All keys before a query's end are multiplied; those that are not selected count nothing. On a GPU tiles come by tensor maps where widths allow
it, which leaves the registers to the sums. Sums run in a fixed order, nothing is added by atomics.

Axes: B sequences, T query rows of each, S keys of each, H heads, K key width, V value width, C selected keys, W words of 32 bits.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from samepath.kernels.gpu.loading import interpreting
from samepath.kernels.gpu.tiles import on_hopper, operand_type
from samepath.kernels.sparse_attention.triton_forward import LOG2_E, load_rows, split_width

PACKED = 64
"""Queries, and keys, that one program packs; rows of words are padded to as many bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowTiles:
    """Shape of the products; changes the speed, never a result's meaning."""

    queries: int = 128
    """Query rows of a tile."""
    keys: int = 64
    """Keys of a tile. Where the mask is read along them, that is but in the key gradients, 32 or 64; there the queries are."""
    num_warps: int = 8
    """Warps a program."""
    num_stages: int = 2
    """Tiles in flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """One window's operands."""

    q_BTHK: Tensor
    """Contiguous."""
    k_BSHK: Tensor
    """Contiguous."""
    v_BSHV: Tensor
    """Last axis dense, sequences one after the other."""
    ends_BT: Tensor
    """int32, keys that each query may see: its sequence's first query's + t; 0 for padding, at the end."""
    words_BTW: Tensor | None
    """int32, bit s of a row tells whether key s counts; None if all do up to the end."""
    words_BSW: Tensor | None
    """The same along the queries."""
    scale: float
    """Softmax scale."""


@triton.jit
def _pack_bits(seen, by_query, by_key, num_queries, num_keys, seen_row, SIZE: tl.constexpr):
    sequence = tl.full((), 0, tl.int64) + tl.program_id(2)
    query = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    key = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    place = (sequence * num_queries + query)[:, None] * seen_row + key[None, :]
    keep = (query < num_queries)[:, None] & (key < num_keys)[None, :]
    tile = tl.load(seen + place, mask=keep, other=0).to(tl.int32)
    WORDS: tl.constexpr = SIZE // 32
    bit = tl.arange(0, 32)[None, None, :]
    word = tl.arange(0, WORDS)
    along_keys = tl.sum(tl.reshape(tile, (SIZE, WORDS, 32)) << bit, 2)
    row = (sequence * num_queries + query)[:, None] * (tl.num_programs(1) * WORDS)
    tl.store(by_query + row + tl.program_id(1) * WORDS + word[None, :], along_keys, mask=(query < num_queries)[:, None])
    along_queries = tl.sum(tl.reshape(tl.trans(tile), (SIZE, WORDS, 32)) << bit, 2)
    row = (sequence * num_keys + key)[:, None] * (tl.num_programs(0) * WORDS)
    tl.store(by_key + row + tl.program_id(0) * WORDS + word[None, :], along_queries, mask=(key < num_keys)[:, None])


@triton.jit
def mask_bits(words, row, stride, live, first, WIDTH: tl.constexpr):
    """bool [rows, WIDTH]: bits first … first + WIDTH − 1 of each row's words; `first` is a multiple of 32, WIDTH 32 or 64."""
    place = tl.arange(0, WIDTH)
    base = words + row * stride + first // 32
    low = tl.load(base, mask=live, other=0)
    if WIDTH == 32:
        return ((low[:, None] >> place[None, :]) & 1) != 0
    high = tl.load(base + 1, mask=live, other=0)
    word = tl.where(place[None, :] < 32, low[:, None], high[:, None])
    return ((word >> (place[None, :] & 31)) & 1) != 0


@triton.jit
def head_tile(
    source,
    head,
    first_row,
    rows,
    live,
    row_stride,
    head_stride,
    first,
    stop,
    WIDTH: tl.constexpr,
    FULL: tl.constexpr,
    MAPPED: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Channels first … first + WIDTH − 1 of one head's rows, from `first_row` on through a tensor map, or `rows` by pointers."""
    if MAPPED:
        tile = source.load([first_row, head * head_stride + first])
    else:
        tile = load_rows(source + head * head_stride, rows, first, stop, row_stride, live, WIDTH, FULL).to(OPERAND)
    return tile


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
    MAPPED: tl.constexpr,
    OPERAND: tl.constexpr,
):
    # The last queries see most keys: they start first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    place = tile * QUERIES + tl.arange(0, QUERIES)
    live = place < num_queries
    first_row = sequence * num_queries + tile * QUERIES
    zero = tl.full((), 0, tl.int64)
    row = (zero + sequence) * num_queries + place
    stride = num_heads * KEY_WIDTH
    FULL: tl.constexpr = MAIN <= KEY_WIDTH
    FULL_REST: tl.constexpr = MAIN + REST == KEY_WIDTH
    q_main = head_tile(q, head, first_row, row, live, stride, KEY_WIDTH, 0, KEY_WIDTH, MAIN, FULL, MAPPED, OPERAND)
    if REST:
        q_last = head_tile(
            q_rest, head, first_row, row, live, stride, KEY_WIDTH, MAIN, KEY_WIDTH, REST, FULL_REST, MAPPED, OPERAND
        )
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
        key_row = (zero + sequence) * num_keys + key
        k_main = head_tile(
            k, head, first_key, key_row, inside, stride, KEY_WIDTH, 0, KEY_WIDTH, MAIN, FULL, MAPPED, OPERAND
        )
        scores = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")
        if REST:
            k_last = head_tile(
                k_rest, head, first_key, key_row, inside, stride, KEY_WIDTH, MAIN, KEY_WIDTH, REST, FULL_REST, MAPPED, OPERAND
            )  # fmt: skip
            scores = tl.dot(q_last, tl.trans(k_last), scores, input_precision="ieee")
        keep = key[None, :] < end[:, None]
        if MASKED:
            keep = keep & mask_bits(words, row, num_words, live, first, KEYS)
        scores = tl.where(keep, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * factor)
        rescale = tl.exp2(top - new_top)
        probs = tl.exp2(scores * factor - new_top[:, None])
        total = total * rescale + tl.sum(probs, 1)
        top = new_top
        values = head_tile(
            v, head, first_key, key_row, inside, v_row, v_head, 0, VALUE_WIDTH, VALUES, VALUES <= VALUE_WIDTH, MAPPED, OPERAND
        )  # fmt: skip
        accumulator = tl.dot(probs.to(OPERAND), values, accumulator * rescale[:, None], input_precision="ieee")
    seen = total > 0
    divisor = tl.where(seen, total, 1.0)
    # In base 2 for the other kernels; +inf makes every probability of a row without keys 0.
    logs = tl.where(seen, top + tl.log2(divisor), float("inf"))
    tl.store(lse + (zero + sequence * num_heads + head) * num_queries + place, logs, mask=live)
    channel = tl.arange(0, VALUES)
    target = out + (row * num_heads + head)[:, None] * VALUE_WIDTH + channel[None, :]
    result = (accumulator / divisor[:, None]).to(out.dtype.element_ty)
    tl.store(target, result, mask=live[:, None] & (channel < VALUE_WIDTH)[None, :])


@triton.jit
def _window_mass(
    q,
    q_rest,
    k,
    k_rest,
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
    MAPPED: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Probabilities of one tile of pairs, head after head."""
    sequence = tl.program_id(2)
    zero = tl.full((), 0, tl.int64)
    place = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    live = place < num_queries
    row = (zero + sequence) * num_queries + place
    first_row = sequence * num_queries + tl.program_id(0) * QUERIES
    end = tl.load(ends + row, mask=live, other=0)
    first = tl.program_id(1) * KEYS
    key = first + tl.arange(0, KEYS)
    inside = key < num_keys
    key_row = (zero + sequence) * num_keys + key
    first_key = sequence * num_keys + first
    stride = num_heads * KEY_WIDTH
    FULL: tl.constexpr = MAIN <= KEY_WIDTH
    FULL_REST: tl.constexpr = MAIN + REST == KEY_WIDTH
    total = tl.zeros((QUERIES, KEYS), tl.float32)
    factor = scale * LOG2_E
    for head in range(tl.where(tl.max(end, 0) > first, num_heads, 0)):
        q_main = head_tile(q, head, first_row, row, live, stride, KEY_WIDTH, 0, KEY_WIDTH, MAIN, FULL, MAPPED, OPERAND)
        k_main = head_tile(
            k, head, first_key, key_row, inside, stride, KEY_WIDTH, 0, KEY_WIDTH, MAIN, FULL, MAPPED, OPERAND
        )
        scores = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")
        if REST:
            q_last = head_tile(
                q_rest, head, first_row, row, live, stride, KEY_WIDTH, MAIN, KEY_WIDTH, REST, FULL_REST, MAPPED, OPERAND
            )
            k_last = head_tile(
                k_rest, head, first_key, key_row, inside, stride, KEY_WIDTH, MAIN, KEY_WIDTH, REST, FULL_REST, MAPPED, OPERAND
            )  # fmt: skip
            scores = tl.dot(q_last, tl.trans(k_last), scores, input_precision="ieee")
        logs = tl.load(lse + (zero + sequence * num_heads + head) * num_queries + place, mask=live, other=float("inf"))
        total += tl.exp2(scores * factor - logs[:, None])
    keep = key[None, :] < end[:, None]
    if MASKED:
        keep = keep & mask_bits(words, row, num_words, live, first, KEYS)
    target = mass + row[:, None] * num_keys + key[None, :]
    tl.store(target, tl.where(keep, total, 0.0), mask=live[:, None] & inside[None, :])


def pack_bits(seen_BTS: Tensor) -> tuple[Tensor, Tensor]:
    """int32 words of a bool grid, 32 keys each [B, T, W] and 32 queries each [B, S, W]; rows of the grid are dense."""
    num_sequences, num_queries, num_keys = seen_BTS.shape
    across, along = triton.cdiv(num_queries, PACKED), triton.cdiv(num_keys, PACKED)
    by_query, by_key = (
        torch.empty(num_sequences, rows, steps * PACKED // 32, dtype=torch.int32, device=seen_BTS.device)
        for rows, steps in ((num_queries, along), (num_keys, across))
    )
    _pack_bits[(across, along, num_sequences)](
        seen_BTS, by_query, by_key, num_queries, num_keys, seen_BTS.stride(1), SIZE=PACKED
    )
    return by_query, by_key


def mapped(grid: Grid) -> bool:
    """Whether tiles can come by tensor maps: on Hopper, and no padded channel."""
    key_width, value_width = grid.k_BSHK.shape[3], grid.v_BSHV.shape[3]
    main, rest = split_width(key_width)
    fits = main + rest == key_width and value_width >= 16 and value_width & (value_width - 1) == 0
    aligned = all(
        size * grid.v_BSHV.element_size() % 16 == 0 for size in (grid.v_BSHV.stride(1), grid.v_BSHV.stride(2))
    )
    aligned = aligned and grid.v_BSHV.data_ptr() % 16 == 0
    return grid.q_BTHK.dtype == torch.bfloat16 and fits and aligned and on_hopper(grid.q_BTHK)


def widths(grid: Grid) -> dict[str, Any]:
    """Compile-time arguments that all kernels share but the values'."""
    main, rest = split_width(grid.k_BSHK.shape[3])
    return {
        "KEY_WIDTH": grid.k_BSHK.shape[3],
        "MAIN": main,
        "REST": rest,
        "MASKED": grid.words_BTW is not None,
        "MAPPED": mapped(grid),
        "OPERAND": operand_type(grid.q_BTHK.dtype),
    }


def source(values: Tensor, rows: int, width: int, is_mapped: bool) -> Tensor | TensorDescriptor:
    """[B, S, H, W] as what `head_tile` reads tiles of `rows` × `width` from."""
    if not is_mapped:
        return values
    num_sequences, num_rows, num_heads, channels = values.shape
    shape = [num_sequences * num_rows, (num_heads - 1) * values.stride(2) + channels]
    return TensorDescriptor(values, shape, [values.stride(1), 1], [rows, width])


def key_sources(grid: Grid, tiles: WindowTiles) -> tuple[Any, Any, Any, Any]:
    """(queries, their last channels, keys, their last channels)."""
    main, rest = split_width(grid.k_BSHK.shape[3])
    is_mapped = mapped(grid)
    return (
        source(grid.q_BTHK, tiles.queries, main, is_mapped),
        source(grid.q_BTHK, tiles.queries, rest or main, is_mapped),
        source(grid.k_BSHK, tiles.keys, main, is_mapped),
        source(grid.k_BSHK, tiles.keys, rest or main, is_mapped),
    )


def value_widths(grid: Grid) -> dict[str, int]:
    """Compile-time arguments of the values."""
    width = grid.v_BSHV.shape[3]
    return {"VALUE_WIDTH": width, "VALUES": max(16, triton.next_power_of_2(width))}


def window_forward(grid: Grid, tiles: WindowTiles | None = None) -> tuple[Tensor, Tensor]:
    """(out_BTHV, lse [B, H, T] float32 in base 2, +inf for a row without keys)."""
    num_sequences, num_queries, num_heads = grid.q_BTHK.shape[:3]
    num_keys, values = grid.k_BSHK.shape[1], value_widths(grid)
    tiles = tiles or small_tiles(grid) or WindowTiles(queries=64, num_warps=4)
    device = grid.q_BTHK.device
    out_BTHV = torch.empty(*grid.q_BTHK.shape[:3], values["VALUE_WIDTH"], dtype=grid.q_BTHK.dtype, device=device)
    lse_BHT = torch.empty(num_sequences, num_heads, num_queries, dtype=torch.float32, device=device)
    _window_forward[(triton.cdiv(num_queries, tiles.queries), num_heads, num_sequences)](
        *key_sources(grid, tiles),
        source(grid.v_BSHV, tiles.keys, values["VALUES"], mapped(grid)),
        grid.ends_BT,
        grid.words_BTW,
        out_BTHV,
        lse_BHT,
        grid.scale,
        num_queries,
        num_keys,
        num_heads,
        grid.v_BSHV.stride(1),
        grid.v_BSHV.stride(2),
        0 if grid.words_BTW is None else grid.words_BTW.shape[2],
        QUERIES=tiles.queries,
        KEYS=tiles.keys,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        **widths(grid),
        **values,
    )
    return out_BTHV, lse_BHT


def window_mass(grid: Grid, lse_BHT: Tensor, tiles: WindowTiles | None = None) -> Tensor:
    """float32 [B, T, S] probabilities summed over heads, 0 for keys that do not count."""
    num_sequences, num_queries, num_heads = grid.q_BTHK.shape[:3]
    num_keys = grid.k_BSHK.shape[1]
    tiles = tiles or small_tiles(grid) or WindowTiles(num_stages=3)
    mass_BTS = torch.empty(num_sequences, num_queries, num_keys, dtype=torch.float32, device=lse_BHT.device)
    _window_mass[(triton.cdiv(num_queries, tiles.queries), triton.cdiv(num_keys, tiles.keys), num_sequences)](
        *key_sources(grid, tiles),
        grid.ends_BT,
        grid.words_BTW,
        lse_BHT,
        mass_BTS,
        grid.scale,
        num_queries,
        num_keys,
        num_heads,
        0 if grid.words_BTW is None else grid.words_BTW.shape[2],
        QUERIES=tiles.queries,
        KEYS=tiles.keys,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        **widths(grid),
    )
    return mass_BTS


def small_tiles(grid: Grid) -> WindowTiles | None:
    """Tiles of the interpreter and of float32; None in bfloat16 on a GPU."""
    if interpreting() or grid.q_BTHK.dtype == torch.float32:
        return WindowTiles(queries=32, keys=32, num_warps=4, num_stages=1)
    return None
