"""Index logits Σ_j w_{t,j} · ReLU(q_{t,j} · k_s) without the head axis in memory (Triton), in float32, bfloat16 and FP8 (e4m3).

A program keeps one tile of keys and walks over query rows: a product of the keys with all heads of a few rows, ReLU, weights and the sum
over heads stay in registers. A logit depends on its own row and key alone, whatever the shapes.

Axes: B sequences of a window, T query rows of each, S keys of each, I indexer heads, K index head width, N rows.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.gpu.loading import interpreting
from samepath.kernels.gpu.tiles import on_hopper, operand_type

QUERIES_A_PROGRAM = 64
"""Query rows that one program runs over its tile of keys."""

FP8_MAX = 448.0
"""Largest finite e4m3 value."""

FP8_GROUP = 128
"""Channels that share one power-of-two scale."""


@triton.jit
def _index_logits(
    q,
    k,
    weights,
    key_scales,
    starts,
    ends,
    logits,
    num_rows,
    num_keys,
    num_heads,
    width,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    QUERIES: tl.constexpr,
    BOUNDED: tl.constexpr,
    SCALED: tl.constexpr,
    OPERAND: tl.constexpr,
):
    zero = tl.full((), 0, tl.int64)
    first_row = tl.program_id(1) * QUERIES
    key = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    last_row = tl.minimum(first_row + QUERIES, num_rows)
    if BOUNDED:
        row = first_row + tl.arange(0, QUERIES)
        low = tl.min(tl.load(starts + tl.program_id(2) * num_rows + row, mask=row < last_row, other=2147483647))
        high = tl.max(tl.load(ends + tl.program_id(2) * num_rows + row, mask=row < last_row, other=0))
        # No row of this program sees a key of the tile: nothing is computed and nothing written.
        if (tl.program_id(0) * KEYS >= high) | (tl.program_id(0) * KEYS + KEYS <= low):
            last_row = first_row
    channel = tl.arange(0, WIDTH)
    head = tl.arange(0, ROWS * HEADS) % HEADS
    offset = tl.arange(0, ROWS * HEADS) // HEADS
    sequence = zero + tl.program_id(2)
    k_KJ = tl.load(
        k + (sequence * num_keys + key)[:, None] * width + channel[None, :],
        mask=(key < num_keys)[:, None] & (channel < width)[None, :],
        other=0.0,
    ).to(OPERAND)
    if SCALED:
        scale = tl.load(key_scales + sequence * num_keys + key, mask=key < num_keys, other=0.0)
    base = sequence * num_rows
    for first in range(first_row, last_row, ROWS):
        row = first + offset
        live = (row < last_row) & (head < num_heads)
        place = (base + row) * num_heads + head
        q_HJ = tl.load(
            q + place[:, None] * width + channel[None, :], mask=live[:, None] & (channel < width)[None, :], other=0.0
        )
        weight = tl.load(weights + place, mask=live, other=0.0)
        scores = tl.maximum(tl.dot(k_KJ, tl.trans(q_HJ.to(OPERAND)), input_precision="ieee"), 0.0) * weight[None, :]
        sums = tl.sum(tl.reshape(scores, (KEYS, ROWS, HEADS)), 2)
        if SCALED:
            sums = sums * scale[:, None]
        out_row = first + tl.arange(0, ROWS)
        tl.store(
            logits + (base + out_row)[None, :] * num_keys + key[:, None],
            sums,
            mask=(out_row < last_row)[None, :] & (key < num_keys)[:, None],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Shape of the products; changes the speed, never a result's meaning."""

    keys: int = 256
    """Keys a program."""
    columns: int = 64
    """Row·head pairs a product, at least (one row's heads, padded, if they are more)."""
    num_warps: int = 8
    """Warps a program."""
    num_stages: int = 3
    """Query tiles in flight."""


