"""What one step reports about ratios, KL, masks and supports; every mean is over all its tokens in the loss, masked or not.

`<name>_after_mask` is the same sum with masked sequences' tokens at 0, over the unmasked count. Computed in float64, once over all passes
and updates of the step: no number depends on how the step was cut.
Axes: B rollouts of the step, J what the off-policy mask decides on (rollouts or segments), M trained tokens of the step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samepath.rl.diagnostics.numerics import NumericsGap, sampler_kl
from samepath.rl.objective.kl import k1, k3, unbiased_kl
from samepath.rl.objective.loss_inputs import LossInputs
from samepath.rl.objective.objective import LossTerms

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadStatistics:
    """What the log-probability head saw, beside the log-probability. Only rows in the loss are read."""

    entropy_M: Tensor
    """[M] nats, over the full vocabulary."""
    kept_mass_M: Tensor
    """[M] learner's full-vocabulary probability of the recorded support; 1 without one."""
    support_size_M: Tensor
    """[M] candidates in the recorded support; 0 where the support is the full vocabulary."""
    reference_kl_M: Tensor | None = None
    """[M] nats, KL(π‖π_ref) over the full vocabulary; None without a reference."""


Columns = TypeVar("Columns", LossInputs, LossTerms, HeadStatistics)
NUMBERS = {"rollout_M": "advantages_B", "rollout_J": "advantages_B", "unit_M": "rollout_J"}
"""Columns that number entries of other columns."""


def joined(parts: Sequence[Columns]) -> Columns:
    """One record of all passes, in their order: columns laid end to end, rollouts numbered through, as often as a pass holds a part of one.

    What is known of rollouts spread over passes (`sums`) is left out. Raises ValueError without passes, and if only some of them have an
    optional column.
    """
    if not parts:
        raise ValueError("A step has at least one pass; got none.")
    values: dict[str, Tensor | None] = {}
    for field in fields(parts[0]):
        if field.name == "sums":
            continue
        columns = [column for part in parts if (column := getattr(part, field.name)) is not None]
        if len(columns) not in (0, len(parts)):
            raise ValueError(
                f"All passes of a step must have {field.name} or none; got {len(columns)} of {len(parts)}."
            )
        if field.name in NUMBERS:
            columns = _numbered_through(columns, parts, NUMBERS[field.name])
        values[field.name] = torch.cat(columns).detach() if columns else None
    return type(parts[0])(**values)  # type: ignore[arg-type]


def _numbered_through(columns: Sequence[Tensor], parts: Sequence[object], numbered: str) -> list[Tensor]:
    """The passes' columns of numbers, where those of the second go on behind the entries `numbered` of the first."""
    sizes = [0, *(len(getattr(part, numbered)) for part in parts)]
    return [column + int(first) for column, first in zip(columns, np.cumsum(sizes))]


def step_metrics(
    inputs: LossInputs, terms: LossTerms, head: HeadStatistics, numerics: NumericsGap | None
) -> dict[str, float]:
    """Every `policy/…` and `kl/…` number of one step (units: nats, ratios, shares from 0 to 1), over all its tokens in the loss.

    Each token counts as it was at the update that trained it. `numerics` is the sampler/learner gap last measured at equal weights;
    what the sampler KL exceeds it by is drift. None, before any such measurement, leaves that split out. Raises ValueError without a
    token in the loss.
    """
    in_loss_M = inputs.in_loss_M
    if not bool(in_loss_M.any()):
        raise ValueError("A step's metrics need at least one token in the loss; got none. Leave them out.")
    inputs, terms, head = (
        _in_float64(inputs, in_loss_M),
        _in_float64(terms, in_loss_M),
        _in_float64(head, in_loss_M),
    )
    kept_M = terms.kept_J[inputs.unit_M].double()
    return {
        **_before_and_after("policy/ratio", terms.ratio_M, kept_M),
        **_before_and_after("policy/clip_low", terms.clipped_low_M.double(), kept_M),
        **_before_and_after("policy/clip_high", terms.clipped_high_M.double(), kept_M),
        "policy/entropy": float(head.entropy_M.mean()),
        **_effective_sample_size(terms.logprobs_M - inputs.sampler_logprobs_M, kept_M),
        **_masked_shares(inputs, terms),
        **_support(head),
        **_reference_kl(terms.logprobs_M, inputs, head, kept_M),
        **_sampler_kl(terms.logprobs_M, inputs.sampler_logprobs_M, kept_M, numerics),
    }


def quantiles(name: str, values: NDArray[np.generic]) -> dict[str, float]:
    """`<name>_p50`, `_p90`, `_p99` and `_max` with linear interpolation; nothing for an empty array."""
    if values.size == 0:
        return {}
    points = np.quantile(values.astype(np.float64), list(QUANTILES.values()))
    return {f"{name}_{suffix}": float(point) for suffix, point in zip(QUANTILES, points, strict=True)}


