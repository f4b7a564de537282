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
from samepath.kernels.gpu.tiles import on_hopper, operand_type

LOG2_E = tl.constexpr(1.4426950408889634)

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


def split_width(width: int) -> tuple[int, int]:
    """(largest power of two ≤ width, padded power of two that holds the rest, 0 for none); each at least 16."""
    main = max(16, 1 << (width.bit_length() - 1))
    return main, 0 if width <= main else max(16, triton.next_power_of_2(width - main))


@triton.jit
def load_rows(base, rows, first, stop, stride, live, WIDTH: tl.constexpr, FULL: tl.constexpr):
    """Channels first … first + WIDTH − 1 of the given rows; 0 for rows that are not live and channels from `stop` on."""
    channel = first + tl.arange(0, WIDTH)
    pointers = base + rows[:, None] * stride + channel[None, :]
    if FULL:
        return tl.load(pointers, mask=live[:, None], other=0.0)
    return tl.load(pointers, mask=live[:, None] & (channel < stop)[None, :], other=0.0)


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
    KEY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    zero = tl.full((), 0, tl.int64)
    row = zero + tl.program_id(1)
    head = tl.program_id(0) * HEADS + tl.arange(0, HEADS)
    live_head = head < num_heads
    q_rows = row * num_heads + head
    q_main = load_rows(q, q_rows, 0, KEY_WIDTH, KEY_WIDTH, live_head, MAIN, MAIN <= KEY_WIDTH).to(OPERAND)
    if REST:
        q_rest = load_rows(q, q_rows, MAIN, KEY_WIDTH, KEY_WIDTH, live_head, REST, MAIN + REST == KEY_WIDTH).to(OPERAND)
    count = tl.load(counts + row)
    slots = tl.arange(0, KEYS)
    accumulator = tl.zeros((HEADS, MAIN), tl.float32)
    if VALUE_WIDTH > MAIN:
        accumulator_rest = tl.zeros((HEADS, REST), tl.float32)
    top = tl.full((HEADS,), float("-inf"), tl.float32)
    total = tl.zeros((HEADS,), tl.float32)
    # Base 2 inside: the scale carries log2(e).
    factor = scale * LOG2_E
    rows_of = indices + row * num_selected
    key_rows = tl.load(rows_of + slots, mask=slots < count, other=0)
    for first in range(0, count, KEYS):
        live = first + slots < count
        following = first + KEYS + slots
        k_main = load_rows(kv, key_rows.to(tl.int64), 0, KEY_WIDTH, KEY_WIDTH, live, MAIN, MAIN <= KEY_WIDTH).to(
            OPERAND
        )
        scores = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")
        if REST:
            k_rest = load_rows(
                kv, key_rows.to(tl.int64), MAIN, KEY_WIDTH, KEY_WIDTH, live, REST, MAIN + REST == KEY_WIDTH
            ).to(OPERAND)
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="ieee")
        # Read ahead, so that the gather of the next tile waits for no index.
        key_rows = tl.load(rows_of + following, mask=following < count, other=0)
        scores = tl.where(live[None, :], scores * factor, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        rescale = tl.exp2(top - new_top)
        probs = tl.exp2(scores - new_top[:, None])
        total = total * rescale + tl.sum(probs, 1)
        top = new_top
        accumulator = tl.dot(probs.to(OPERAND), k_main, accumulator * rescale[:, None], input_precision="ieee")
        if VALUE_WIDTH > MAIN:
            accumulator_rest = tl.dot(
                probs.to(OPERAND), k_rest, accumulator_rest * rescale[:, None], input_precision="ieee"
            )
    divisor = tl.where(total > 0, total, 1.0)
    share = 1.0 / divisor
    tl.store(lse + q_rows, tl.where(total > 0, (top + tl.log2(divisor)) / LOG2_E, float("-inf")), mask=live_head)
    channel = tl.arange(0, MAIN)
    out_main = out + q_rows[:, None] * VALUE_WIDTH + channel[None, :]
    keep = live_head[:, None] & (channel < VALUE_WIDTH)[None, :]
    tl.store(out_main, (accumulator * share[:, None]).to(out.dtype.element_ty), mask=keep)
    if VALUE_WIDTH > MAIN:
        channel = MAIN + tl.arange(0, REST)
        keep = live_head[:, None] & (channel < VALUE_WIDTH)[None, :]
        out_rest = out + q_rows[:, None] * VALUE_WIDTH + channel[None, :]
        tl.store(out_rest, (accumulator_rest * share[:, None]).to(out.dtype.element_ty), mask=keep)


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
    main, rest = split_width(key_width)
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
        KEY_WIDTH=key_width,
        VALUE_WIDTH=value_width,
        MAIN=main,
        REST=rest,
        HEADS=heads,
        KEYS=tiles.keys,
        OPERAND=operand_type(q_NHK.dtype),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return out_NHV, lse_NH


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