def index_logits(
    q_BTIK: Tensor,
    k_BSK: Tensor,
    weights_BTI: Tensor,
    bounds_BT: tuple[Tensor, Tensor] | None = None,
    key_scales_BS: Tensor | None = None,
    tiles: Tiles | None = None,
) -> Tensor:
    """float32 logits [B, T, S] of float32, bfloat16 or float8_e4m3fn queries and keys.

    Args:
        bounds_BT: (starts, ends) of each row's valid keys; tiles outside all of them are not computed and hold anything.
        key_scales_BS: factor of each key after the sum over heads (FP8).
    """
    num_sequences, num_rows, num_heads, width = q_BTIK.shape
    num_keys = k_BSK.shape[1]
    if tiles is None and fits_hopper(q_BTIK):
        # Gluon has no interpreter, and older Triton no Gluon.
        from samepath.kernels.indexer.hopper_index_logits import index_logits as hopper_index_logits

        result: Tensor = hopper_index_logits(
            q_BTIK.contiguous(), k_BSK.contiguous(), weights_BTI.float().contiguous(), bounds_BT, key_scales_BS
        )
        return result
    small = interpreting()
    tiles = tiles or (Tiles(keys=16, columns=16) if small else Tiles())
    heads = triton.next_power_of_2(num_heads)
    rows = max(1, tiles.columns // heads)
    while rows * heads < 16:
        rows *= 2
    queries = max(rows, 4 if small else QUERIES_A_PROGRAM)
    logits_BTS = torch.empty(num_sequences, num_rows, num_keys, dtype=torch.float32, device=q_BTIK.device)
    starts, ends = bounds_BT or (logits_BTS, logits_BTS)
    grid = (triton.cdiv(num_keys, tiles.keys), triton.cdiv(num_rows, queries), num_sequences)
    if not logits_BTS.numel():
        return logits_BTS
    _index_logits[grid](
        q_BTIK.contiguous(),
        k_BSK.contiguous(),
        weights_BTI.float().contiguous(),
        logits_BTS if key_scales_BS is None else key_scales_BS.contiguous(),
        starts,
        ends,
        logits_BTS,
        num_rows,
        num_keys,
        num_heads,
        width,
        HEADS=heads,
        WIDTH=max(16, triton.next_power_of_2(width)),
        ROWS=rows,
        KEYS=tiles.keys,
        QUERIES=queries,
        BOUNDED=bounds_BT is not None,
        SCALED=key_scales_BS is not None,
        OPERAND=operand_type(q_BTIK.dtype),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return logits_BTS


def fits_hopper(q_BTIK: Tensor) -> bool:
    """Whether the kernel written for Hopper serves this call: 64 heads × 128 in bfloat16 or FP8, compute capability 9.

    Which one runs changes no bit of a logit.
    """
    types = (torch.bfloat16, torch.float8_e4m3fn)
    return q_BTIK.dtype in types and q_BTIK.shape[2:] == (64, 128) and on_hopper(q_BTIK)


@triton.jit
def _quantise_rows(x, quantised, scales, num_rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, MAX: tl.constexpr):
    row = (tl.full((), 0, tl.int64) + tl.program_id(0)) * ROWS + tl.arange(0, ROWS)
    live = row < num_rows
    place = row[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    values = tl.load(x + place, mask=live[:, None], other=0.0).to(tl.float32)
    # One butterfly a bit of the channel number: after all of them each channel holds ± sums of all channels, the Walsh–Hadamard transform.
    HALF: tl.constexpr = WIDTH // 2
    span = 1
    while span < WIDTH:
        pairs = tl.reshape(values, (ROWS, HALF, 2))
        first, second = tl.split(pairs)
        # Sums in front, differences behind: the next bit moves to the end, so log2(WIDTH) rounds visit every bit once.
        values = tl.reshape(tl.trans(tl.join(first + second, first - second), (0, 2, 1)), (ROWS, WIDTH))
        span *= 2
    values = values * (WIDTH**-0.5)
    largest = tl.max(tl.abs(values), 1)
    # Smallest power of two with max/scale ≤ MAX: exponent of max/MAX rounded up, exact in the float's bits.
    ratio = tl.maximum(largest, 1e-30) / MAX
    bits = ratio.to(tl.int32, bitcast=True)
    exponent = (bits + 0x7FFFFF) & 0x7F800000
    scale = exponent.to(tl.float32, bitcast=True)
    tl.store(scales + row, scale, mask=live)
    tl.store(quantised + place, (values / scale[:, None]).to(quantised.dtype.element_ty), mask=live[:, None])


def quantise(x_NK: Tensor) -> tuple[Tensor, Tensor]:
    """(float8_e4m3fn [N, K], float32 scale [N]): orthonormal Hadamard rotation of each row, then one power-of-two scale a row.

    Raises ValueError unless the width is a power of two of at most 128.
    """
    num_rows, width = x_NK.shape
    if width & (width - 1) or not 2 <= width <= FP8_GROUP:
        raise ValueError(f"FP8 quantisation needs a width that is a power of two up to {FP8_GROUP}; got {width}")
    # The interpreter truncates where the GPU rounds to nearest, so there the last step is left to torch.
    code = torch.float32 if interpreting() else torch.float8_e4m3fn
    quantised_NK = torch.empty(num_rows, width, dtype=code, device=x_NK.device)
    scales_N = torch.empty(num_rows, dtype=torch.float32, device=x_NK.device)
    rows = 16
    if num_rows:
        _quantise_rows[(triton.cdiv(num_rows, rows),)](
            x_NK.contiguous(), quantised_NK, scales_N, num_rows, WIDTH=width, ROWS=rows, MAX=FP8_MAX, num_warps=4
        )
    return quantised_NK.to(torch.float8_e4m3fn), scales_N


def index_logits_fp8(
    q_BTIK: Tensor,
    k_BSK: Tensor,
    weights_BTI: Tensor,
    bounds_BT: tuple[Tensor, Tensor] | None = None,
    tiles: Tiles | None = None,
    exact: bool = False,
) -> Tensor:
    """Index logits of rotated and quantised queries and keys; the queries' scales fold into the weights.

    Hopper's FP8 tensor cores add the products with about 14 bits; `exact` multiplies the same numbers in bfloat16, which holds them all.
    """
    q8, q_scales = quantise(q_BTIK.flatten(0, 2))
    k8, k_scales = quantise(k_BSK.flatten(0, 1))
    weights_BTI = weights_BTI.float() * q_scales.view(weights_BTI.shape)
    if exact:
        q8, k8 = q8.to(torch.bfloat16), k8.to(torch.bfloat16)
    return index_logits(
        q8.view(q_BTIK.shape),
        k8.view(k_BSK.shape),
        weights_BTI,
        bounds_BT,
        k_scales.view(k_BSK.shape[:2]),
        tiles,
    )
