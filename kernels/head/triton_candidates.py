"""Candidates of a draw without a sort (Triton): the k-th best and the edge of top-p are found by a search over the order of the values.

A program takes a row. Values are compared by integer keys that order as they do. The edge of top-p is the largest key t such that the tokens
with keys ≥ t reach p; a bracket around it is cut in four by one pass over the row, and drawn close around the keys that are inside, until it
holds one: eight to twelve passes. Probabilities are added as whole multiples of 2⁻⁶², so their sums are exact and depend on no order. Float64
sums in sorted order, as `candidates` takes them, are exact too while tokens are likelier than 2⁻²⁹, so the two can differ only where p is within
V · 2⁻²⁹ of 1, by what float64 rounds away there.

What bounds it: the row is read from L2 in every pass, and each element costs some thirty instructions.

Axes: B rows, V vocabulary, W words of 32 tokens.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.gpu.loading import interpreting
from samepath.kernels.selection.triton_selection import ordered_keys

LOWEST = tl.constexpr(-2147483647)
"""Below the key of every value; what stands behind a row's end has one less."""
HIGHEST = tl.constexpr(2139095041)
"""Above the key of +∞."""
WHOLE = tl.constexpr(2.0**62)
"""Probability 1 in the units that probabilities are added in."""


@triton.jit
def _load_keys(values, place, size):
    return ordered_keys(tl.load(values + place, mask=place < size, other=0.0), place, 0, size)


@triton.jit
def _load_weights(probs, place, size):
    """Probabilities in units of 2⁻⁶²: scaling by a power of two rounds nothing."""
    share = tl.load(probs + place, mask=place < size, other=0.0)
    return (share * WHOLE).to(tl.int64)