def _in_float64(columns: Columns, rows_M: Tensor) -> Columns:
    """The given rows (bool) of every column by token, and every other column; numbers in float64."""
    values = {field.name: getattr(columns, field.name) for field in fields(columns)}
    for name, value in values.items():
        if isinstance(value, Tensor):
            value = value[rows_M] if name.endswith("_M") else value
            values[name] = value.double() if value.is_floating_point() else value
    return replace(columns, **values)


def _before_and_after(name: str, values_M: Tensor, kept_M: Tensor) -> dict[str, float]:
    return {name: float(values_M.mean()), f"{name}_after_mask": float((values_M * kept_M).mean())}


def _effective_sample_size(log_ratio_M: Tensor, kept_M: Tensor) -> dict[str, float]:
    """(Σρ)²/(M·Σρ²) with ρ = π/π_sampler: 1 when all tokens weigh the same, 1/M when one outweighs all others."""
    # The largest is taken out, which changes no share and keeps exp in range.
    ratio_M = (log_ratio_M - log_ratio_M.max()).exp()
    metrics = {}
    for name, weight_M in (("policy/ess", ratio_M), ("policy/ess_after_mask", ratio_M * kept_M)):
        square_sum = float(weight_M.square().sum())
        metrics[name] = float(weight_M.sum()) ** 2 / (weight_M.numel() * square_sum) if square_sum > 0 else 0.0
    return metrics


def _masked_shares(inputs: LossInputs, terms: LossTerms) -> dict[str, float]:
    """Masked share of what the mask decides on and of tokens, all and of those with negative advantage, and the statistic behind it."""
    lengths_J = torch.bincount(inputs.unit_M, minlength=len(terms.kept_J))
    present_J = lengths_J > 0
    negative_J = present_J & (inputs.advantages_B[inputs.rollout_J] < 0)
    masked_J = present_J & ~terms.kept_J

    def share(part_J: Tensor, whole_J: Tensor, weight_J: Tensor) -> float:
        whole = int((whole_J * weight_J).sum())
        return int((part_J * weight_J).sum()) / whole if whole else 0.0

    ones_J = torch.ones_like(lengths_J)
    return {
        "policy/masked_sequences": share(masked_J, present_J, ones_J),
        "policy/masked_tokens": share(masked_J, present_J, lengths_J),
        "policy/masked_sequences_negative": share(masked_J & negative_J, negative_J, ones_J),
        "policy/masked_tokens_negative": share(masked_J & negative_J, negative_J, lengths_J),
        **quantiles("policy/off_policy", terms.off_policy_J[present_J].numpy()),
    }


def _support(head: HeadStatistics) -> dict[str, float]:
    recorded_M = head.support_size_M > 0
    return {
        "policy/support_full": float((~recorded_M).double().mean()),
        "policy/kept_mass": float(head.kept_mass_M.mean()),
        "policy/kept_mass_min": float(head.kept_mass_M.min()),
        **quantiles("policy/support_size", head.support_size_M[recorded_M].numpy()),
    }


def _reference_kl(logprobs_M: Tensor, inputs: LossInputs, head: HeadStatistics, kept_M: Tensor) -> dict[str, float]:
    reference_M = inputs.reference_logprobs_M
    if reference_M is None:
        return {}
    full = {} if head.reference_kl_M is None else _before_and_after("kl/reference_full", head.reference_kl_M, kept_M)
    unbiased_M = unbiased_kl(logprobs_M, inputs.sampler_logprobs_M, reference_M)
    return {
        **_before_and_after("kl/reference_unbiased", unbiased_M, kept_M),
        **_before_and_after("kl/reference_k1", k1(logprobs_M, reference_M), kept_M),
        **_before_and_after("kl/reference_k3", k3(logprobs_M, reference_M), kept_M),
        **full,
    }


def _sampler_kl(
    logprobs_M: Tensor, sampler_logprobs_M: Tensor, kept_M: Tensor, numerics: NumericsGap | None
) -> dict[str, float]:
    """KL(π_sampler‖π) from π_sampler's own samples, its split into numerics and drift, and the largest single gap."""
    k1_M, k3_M = sampler_kl(logprobs_M, sampler_logprobs_M)
    metrics = {
        **_before_and_after("kl/sampler_k1", k1_M, kept_M),
        **_before_and_after("kl/sampler_k3", k3_M, kept_M),
        "kl/sampler_gap_max": float(k1_M.abs().max()),
    }
    if numerics is not None:
        metrics["kl/sampler_k1_numerics"] = numerics.k1
        metrics["kl/sampler_k3_numerics"] = numerics.k3
        metrics["kl/sampler_k1_drift"] = metrics["kl/sampler_k1"] - numerics.k1
        metrics["kl/sampler_k3_drift"] = metrics["kl/sampler_k3"] - numerics.k3
    return metrics
