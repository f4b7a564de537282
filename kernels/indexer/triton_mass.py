"""Head-summed attention probability of every key of a window from the forward's LSE (Triton): the teacher of the indexer's dense warm-up.

A program keeps one tile of keys and adds the probabilities of head after head for one tile of query rows, so that memory holds [T, S] and never
[T, S, H]. Axes: N query rows, S key rows of the store or of a window, H heads, K key width; B, T of a window as in `window.py`.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.gpu.loading import interpreting
from samepath.kernels.gpu.row_parts import LOG2_E, load_parts, split_width
from samepath.kernels.gpu.tiles import operand_type
from samepath.kernels.sparse_attention.triton_forward import fits_hopper


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Shape of the products; changes the speed, never a result's meaning."""

    rows: int = 64
    """Query rows per program."""
    keys: int = 64
    """Keys a program."""
    num_warps: int = 4
    """Warps a program."""
    num_stages: int = 2
    """Heads in flight."""


@triton.jit
def _window_mass(
    q,
    kv,
    rows_BT,
    ends_BT,
    keys_BS,
    lse,
    mass,
    scale,
    num_queries,
    num_keys,
    num_heads,
    KEY: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    zero = tl.full((), 0, tl.int64)
    sequence = zero + tl.program_id(2)
    query = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    slots = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    end = tl.load(ends_BT + sequence * num_queries + query, mask=query < num_queries, other=0).to(tl.int32)
    row = tl.load(rows_BT + sequence * num_queries + query, mask=query < num_queries, other=0).to(tl.int64)
    high = tl.max(end, 0)
    total = tl.zeros((ROWS, KEYS), tl.float32)
    if tl.program_id(0) * KEYS < high:
        live = slots < high
        key_rows = tl.load(keys_BS + sequence * num_keys + slots, mask=live, other=0)
        k_main, k_rest = load_parts(kv, key_rows, live, KEY.total, KEY, OPERAND)
        for head in range(num_heads):
            places = row * num_heads + head
            q_main, q_rest = load_parts(q, places, end > 0, KEY.total, KEY, OPERAND)
            lse_M = tl.load(lse + places, mask=end > 0, other=float("inf")) * LOG2_E
            scores = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")
            if KEY.rest:
                scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="ieee")
            total += tl.exp2(scores * (scale * LOG2_E) - lse_M[:, None])
    total = tl.where(slots[None, :] < end[:, None], total, 0.0)
    place = (sequence * num_queries + query)[:, None] * num_keys + slots[None, :]
    tl.store(mass + place, total, mask=(query < num_queries)[:, None] & (slots < num_keys)[None, :])


def window_mass(
    q_NHK: Tensor,
    kv_SK: Tensor,
    lse_NH: Tensor,
    rows_BT: Tensor,
    ends_BT: Tensor,
    keys_BS: Tensor,
    scale: float,
    tiles: Tiles | None = None,
) -> Tensor:
    """float32 [B, T, S] probability of each key summed over heads in their order; 0 behind a row's end."""
    (num_sequences, num_queries), num_keys = rows_BT.shape, keys_BS.shape[1]
    if tiles is None and num_queries >= 32 and fits_hopper(q_NHK, 512):
        # Gluon has no interpreter, and older Triton no Gluon.
        from samepath.kernels.indexer.hopper_mass import window_mass as hopper_window_mass

        result: Tensor = hopper_window_mass(q_NHK, kv_SK, lse_NH, rows_BT, ends_BT, keys_BS, scale)
        return result
    tiles = tiles or default_tiles(q_NHK)
    mass_BTS = torch.empty(num_sequences, num_queries, num_keys, dtype=torch.float32, device=q_NHK.device)
    if mass_BTS.numel():
        grid = (triton.cdiv(num_keys, tiles.keys), triton.cdiv(num_queries, tiles.rows), num_sequences)
        _window_mass[grid](
            q_NHK,
            kv_SK,
            rows_BT,
            ends_BT,
            keys_BS,
            lse_NH,
            mass_BTS,
            scale,
            num_queries,
            num_keys,
            q_NHK.shape[1],
            KEY=split_width(q_NHK.shape[2]),
            ROWS=tiles.rows,
            KEYS=tiles.keys,
            OPERAND=operand_type(q_NHK.dtype),
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )
    return mass_BTS


def default_tiles(q_NHK: Tensor) -> Tiles:
    """Tiles that fit the multiprocessor for this type."""
    if interpreting():
        return Tiles(rows=16, keys=16)
    if q_NHK.dtype == torch.float32:
        return Tiles(rows=16, keys=16, num_stages=1)
    return Tiles()
