"""Gradients of (row, key) pairs added for each key in row order (Triton): deterministic, and faster than float32 atomics, which move twice the bytes.

Bound by the bytes of the pairs: one program reads all pairs of one key, in the order of a stable sort.

Axes: N query rows, S key rows, K key width, C selected keys, P pairs of a row chunk.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.gpu.row_parts import split_width


@triton.jit
def _home(channel, RENAMED: tl.constexpr):
    """Where the channel that stands at a place of a pair belongs; RENAMED as the Hopper kernels write them."""
    if RENAMED:
        return channel // 32 * 32 + channel % 8 // 2 * 8 + channel % 32 // 8 * 2 + channel % 2
    return channel


@triton.jit
def _ordered_sums(
    pairs,
    order,
    bounds,
    before,
    after,
    width,
    ROW: tl.constexpr,
    FRESH: tl.constexpr,
    RENAMED: tl.constexpr,
):
    """Add, for one key, the pair gradients in the given order to its sum so far, two in flight; FRESH starts from 0."""
    MAIN: tl.constexpr = ROW.main
    REST: tl.constexpr = ROW.rest
    zero = tl.full((), 0, tl.int64)
    key = zero + tl.program_id(0)
    channel = tl.arange(0, MAIN)
    live = channel < width
    start = tl.load(bounds + key)
    stop = tl.load(bounds + key + 1)
    home = key * width + _home(channel, RENAMED)
    if FRESH:
        total = tl.zeros((MAIN,), tl.float32)
    else:
        total = tl.load(before + home, mask=live, other=0.0)
    if REST:
        rest = MAIN + tl.arange(0, REST)
        rest_live = rest < width
        rest_home = key * width + _home(rest, RENAMED)
        if FRESH:
            rest_total = tl.zeros((REST,), tl.float32)
        else:
            rest_total = tl.load(before + rest_home, mask=rest_live, other=0.0)
    for place in range(start, stop, 2):
        # The last of an odd number is read twice and counts once.
        following = zero + place + 1
        share = tl.where(following < stop, 1.0, 0.0)
        one = pairs + tl.load(order + place) * width
        two = pairs + tl.load(order + tl.minimum(following, stop - 1)) * width
        first = tl.load(one + channel, mask=live, other=0.0)
        second = tl.load(two + channel, mask=live, other=0.0)
        if REST:
            rest_first = tl.load(one + rest, mask=rest_live, other=0.0)
            rest_second = tl.load(two + rest, mask=rest_live, other=0.0)
            rest_total = rest_total + rest_first.to(tl.float32) + rest_second.to(tl.float32) * share
        total = total + first.to(tl.float32) + second.to(tl.float32) * share
    tl.store(after + home, total.to(after.dtype.element_ty), mask=live)
    if REST:
        tl.store(after + rest_home, rest_total.to(after.dtype.element_ty), mask=rest_live)


def add_pairs_in_order(
    pairs_PK: Tensor, indices_NC: Tensor, count_N: Tensor, blocks: int, sums_SK: Tensor, renamed: bool = False
) -> None:
    """Add the pair gradients [blocks · N · C, K] of each key to its row of the float32 `sums_SK`, by block and then by row."""
    sum_pairs(pairs_PK, pair_order(indices_NC, count_N, blocks, sums_SK.shape[0]), sums_SK, sums_SK, renamed)


def pair_order(indices_NC: Tensor, count_N: Tensor, blocks: int, num_keys: int) -> tuple[Tensor, Tensor]:
    """(pairs sorted by key, where each key's begin [S + 1])."""
    valid_NC = torch.arange(indices_NC.shape[1], device=count_N.device) < count_N[:, None]
    # A radix sort passes over every byte of its keys.
    short = torch.int16 if num_keys < 1 << 15 else torch.int32
    keys_NC = indices_NC.masked_fill(~valid_NC, num_keys).to(short)
    sorted_P = keys_NC.flatten().repeat(blocks).sort(stable=True)
    every = torch.arange(num_keys + 1, dtype=short, device=keys_NC.device)
    return sorted_P.indices, torch.searchsorted(sorted_P.values, every)


def sum_pairs(
    pairs_PK: Tensor, order: tuple[Tensor, Tensor], before_SK: Tensor | None, after_SK: Tensor, renamed: bool
) -> None:
    """Write to `after_SK` the float32 sums `before_SK` (None: 0) and each key's pairs; both may be the same tensor."""
    num_keys, width = after_SK.shape
    _ordered_sums[(num_keys,)](
        pairs_PK,
        *order,
        after_SK if before_SK is None else before_SK,
        after_SK,
        width,
        ROW=split_width(width),
        FRESH=before_SK is None,
        RENAMED=renamed,
        num_warps=1,
    )
