"""What one optimiser step reports about ratios, KL, masks and supports; every mean is over all trained tokens, masked or not.

`<name>_after_mask` is the same sum with masked sequences' tokens at 0, over the unmasked count. Computed in float64.
Axes: B sequences of the step, N trained tokens of the step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samepath.rl.diagnostics.numerics import NumericsGap, sampler_kl
from samepath.rl.objective.kl import k1, k3, unbiased_kl
from samepath.rl.objective.objective import LossInputs, LossTerms

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadStatistics:
    """What the log-probability head saw on one micro-batch, beside the log-probability. Only trained rows are read."""

    entropy_N: Tensor
    """[N] nats, over the full vocabulary."""
    kept_mass_N: Tensor
    """[N] learner's full-vocabulary probability of the recorded support; 1 without one."""
    support_size_N: Tensor
    """[N] candidates in the recorded support; 0 where the support is the full vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTokens:
    """All trained tokens of one optimiser step, float64 on the CPU (flags bool); made by `gather_step`."""

    sequence_N: Tensor
    """[N] int64 index into the step's sequences."""
    logprobs_N: Tensor
    """[N] nats, the learner."""
    sampler_logprobs_N: Tensor
    """[N] nats, the engine."""
    reference_logprobs_N: Tensor | None
    """[N] nats, the reference; None if the step used none."""
    ratio_N: Tensor
    """[N] the surrogate's unclipped ratio."""
    clipped_low_N: Tensor
    """[N] bool, True where the lower clip acted."""
    clipped_high_N: Tensor
    """[N] bool, True where the upper clip acted."""
    entropy_N: Tensor
    """[N] nats, over the full vocabulary."""
    kept_mass_N: Tensor
    """[N] probability of the recorded support, 1 without one."""
    support_size_N: Tensor
    """[N] candidates in the support; 0 where it is the full vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSequences:
    """All sequences of one optimiser step, on the CPU; made by `gather_step`."""

    advantages_B: Tensor
    """[B] advantages."""
    off_policy_B: Tensor
    """[B] nats per token, mean log(π_sampler/π)."""
    kept_B: Tensor
    """[B] bool, False where the surrogate was masked."""


def gather_step(
    inputs: Sequence[LossInputs], terms: Sequence[LossTerms], heads: Sequence[HeadStatistics]
) -> tuple[StepTokens, StepSequences]:
    """Join the micro-batches of one optimiser step: trained rows only, sequences numbered through, on the CPU in float64.

    Raises ValueError if the three do not have one item for each micro-batch, or only some micro-batches have a reference.
    """
    if not len(inputs) == len(terms) == len(heads) > 0:
        raise ValueError(
            f"A step needs inputs, terms and head statistics of each of its micro-batches; got {len(inputs)}, {len(terms)} and {len(heads)}."
        )
    references = [one.reference_logprobs_N for one in inputs if one.reference_logprobs_N is not None]
    if len(references) not in (0, len(inputs)):
        raise ValueError(
            f"All micro-batches of a step must have reference log-probabilities or none; got {len(references)} of {len(inputs)}."
        )
    offsets = np.cumsum([0, *(one.advantages_B.shape[0] for one in inputs)])
    trained = [one.trained_N for one in inputs]

    def joined(rows: Sequence[Tensor]) -> Tensor:
        return torch.cat([row.detach()[mask].cpu() for row, mask in zip(rows, trained, strict=True)])

    tokens = StepTokens(
        sequence_N=joined([one.sequence_N + int(offset) for one, offset in zip(inputs, offsets, strict=False)]),
        logprobs_N=joined([one.logprobs_N for one in terms]).double(),
        sampler_logprobs_N=joined([one.sampler_logprobs_N for one in inputs]).double(),
        reference_logprobs_N=joined(references).double() if references else None,
        ratio_N=joined([one.ratio_N for one in terms]).double(),
        clipped_low_N=joined([one.clipped_low_N for one in terms]),
        clipped_high_N=joined([one.clipped_high_N for one in terms]),
        entropy_N=joined([one.entropy_N for one in heads]).double(),
        kept_mass_N=joined([one.kept_mass_N for one in heads]).double(),
        support_size_N=joined([one.support_size_N for one in heads]).double(),
    )
    sequences = StepSequences(
        advantages_B=torch.cat([one.advantages_B.cpu() for one in inputs]).double(),
        off_policy_B=torch.cat([one.off_policy_B.cpu() for one in terms]).double(),
        kept_B=torch.cat([one.kept_B.cpu() for one in terms]),
    )
    return tokens, sequences


def step_metrics(tokens: StepTokens, sequences: StepSequences, numerics: NumericsGap | None) -> dict[str, float]:
    """Every `policy/…` and `kl/…` number of one optimiser step (units: nats, ratios, shares from 0 to 1).

    `numerics` is the sampler/learner gap last measured at equal weights (lag 0, first pass); what the sampler KL exceeds it by is
    drift. None, before any such measurement, leaves that split out. Raises ValueError without trained tokens.
    """
    if tokens.logprobs_N.numel() == 0:
        raise ValueError(
            "A step's metrics need at least one trained token; got none. Skip the step instead of reporting it."
        )
    tokens = _in_float64(tokens)
    kept_N = sequences.kept_B[tokens.sequence_N].double()
    metrics = {
        **_before_and_after("policy/ratio", tokens.ratio_N, kept_N),
        **_before_and_after("policy/clip_low", tokens.clipped_low_N.double(), kept_N),
        **_before_and_after("policy/clip_high", tokens.clipped_high_N.double(), kept_N),
        "policy/entropy": float(tokens.entropy_N.mean()),
    }
    metrics |= _effective_sample_size(tokens, kept_N)
    metrics |= _masked_shares(tokens, sequences)
    metrics |= _support(tokens)
    metrics |= _reference_kl(tokens, kept_N)
    metrics |= _sampler_kl(tokens, kept_N, numerics)
    return metrics


def quantiles(name: str, values: NDArray[np.generic]) -> dict[str, float]:
    """`<name>_p50`, `_p90`, `_p99` and `_max` with linear interpolation; nothing for an empty array."""
    if values.size == 0:
        return {}
    points = np.quantile(values.astype(np.float64), list(QUANTILES.values()))
    return {f"{name}_{suffix}": float(point) for suffix, point in zip(QUANTILES, points, strict=True)}


def _in_float64(tokens: StepTokens) -> StepTokens:
    values = {field.name: getattr(tokens, field.name) for field in fields(tokens)}
    return StepTokens(
        **{
            name: value.double() if value is not None and value.is_floating_point() else value
            for name, value in values.items()
        }
    )


def _before_and_after(name: str, values_N: Tensor, kept_N: Tensor) -> dict[str, float]:
    return {name: float(values_N.mean()), f"{name}_after_mask": float((values_N * kept_N).mean())}


def _effective_sample_size(tokens: StepTokens, kept_N: Tensor) -> dict[str, float]:
    """(Σρ)²/(N·Σρ²) with ρ = π/π_sampler: 1 when all tokens weigh the same, 1/N when one outweighs all others."""
    log_ratio_N = tokens.logprobs_N - tokens.sampler_logprobs_N
    # The largest is taken out, which changes no share and keeps exp in range.
    ratio_N = (log_ratio_N - log_ratio_N.max()).exp()
    metrics = {}
    for name, weight_N in (("policy/ess", ratio_N), ("policy/ess_after_mask", ratio_N * kept_N)):
        square_sum = float(weight_N.square().sum())
        metrics[name] = float(weight_N.sum()) ** 2 / (weight_N.numel() * square_sum) if square_sum > 0 else 0.0
    return metrics


def _masked_shares(tokens: StepTokens, sequences: StepSequences) -> dict[str, float]:
    """Masked share of sequences and tokens, all and of those with negative advantage, and the statistic behind the mask."""
    lengths_B = torch.bincount(tokens.sequence_N, minlength=sequences.kept_B.shape[0])
    present_B = lengths_B > 0
    negative_B = present_B & (sequences.advantages_B < 0)
    masked_B = present_B & ~sequences.kept_B

    def share(part_B: Tensor, whole_B: Tensor, weight_B: Tensor) -> float:
        whole = int((whole_B * weight_B).sum())
        return int((part_B * weight_B).sum()) / whole if whole else 0.0

    ones_B = torch.ones_like(lengths_B)
    return {
        "policy/masked_sequences": share(masked_B, present_B, ones_B),
        "policy/masked_tokens": share(masked_B, present_B, lengths_B),
        "policy/masked_sequences_negative": share(masked_B & negative_B, negative_B, ones_B),
        "policy/masked_tokens_negative": share(masked_B & negative_B, negative_B, lengths_B),
        **quantiles("policy/off_policy", sequences.off_policy_B[present_B].numpy()),
    }


def _support(tokens: StepTokens) -> dict[str, float]:
    recorded_N = tokens.support_size_N > 0
    return {
        "policy/support_full": float((~recorded_N).double().mean()),
        "policy/kept_mass": float(tokens.kept_mass_N.mean()),
        "policy/kept_mass_min": float(tokens.kept_mass_N.min()),
        **quantiles("policy/support_size", tokens.support_size_N[recorded_N].numpy()),
    }


def _reference_kl(tokens: StepTokens, kept_N: Tensor) -> dict[str, float]:
    if tokens.reference_logprobs_N is None:
        return {}
    unbiased_N = unbiased_kl(tokens.logprobs_N, tokens.sampler_logprobs_N, tokens.reference_logprobs_N)
    return {
        **_before_and_after("kl/reference_unbiased", unbiased_N, kept_N),
        **_before_and_after("kl/reference_k1", k1(tokens.logprobs_N, tokens.reference_logprobs_N), kept_N),
        **_before_and_after("kl/reference_k3", k3(tokens.logprobs_N, tokens.reference_logprobs_N), kept_N),
    }


def _sampler_kl(tokens: StepTokens, kept_N: Tensor, numerics: NumericsGap | None) -> dict[str, float]:
    """KL(π_sampler‖π) from π_sampler's own samples, its split into numerics and drift, and the largest single gap."""
    k1_N, k3_N = sampler_kl(tokens.logprobs_N, tokens.sampler_logprobs_N)
    metrics = {
        **_before_and_after("kl/sampler_k1", k1_N, kept_N),
        **_before_and_after("kl/sampler_k3", k3_N, kept_N),
        "kl/sampler_gap_max": float(k1_N.abs().max()),
    }
    if numerics is not None:
        metrics["kl/sampler_k1_numerics"] = numerics.k1
        metrics["kl/sampler_k3_numerics"] = numerics.k3
        metrics["kl/sampler_k1_drift"] = metrics["kl/sampler_k1"] - numerics.k1
        metrics["kl/sampler_k3_drift"] = metrics["kl/sampler_k3"] - numerics.k3
    return metrics
