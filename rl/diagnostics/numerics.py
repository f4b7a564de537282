"""The sampler/learner log-probability gap at equal weights: measured, and refused above a limit. Axes: M trained tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samepath.kernels.mkl_mode import row_mode_problem
from samepath.rl.batch.pack import PackedBatch, TrainSequence
from samepath.rl.objective.kl import k1, k3

ROUNDING_NATS = 1e-3
"""Smaller gaps look like sums in another order; stale weights or another temperature give larger ones."""


class NumericsMismatchError(RuntimeError):
    """Sampler and learner disagree although both are said to hold the same weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NumericsGap:
    """Sampler against learner at equal weights (lag 0, before the first optimiser step on the rollouts).

    Example:
        NumericsGap(k1=0.0, k3=0.0, max_abs=0.0, num_tokens=8192)  # the built-in engine in its batch-invariant mode
    """

    k1: float
    """Nats, mean log(π_sampler/π)."""
    k3: float
    """Nats, mean r − 1 − log r with r = π/π_sampler."""
    max_abs: float
    """Nats, largest |log π − log π_sampler| of one token."""
    num_tokens: int
    """Trained tokens measured."""


def sampler_kl(logprobs_M: Tensor, sampler_logprobs_M: Tensor) -> tuple[Tensor, Tensor]:
    """Per-token (k1, k3) estimates of KL(π_sampler‖π) from π_sampler's own samples: −log r and r − 1 − log r, r = π/π_sampler."""
    # k1 and k3 estimate KL(first‖second) where the first is the policy that sampled.
    return k1(sampler_logprobs_M, logprobs_M), k3(sampler_logprobs_M, logprobs_M)


def numerics_gap(logprobs_M: Tensor, sampler_logprobs_M: Tensor) -> NumericsGap:
    """Measure the gap over trained tokens that learner and sampler computed with the same weights. Raises ValueError for none."""
    if logprobs_M.numel() == 0:
        raise ValueError("The numerics gap needs at least one trained token at weight lag 0; got none.")
    k1_M, k3_M = sampler_kl(logprobs_M.detach().double(), sampler_logprobs_M.detach().double())
    return NumericsGap(
        k1=float(k1_M.mean()), k3=float(k3_M.mean()), max_abs=float(k1_M.abs().max()), num_tokens=k1_M.numel()
    )


def check_numerics_gap(gap: NumericsGap, limit: float, where: str, evidence: str = "") -> None:
    """Raise NumericsMismatchError if one token's gap is above `limit` (nats), or not a number; `where` names its sequence.

    `evidence` is what else was seen that tells the causes apart, as sentences.
    """
    # Written so that NaN is refused too.
    if not gap.max_abs <= limit:
        raise NumericsMismatchError(
            f"At equal weights sampler and learner log-probabilities must agree within {limit:g} nats; got a gap of {gap.max_abs:g} "
            f"in {where} (mean k3 {gap.k3:g} over {gap.num_tokens} tokens).{' ' * bool(evidence)}{evidence} Either the sampler holds stale weights, "
            "or its prefix cache "
            "outlived a weight update, or the two compute differently (kernels, precision, temperature, support, experts), or records of one "
            "sequence came with another. Check the weight version first, then clear the prefix cache, then compare the two on one prompt."
            f"{_rounding_hint(gap)}"
        )


def _rounding_hint(gap: NumericsGap) -> str:
    """What a gap of the size of rounding usually comes from."""
    if not gap.max_abs < ROUNDING_NATS:
        return ""
    here = row_mode_problem() or "MKL's mode is the right one here, so look at what `samepath doctor` measures"
    return f" A gap as small as this one usually means on a CPU that a row of a matrix product depends on the number of rows: {here}."


@dataclass(frozen=True, slots=True, kw_only=True)
class SameWeights:
    """Tokens of one pass that the learner scored at the weights that sampled them."""

    learner_M: Tensor
    """[M] nats."""
    sampler_M: Tensor
    """[M] nats."""
    places_M: Tensor
    """int64 [M] their sequences among all of the step."""


def same_weights(batch: PackedBatch, indices: Sequence[int], logprobs_M: Tensor, version: int) -> SameWeights:
    """The tokens of a pass that weights of `version`, the learner's now, sampled; `indices` are its sequences among all."""
    same_M = batch.version_M == version
    return SameWeights(
        learner_M=logprobs_M.detach()[same_M],
        sampler_M=batch.sampler_logprobs_M[same_M],
        places_M=torch.tensor(indices)[batch.sequence_M[same_M]],
    )


def _evidence(apart: int, compared: int, flip_rate: float) -> str:
    """Which sequences have a gap, and whether routes differ too: what one worker, one option and one record break looks different."""
    which = f"All {compared} sequences have one, as by something that all of them share."
    if apart < compared:
        which = f"{apart} of {compared} sequences have one and the others none, as by one worker, or by records of single sequences."
    flips = f" The live router leaves the recorded experts in {flip_rate:.0%} of (row, layer)." if flip_rate else ""
    return which + flips


class LagZero:
    """Gathers what sampler and learner gave the same tokens at the same weights: all of a step's, before its first optimiser step."""

    def __init__(self, sequences: Sequence[TrainSequence]) -> None:
        self._sequences = sequences
        self._seen: list[SameWeights] = []

    def add(self, tokens: SameWeights) -> None:
        """Take those of a pass."""
        self._seen.append(tokens)

    def gap(self, limit: float | None, flip_rate: float = 0.0) -> NumericsGap | None:
        """The gap over all tokens added, held to `limit` (nats) unless that is None; None without tokens.

        `flip_rate` is the share of (row, layer) in which the live router leaves the recorded route, for the message.

        Raises NumericsMismatchError, which names the sequence of the largest gap.
        """
        if not sum(len(tokens.learner_M) for tokens in self._seen):
            return None
        learner_M = torch.cat([tokens.learner_M for tokens in self._seen])
        sampler_M = torch.cat([tokens.sampler_M for tokens in self._seen])
        gap = numerics_gap(learner_M, sampler_M)
        if limit is not None:
            # NaN counts as the largest.
            places_M, gap_M = torch.cat([tokens.places_M for tokens in self._seen]), (learner_M - sampler_M).abs()
            apart, compared = (len(set(places.tolist())) for places in (places_M[~(gap_M <= limit)], places_M))
            check_numerics_gap(
                gap, limit, self._sequences[int(places_M[gap_M.argmax()])].name, _evidence(apart, compared, flip_rate)
            )
        return gap
