"""Masks of a window as bits (Triton): packed once along the keys and once along the queries, then read a tile at a time.

Axes: B sequences, T query rows of each, S keys of each, W words of 32 bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PACKED = 64
"""Queries, and keys, that one program packs; rows of words are padded to as many bits."""


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