@triton.jit
def _edge(values, probs, size, floor, wanted, WEIGHTED: tl.constexpr, LANES: tl.constexpr, PARTS: tl.constexpr):
    """(the largest key t ≥ floor with Σ weights of keys ≥ t at least `wanted`, Σ weights of keys > t); the lowest key from floor on if all weigh less.

    A token weighs its probability, or 1. At least one key must be ≥ floor.
    """
    lane = tl.arange(0, LANES)
    low = floor
    high = tl.full((), HIGHEST, tl.int32)
    above = tl.full((), 0, tl.int64)
    while high.to(tl.int64) - low.to(tl.int64) > 1:
        span = high.to(tl.int64) - low.to(tl.int64)
        first = (low + (span + 3) // 4).to(tl.int32)
        second = (low + (span + 1) // 2).to(tl.int32)
        third = (low + (3 * span + 3) // 4).to(tl.int32)
        from_first = tl.zeros((LANES,), tl.int64)
        from_second = tl.zeros((LANES,), tl.int64)
        from_third = tl.zeros((LANES,), tl.int64)
        lowest = tl.full((LANES,), HIGHEST, tl.int32)
        highest = tl.full((LANES,), LOWEST, tl.int32)
        for start in range(0, size, LANES * PARTS):
            for part in tl.static_range(PARTS):
                place = start + part * LANES + lane
                keys = _load_keys(values, place, size)
                weights = tl.full((LANES,), 1, tl.int64)
                if WEIGHTED:
                    weights = _load_weights(probs, place, size)
                from_first += tl.where(keys >= first, weights, 0)
                from_second += tl.where(keys >= second, weights, 0)
                from_third += tl.where(keys >= third, weights, 0)
                lowest = tl.minimum(lowest, tl.where(keys >= low, keys, HIGHEST))
                highest = tl.maximum(highest, tl.where(keys < high, keys, LOWEST))
        sum_first, sum_second, sum_third = tl.sum(from_first, 0), tl.sum(from_second, 0), tl.sum(from_third, 0)
        # The sums fall from the first to the third.
        above = tl.where(
            sum_third >= wanted,
            above,
            tl.where(sum_second >= wanted, sum_third, tl.where(sum_first >= wanted, sum_second, sum_first)),
        )
        high = tl.where(
            sum_third >= wanted,
            high,
            tl.where(sum_second >= wanted, third, tl.where(sum_first >= wanted, second, first)),
        )
        low = tl.where(
            sum_third >= wanted,
            third,
            tl.where(sum_second >= wanted, second, tl.where(sum_first >= wanted, first, low)),
        )
        # No key stands outside of these, so that no sum changes on the way to them.
        low = tl.maximum(low, tl.min(lowest, 0))
        high = tl.minimum(high, tl.max(highest, 0) + 1)
    return low, above


@triton.jit
def _limit(scaled, settings, limited, cuts, num_rows, size, LANES: tl.constexpr, PARTS: tl.constexpr):
    """Key of the lowest value that top-k and min-p leave of a row, and the row with −∞ below it."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    values = scaled + row * size
    top_k = tl.load(settings + num_rows + row)
    min_p = tl.load(settings + 3 * num_rows + row)
    cut = tl.full((), LOWEST, tl.int32)
    if top_k > 0:
        wanted = tl.minimum(top_k, size * 1.0).to(tl.int64)
        cut, _ = _edge(values, values, size, cut, wanted, False, LANES, PARTS)
    if min_p > 0:
        best = tl.full((LANES,), float("-inf"), tl.float32)
        for start in range(0, size, LANES):
            place = start + lane
            best = tl.maximum(best, tl.load(values + place, mask=place < size, other=float("-inf")))
        top = tl.max(best, 0)
        lowest = tl.full((LANES,), HIGHEST, tl.int32)
        for start in range(0, size, LANES):
            place = start + lane
            behind = tl.load(values + place, mask=place < size, other=float("-inf")) - top
            # Float64's exponential, rounded once.
            ratio = tl.exp(behind.to(tl.float64)).to(tl.float32)
            lowest = tl.minimum(
                lowest, tl.where(ratio >= min_p.to(tl.float32), _load_keys(values, place, size), HIGHEST)
            )
        cut = tl.maximum(cut, tl.min(lowest, 0))
    tl.store(cuts + row, cut)
    for start in range(0, size, LANES):
        place = start + lane
        value = tl.load(values + place, mask=place < size, other=0.0)
        left = tl.where(ordered_keys(value, place, 0, size) >= cut, value, float("-inf"))
        tl.store(limited + row * size + place, left, mask=place < size)


@triton.jit
def _room(values, probs, size, edge, above, wanted, LANES: tl.constexpr):
    """(number of keys above the edge, how many of those at it may stay: the fewest that reach what is wanted, or all if that is 0)."""
    lane = tl.arange(0, LANES)
    better = tl.zeros((LANES,), tl.int32)
    equal = tl.zeros((LANES,), tl.int32)
    weight = tl.zeros((LANES,), tl.int64)
    for start in range(0, size, LANES):
        place = start + lane
        keys = _load_keys(values, place, size)
        better += (keys > edge).to(tl.int32)
        equal += (keys == edge).to(tl.int32)
        # Equal values are equally likely.
        weight = tl.maximum(weight, tl.where(keys == edge, _load_weights(probs, place, size), 0))
    share = tl.max(weight, 0)
    room = tl.sum(equal, 0).to(tl.int64)
    if (share > 0) & (wanted > 0):
        room = tl.minimum(room, (wanted - above + share - 1) // share)
    return tl.sum(better, 0), room.to(tl.int32)


@triton.jit
def _keep(
    scaled,
    probs,
    settings,
    cuts,
    kept,
    words,
    over_cap,
    num_rows,
    size,
    num_words,
    LANES: tl.constexpr,
    PARTS: tl.constexpr,
):
    """A row's candidates: its values with −∞ for all others, and their bits."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    values = scaled + row * size
    top_p = tl.load(settings + 2 * num_rows + row)
    edge = tl.load(cuts + row)
    wanted = tl.full((), 0, tl.int64)
    above = tl.full((), 0, tl.int64)
    if top_p < 1:
        wanted = tl.ceil(top_p * WHOLE).to(tl.int64)
        edge, above = _edge(values, probs + row * size, size, edge, wanted, True, LANES, PARTS)
    truncates = (tl.load(settings + num_rows + row) > 0) | (top_p < 1) | (tl.load(settings + 3 * num_rows + row) > 0)
    better, room = _room(values, probs + row * size, size, edge, above, wanted, LANES)
    exceeds = truncates & ((better + room).to(tl.float64) > tl.load(settings + 4 * num_rows + row))
    tl.store(over_cap + row, exceeds.to(tl.int8))
    # Of a row that keeps everything, every key stays and no bit is set.
    whole = tl.where(exceeds, 1, tl.where(truncates, 0, 1))
    edge = tl.where(whole > 0, LOWEST, edge)
    used = 0
    for start in range(0, size, LANES):
        place = start + lane
        value = tl.load(values + place, mask=place < size, other=0.0)
        keys = ordered_keys(value, place, 0, size)
        equal = (keys == edge).to(tl.int32)
        # NaN stays, so that whoever draws is told.
        chosen = (keys > edge) | ((equal > 0) & (used + tl.cumsum(equal, 0) <= room)) | (value != value)
        used += tl.sum(equal, 0)
        tl.store(kept + row * size + place, tl.where(chosen, value, float("-inf")), mask=place < size)
        # Bit 31 is the sign; the bits of a word are distinct, so adding them sets them.
        bits = tl.reshape((chosen.to(tl.int32) - whole * chosen.to(tl.int32)) << (lane % 32), (LANES // 32, 32))
        word = start // 32 + tl.arange(0, LANES // 32)
        tl.store(words + row * num_words + word, tl.sum(bits, 1), mask=word < num_words)


def truncate(scaled_BV: Tensor, settings_5B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(scaled_BV with −inf outside the candidates, words_BW, over_cap_B) as `candidates.Candidates` describes; nothing waits for the host.

    Raises ValueError unless the logits are float32.
    """
    if scaled_BV.dtype != torch.float32:
        raise ValueError(
            f"backend triton truncates float32 logits; got {scaled_BV.dtype}. Use backend torch for those."
        )
    (num_rows, size), device = scaled_BV.shape, scaled_BV.device
    num_words = triton.cdiv(size, 32)
    scaled_BV, settings_5B = scaled_BV.contiguous(), settings_5B.contiguous()
    words_BW = torch.empty(num_rows, num_words, dtype=torch.int32, device=device)
    over_cap_B = torch.empty(num_rows, dtype=torch.int8, device=device)
    if not num_rows:
        return scaled_BV, words_BW, over_cap_B.bool()
    limited_BV, kept_BV = torch.empty_like(scaled_BV), torch.empty_like(scaled_BV)
    cuts_B = torch.empty(num_rows, dtype=torch.int32, device=device)
    lanes, parts, num_warps = (64, 2, 1) if interpreting() else (2048, 2, 16)
    _limit[(num_rows,)](
        scaled_BV, settings_5B, limited_BV, cuts_B, num_rows, size, LANES=lanes, PARTS=parts, num_warps=num_warps
    )
    # The library's softmax, as the definition's.
    probs_BV = limited_BV.log_softmax(-1).exp_()
    _keep[(num_rows,)](
        scaled_BV,
        probs_BV,
        settings_5B,
        cuts_B,
        kept_BV,
        words_BW,
        over_cap_B,
        num_rows,
        size,
        num_words,
        LANES=lanes,
        PARTS=parts,
        num_warps=num_warps,
    )
    return kept_BV, words_BW, over_cap_B.bool()
