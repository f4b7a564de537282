"""Sparse attention forward (Triton): online softmax over tiles of gathered keys; one program a query row and block of heads.

The key tile is loaded once and serves both products, since a key's first V channels are its value. A row's tiles and their order depend on
its own count alone, so its result does not depend on the batch. The key width is split into a power of two and the rest (576 = 512 + 64).

Axes: N query rows, S key rows, H heads, K key width, V value width, C selected keys.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.gpu.loading import interpreting
from samepath.kernels.gpu.row_parts import LOG2_E, Width, front_width, score_rows, split_width, store_parts
from samepath.kernels.gpu.tiles import on_hopper, operand_type
from samepath.kernels.sparse_attention.triton_softmax import add_tile, load_heads, no_keys

MOST_ROWS = 65520
"""Rows of one launch: the limit of a grid's second axis, rounded down so that later pieces stay aligned to 16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Shape of the products; changes the speed, never a result's meaning."""

    heads: int = 64
    """Heads a program at most."""
    keys: int = 64
    """Keys a tile."""
    num_warps: int = 8
    """Warps a program."""
    num_stages: int = 2
    """Key tiles in flight."""


def row_launches(num_rows: int, most: int | None = None) -> list[slice]:
    """The rows in pieces that one launch takes, of at most `most` rows."""
    step = min(MOST_ROWS, most or MOST_ROWS)
    return [slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]


@triton.jit
def _attend_forward(
    q,
    kv,
    indices,
    counts,
    out,
    lse,
    scale,
    num_heads,
    num_selected,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    zero = tl.full((), 0, tl.int64)
    row = zero + tl.program_id(1)
    head = tl.program_id(0) * HEADS + tl.arange(0, HEADS)
    live_head, q_rows, q_main, q_rest = load_heads(q, row, head, num_heads, KEY, OPERAND)
    count = tl.load(counts + row)
    slots = tl.arange(0, KEYS)
    state = no_keys(HEADS, VALUE)
    # Base 2 inside: the scale carries log2(e).
    factor = scale * LOG2_E
    rows_of = indices + row * num_selected
    key_rows = tl.load(rows_of + slots, mask=slots < count, other=0)
    for first in range(0, count, KEYS):
        live = first + slots < count
        following = first + KEYS + slots
        scores, k_main, k_rest = score_rows(q_main, q_rest, kv, key_rows.to(tl.int64), live, KEY.total, KEY, OPERAND)
        # Read ahead, so that the gather of the next tile waits for no index.
        key_rows = tl.load(rows_of + following, mask=following < count, other=0)
        scores = tl.where(live[None, :], scores * factor, float("-inf"))
        state = add_tile(state, scores, k_main, k_rest, VALUE, OPERAND)
    values, rest, top, total = state
    divisor = tl.where(total > 0, total, 1.0)
    share = 1.0 / divisor
    tl.store(lse + q_rows, tl.where(total > 0, (top + tl.log2(divisor)) / LOG2_E, float("-inf")), mask=live_head)
    store_parts(out, q_rows, live_head, VALUE.total, values, rest, share[:, None], VALUE)


def attend_forward(
    q_NHK: Tensor,
    kv_SK: Tensor,
    indices_NC: Tensor,
    count_N: Tensor,
    scale: float,
    value_width: int,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor]:
    """(out_NHV in q's type, lse_NH float32 natural logarithm); rows without keys give 0 and −inf."""
    num_rows, num_heads, key_width = q_NHK.shape
    launches = row_launches(num_rows)
    if len(launches) > 1:
        parts = [
            attend_forward(q_NHK[part], kv_SK, indices_NC[part], count_N[part], scale, value_width, tiles)
            for part in launches
        ]
        return torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts])
    if tiles is None and fits_hopper(q_NHK, value_width):
        # Gluon has no interpreter, and older Triton no Gluon.
        from samepath.kernels.sparse_attention.hopper_forward import attend_forward as hopper_attend_forward

        result: tuple[Tensor, Tensor] = hopper_attend_forward(q_NHK, kv_SK, indices_NC, count_N, scale)
        return result
    tiles = tiles or default_tiles(q_NHK)
    out_NHV = torch.empty(num_rows, num_heads, value_width, dtype=q_NHK.dtype, device=q_NHK.device)
    lse_NH = torch.empty(num_rows, num_heads, dtype=torch.float32, device=q_NHK.device)
    if not lse_NH.numel():
        return out_NHV, lse_NH
    heads = max(16, min(tiles.heads, triton.next_power_of_2(num_heads)))
    _attend_forward[(triton.cdiv(num_heads, heads), num_rows)](
        q_NHK,
        kv_SK,
        indices_NC,
        count_N,
        out_NHV,
        lse_NH,
        scale,
        num_heads,
        indices_NC.shape[1],
        **widths(key_width, value_width),
        HEADS=heads,
        KEYS=tiles.keys,
        OPERAND=operand_type(q_NHK.dtype),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return out_NHV, lse_NH


def widths(key_width: int, value_width: int) -> dict[str, Width]:
    """Compile-time arguments that describe a key and its front, the value."""
    key = split_width(key_width)
    return {"KEY": key, "VALUE": front_width(key, value_width)}


def fits_hopper(q_NHK: Tensor, value_width: int) -> bool:
    """Whether the kernels written for Hopper serve this call: bfloat16, K = 576, V = 512, more than 32 heads, compute capability 9."""
    published = q_NHK.dtype == torch.bfloat16 and (q_NHK.shape[2], value_width) == (576, 512)
    return published and q_NHK.shape[1] > 32 and on_hopper(q_NHK)


def default_tiles(q_NHK: Tensor) -> Tiles:
    """Tiles that fit the multiprocessor for this type and width."""
    if interpreting():
        return Tiles(heads=16, keys=16)
    if q_NHK.dtype == torch.float32:
        return Tiles(heads=16, keys=16, num_warps=8, num_stages=1)
    return Tiles()
