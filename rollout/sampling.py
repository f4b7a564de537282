"""Drawing tokens: temperature, top-k, top-p, min-p, one seed a request, and the support that the learner must renormalise over.

Axes: B rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from samepath.kernels.backend import Backend
from samepath.kernels.head.candidates import truncate
from samepath.kernels.head.logprob import sampling_logprobs
from samepath.rollout.sampling_settings import SamplingSettings

DRAW_BLOCK = 512
"""Tokens of one block of the search for a draw."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One sampled token per row."""

    temperature_B: Tensor
    """[B] that divided the logits; 1 where the best token was taken."""
    tokens_B: Tensor
    """int64 [B]."""
    logprobs_B: Tensor
    """[B] nats under the sampling distribution."""
    words_BW: Tensor | None
    """int32 `kept_words` of the candidates; 0 for a row that draws from the full vocabulary. None if no row may truncate."""
    over_cap_B: Tensor
    """bool [B], True where the support exceeded its cap, so that the full vocabulary was drawn from."""


SETTING_ROWS = 5
"""Rows of `setting_rows`."""


def setting_rows(settings: Sequence[SamplingSettings]) -> NDArray[np.float64]:
    """[5, B]: temperature, top-k, top-p, min-p and cap of each row, as `draw` takes them; float64 holds them all exactly."""
    rows = [(entry.temperature, entry.top_k, entry.top_p, entry.min_p, entry.support_cap) for entry in settings]
    return np.array(rows, np.float64).reshape(-1, SETTING_ROWS).T


def uniforms(seeds_B: NDArray[np.uint64], counters_B: NDArray[np.int64]) -> NDArray[np.float64]:
    """One number in [0, 1) for each (seed, counter): SplitMix64, so a request's draws depend on nothing but itself."""
    with np.errstate(over="ignore"):
        z = seeds_B + (counters_B.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    fractions: NDArray[np.float64] = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return fractions


def invert_cumulative(logprobs_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """The token of each row at which the cumulative probability passes its uniform number; never one of probability 0.

    A large vocabulary is searched in two stages, blocks and then tokens of one block, because a running sum is slow.
    """
    if logprobs_BV.shape[1] <= 2 * DRAW_BLOCK:
        return _first_beyond(logprobs_BV.double().exp().cumsum(-1), uniforms_B[:, None])
    missing = -logprobs_BV.shape[1] % DRAW_BLOCK
    probs_BKW = pad(logprobs_BV.exp(), (0, missing)).view(len(uniforms_B), -1, DRAW_BLOCK)
    sums_BK = probs_BKW.sum(-1, dtype=torch.float64)
    cumulative_BK = sums_BK.cumsum(-1)
    block_B1 = _first_beyond(cumulative_BK, uniforms_B[:, None])[:, None]
    own_B1 = sums_BK.gather(1, block_B1)
    target_B1 = uniforms_B[:, None] * cumulative_BK[:, -1:] - (cumulative_BK.gather(1, block_B1) - own_B1)
    # Two ways of adding a block differ by rounding: a share below 1 of the second way's total stays inside the block.
    left_B1 = (target_B1 / own_B1).clamp(0, 1 - 2.0**-53)
    block_B = block_B1[:, 0]
    inside_BW = probs_BKW[torch.arange(len(block_B), device=block_B.device), block_B].double().cumsum(-1)
    return block_B * DRAW_BLOCK + _first_beyond(inside_BW, left_B1)


def _first_beyond(cumulative_BV: Tensor, shares_B1: Tensor) -> Tensor:
    """First index whose cumulative value is above the share of the row's total; shares are below 1."""
    last = cumulative_BV.shape[1] - 1
    return (cumulative_BV <= shares_B1 * cumulative_BV[:, -1:]).sum(-1).clamp_(max=last)


def draw(
    logits_BV: Tensor, settings_5B: Tensor, uniforms_B: Tensor, *, truncates: bool, backend: Backend = "torch"
) -> Draw:
    """Sample one token per row by inverting the cumulative distribution at `uniforms_B` (float64).

    `settings_5B` are the `setting_rows` on the logits' device, `truncates` says whether any of them truncates; nothing waits for the host.
    """
    greedy_B = settings_5B[0] == 0
    temperature_B = settings_5B[0].masked_fill(greedy_B, 1).to(logits_BV.dtype)
    words_BW, over_cap_B = None, torch.zeros_like(greedy_B)
    if truncates:
        found = truncate(logits_BV, temperature_B, settings_5B, backend)
        words_BW, over_cap_B = found.words_BW, found.over_cap_B
        logprobs_BV = found.scaled_BV.log_softmax(-1)
    else:
        logprobs_BV = sampling_logprobs(logits_BV, temperature_B, None)
    tokens_B = invert_cumulative(logprobs_BV, uniforms_B)
    # On a GPU the question would cost a wait.
    if greedy_B.device.type != "cpu" or bool(greedy_B.any()):
        tokens_B = torch.where(greedy_B, logprobs_BV.argmax(-1), tokens_B)
    return Draw(
        temperature_B=temperature_B,
        tokens_B=tokens_B,
        logprobs_B=logprobs_BV.gather(1, tokens_B[:, None]).squeeze(1),
        words_BW=words_BW,
        over_cap_B=over_cap_B,
    )
