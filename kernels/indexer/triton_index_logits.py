"""Index logits Σ_j w_{t,j} · ReLU(q_{t,j} · k_s) without the head axis in memory (Triton), of float32, bfloat16 and FP8 (e4m3) numbers.

A program keeps one tile of keys and walks over query rows: a product of the keys with all heads of a few rows, ReLU, weights and the sum
over heads stay in registers. Keys stand one behind the other, or in rows of a store that a table lists: the engine's cache, which decoding reads
where it is. A logit depends on its own row and key alone, whatever the shapes and wherever the key stands.

What bounds it: the products where queries are many, the keys' bytes where a sequence has one.

Axes: B sequences of a window, T query rows of each, S keys of each, I indexer heads, K index head width, N rows.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import embedding

from samepath.kernels.gpu.loading import interpreting
from samepath.kernels.gpu.tiles import on_hopper, operand_type

QUERIES_A_PROGRAM = 64
"""Query rows that one program runs over its tile of keys."""

FEW_QUERIES = 16
"""Query rows of a sequence up to which copying its keys to one place costs more than Hopper's kernel, which needs them there, gains."""


@triton.jit
def _index_logits(
    q,
    k,
    weights,
    key_scales,
    table,
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
    ENDS: tl.constexpr,
    STARTS: tl.constexpr,
    SCALED: tl.constexpr,
    LISTED: tl.constexpr,
    OPERAND: tl.constexpr,
):
    zero = tl.full((), 0, tl.int64)
    first_row = tl.program_id(1) * QUERIES
    key = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    last_row = tl.minimum(first_row + QUERIES, num_rows)
    row = first_row + tl.arange(0, QUERIES)
    bound = tl.program_id(2) * num_rows + row
    low = tl.program_id(0) * KEYS
    high = num_keys
    if STARTS:
        low = tl.min(tl.load(starts + bound, mask=row < last_row, other=2147483647).to(tl.int32))
    if ENDS:
        high = tl.max(tl.load(ends + bound, mask=row < last_row, other=0).to(tl.int32))
    # No row of this program sees a key of the tile: nothing is loaded, computed or written.
    if (tl.program_id(0) * KEYS >= high) | (tl.program_id(0) * KEYS + KEYS <= low):
        last_row = first_row
        high = 0
    channel = tl.arange(0, WIDTH)
    head = tl.arange(0, ROWS * HEADS) % HEADS
    offset = tl.arange(0, ROWS * HEADS) // HEADS
    sequence = zero + tl.program_id(2)
    inside = key < high
    key_row = sequence * num_keys + key
    if LISTED:
        key_row = tl.load(table + key_row, mask=inside, other=0).to(tl.int64)
    k_KJ = tl.load(
        k + key_row[:, None] * width + channel[None, :],
        mask=inside[:, None] & (channel < width)[None, :],
        other=0.0,
    ).to(OPERAND)
    if SCALED:
        scale = tl.load(key_scales + sequence * num_keys + key, mask=inside, other=0.0)
    base = sequence * num_rows
    for first in range(first_row, last_row, ROWS):
        row = first + offset
        live = (row < last_row) & (head < num_heads)
        place = (base + row) * num_heads + head
        q_HJ = tl.load(
            q + place[:, None] * width + channel[None, :], mask=live[:, None] & (channel < width)[None, :], other=0.0
        )
        weight = tl.load(weights + place, mask=live, other=0.0).to(tl.float32)
        scores = tl.maximum(tl.dot(k_KJ, tl.trans(q_HJ.to(OPERAND)), input_precision="ieee"), 0.0) * weight[None, :]
        sums = tl.sum(tl.reshape(scores, (KEYS, ROWS, HEADS)), 2)
        if SCALED:
            sums = sums * scale[:, None]
        out_row = first + tl.arange(0, ROWS)
        tl.store(
            logits + (base + out_row)[None, :] * num_keys + key[:, None],
            sums,
            mask=(out_row < last_row)[None, :] & inside[:, None],
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
    if tiles is None and fits_hopper(q_BTIK):
        # Gluon has no interpreter, and older Triton no Gluon.
        from samepath.kernels.indexer.hopper_index_logits import index_logits as hopper_index_logits

        result: Tensor = hopper_index_logits(
            q_BTIK.contiguous(), k_BSK.contiguous(), weights_BTI.float().contiguous(), bounds_BT, key_scales_BS
        )
        return result
    starts_BT, ends_BT = bounds_BT or (None, None)
    keys = _Keys(rows=k_BSK, count=k_BSK.shape[1], scales=key_scales_BS, starts_BT=starts_BT, ends_BT=ends_BT)
    return _launch(q_BTIK, keys, weights_BTI, tiles or default_tiles(q_BTIK))


def cached_index_logits(
    q_BTIK: Tensor,
    keys_SK: Tensor,
    table_BS: Tensor,
    weights_BTI: Tensor,
    ends_BT: Tensor,
    tiles: Tiles | None = None,
) -> Tensor:
    """float32 logits [B, T, S] of queries and the rows of a store that `table_BS` (integers) lists, the bits of `index_logits` on a copy of them.

    Row t of sequence b sees the positions below `ends_BT[b, t]` (integers); what stands behind all ends of a tile's rows may be anything.
    Nothing waits for the host.
    """
    if tiles is None and fits_hopper(q_BTIK) and q_BTIK.shape[1] > FEW_QUERIES:
        ends_BT = ends_BT.to(torch.int32).contiguous()
        bounds_BT = torch.zeros_like(ends_BT), ends_BT
        return index_logits(q_BTIK, embedding(table_BS, keys_SK), weights_BTI, bounds_BT)
    keys = _Keys(rows=keys_SK, count=table_BS.shape[1], table_BS=table_BS, ends_BT=ends_BT)
    return _launch(q_BTIK, keys, weights_BTI, tiles or default_tiles(q_BTIK))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Keys:
    """Where the keys of a launch stand, and who sees them."""

    rows: Tensor
    """[…, K] keys."""
    count: int
    """Keys of a sequence."""
    table_BS: Tensor | None = None
    """Row of each key; None: they stand one behind the other."""
    scales: Tensor | None = None
    """Factor of each key, for keys that stand one behind the other."""
    starts_BT: Tensor | None = None
    """First position that a row sees; None: 0."""
    ends_BT: Tensor | None = None
    """First position behind those; None: all are seen."""


def default_tiles(q_BTIK: Tensor) -> Tiles:
    """Tiles for this type and number of queries a sequence, which no bit depends on.

    One query has no tile of queries to fetch ahead; smaller tiles then keep more keys on their way. Float32 products have no tensor cores, whose
    layout fixes the order of a head sum, so there the tile is one for all.
    """
    if interpreting():
        return Tiles(keys=16, columns=16)
    if q_BTIK.shape[1] > FEW_QUERIES or q_BTIK.dtype == torch.float32:
        return Tiles()
    return Tiles(keys=128, num_warps=4, num_stages=1)


def _launch(q_BTIK: Tensor, keys: _Keys, weights_BTI: Tensor, tiles: Tiles) -> Tensor:
    num_sequences, num_rows, num_heads, width = q_BTIK.shape
    heads = triton.next_power_of_2(num_heads)
    rows = max(1, tiles.columns // heads)
    while rows * heads < 16:
        rows *= 2
    queries = max(rows, 4 if interpreting() else QUERIES_A_PROGRAM)
    logits_BTS = torch.empty(num_sequences, num_rows, keys.count, dtype=torch.float32, device=q_BTIK.device)
    if not logits_BTS.numel():
        return logits_BTS
    grid = (triton.cdiv(keys.count, tiles.keys), triton.cdiv(num_rows, queries), num_sequences)
    table, scales, starts, ends = (
        logits_BTS if tensor is None else tensor.contiguous()
        for tensor in (keys.table_BS, keys.scales, keys.starts_BT, keys.ends_BT)
    )
    _index_logits[grid](
        q_BTIK.contiguous(),
        keys.rows.contiguous(),
        weights_BTI.contiguous(),
        scales,
        table,
        starts,
        ends,
        logits_BTS,
        num_rows,
        keys.count,
        num_heads,
        width,
        HEADS=heads,
        WIDTH=max(16, triton.next_power_of_2(width)),
        ROWS=rows,
        KEYS=tiles.keys,
        QUERIES=queries,
        ENDS=keys.ends_BT is not None,
        STARTS=keys.starts_BT is not None,
        SCALED=keys.scales is not None,
        LISTED=keys.table_BS is not None,
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
