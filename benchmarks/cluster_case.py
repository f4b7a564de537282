"""A cluster on paper: its workers, its learner, the lengths of its responses, and what a model of it predicts.

Symbols: W workers with S samples each at a time, τ seconds a token of each, P groups of G samples a step, lag K, R ranks that learn r tokens a second each.
"""

import math
import random
from dataclasses import dataclass

DRAWS = 20_000
"""Samples from which the model takes means of lengths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterCase:
    """One cluster. Lengths are log-normal, cut at `longest`.

    Example:
        ClusterCase(workers=64, slots=16, token_s=0.01, groups=32, group_size=8, lag=1, ranks=8, rank_tokens_per_s=4000)
    """

    workers: int
    """W."""
    slots: int
    """S."""
    token_s: float
    """τ, seconds."""
    groups: int
    """P."""
    group_size: int
    """G."""
    lag: int
    """K, versions."""
    ranks: int
    """R."""
    rank_tokens_per_s: float
    """r, prompts included."""
    median: float = 80.0
    """Of the lengths, tokens."""
    sigma: float = 0.5
    """Of their logarithms."""
    longest: int = 1024
    """Tokens."""
    prompt: int = 16
    """Tokens of a prompt."""

    @property
    def samples(self) -> int:
        """P·G."""
        return self.groups * self.group_size

    def length(self, seed: int) -> int:
        """Tokens of the response of a seed: the same ones on any worker."""
        drawn = random.Random(seed).lognormvariate(math.log(self.median), self.sigma)
        return max(1, min(self.longest, round(drawn)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a cluster does when nothing but its own limits holds it up."""

    step_s: float
    """Seconds of a step: the largest of the three below."""
    learning_s: float
    """P·G·(E[length] + prompt) / (R·r)."""
    sampling_s: float
    """P·G·E[length]·τ / (W·S): all slots full."""
    longest_s: float
    """(E[longest of a step's samples]·τ + learning_s) / (K + 1): from the moment a step's groups are handed out until it is learned K + 1 steps
    pass, and its last answer is waited for."""
    lag: float
    """Mean over the samples, in versions: K, or with full slots what passes from a sample's start to its use, in steps: its own time and the
    learning of the step before."""

    @property
    def bound(self) -> str:
        """What the cluster waits for."""
        parts = {"learning": self.learning_s, "sampling": self.sampling_s, "the longest answer": self.longest_s}
        return max(parts, key=lambda name: parts[name])


def predicted(case: ClusterCase) -> Prediction:
    """The model's figures for K ≥ 1."""
    lengths = [case.length(seed) for seed in range(DRAWS)]
    mean = sum(lengths) / DRAWS
    batches = [lengths[first : first + case.samples] for first in range(0, DRAWS - case.samples + 1, case.samples)]
    longest = sum(map(max, batches)) / len(batches)
    learning_s = case.samples * (mean + case.prompt) / (case.ranks * case.rank_tokens_per_s)
    sampling_s = case.samples * mean * case.token_s / (case.workers * case.slots)
    longest_s = (longest * case.token_s + learning_s) / (case.lag + 1)
    step_s = max(learning_s, sampling_s, longest_s)
    under_way = case.workers * case.slots / case.samples
    return Prediction(
        step_s=step_s,
        learning_s=learning_s,
        sampling_s=sampling_s,
        longest_s=longest_s,
        lag=min(float(case.lag), under_way + learning_s / step_s) if sampling_s == step_s else float(case.lag),
    )
