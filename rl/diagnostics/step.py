"""What one step reports about ratios, KL, masks and supports; every mean is over all its tokens in the loss, masked or not.

`<name>_after_mask` is the same sum with masked sequences' tokens at 0, over the unmasked count. Computed in float64, once over all passes
and updates of the step: no number depends on how the step was cut. Axes: B sequences of the step, M trained tokens of the step.
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


def joined(parts: Sequence[Columns]) -> Columns:
    """One record of all passes, in their order: columns laid end to end, sequences numbered through.

    Raises ValueError without passes, and if only some of them have an optional column.
    """
    if not parts:
        raise ValueError("A step has at least one pass; got none.")
    values: dict[str, Tensor | None] = {}
    for field in fields(parts[0]):
        columns = [column for part in parts if (column := getattr(part, field.name)) is not None]
        if len(columns) not in (0, len(parts)):
            raise ValueError(
                f"All passes of a step must have {field.name} or none; got {len(columns)} of {len(parts)}."
            )
        if field.name == "sequence_M":
            sizes = [0, *(len(part.advantages_B) for part in parts if isinstance(part, LossInputs))]
            columns = [column + int(first) for column, first in zip(columns, np.cumsum(sizes))]
        values[field.name] = torch.cat(columns).detach() if columns else None
    return type(parts[0])(**values)  # type: ignore[arg-type]


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
    kept_M = terms.kept_B[inputs.sequence_M].double()
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
    """The given rows (bool) of every column by token, and every column by sequence; numbers in float64."""
    values = {field.name: getattr(columns, field.name) for field in fields(columns)}
    for name, value in values.items():
        if value is not None:
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
    """Masked share of sequences and tokens, all and of those with negative advantage, and the statistic behind the mask."""
    lengths_B = torch.bincount(inputs.sequence_M, minlength=len(terms.kept_B))
    present_B = lengths_B > 0
    negative_B = present_B & (inputs.advantages_B < 0)
    masked_B = present_B & ~terms.kept_B

    def share(part_B: Tensor, whole_B: Tensor, weight_B: Tensor) -> float:
        whole = int((whole_B * weight_B).sum())
        return int((part_B * weight_B).sum()) / whole if whole else 0.0

    ones_B = torch.ones_like(lengths_B)
    return {
        "policy/masked_sequences": share(masked_B, present_B, ones_B),
        "policy/masked_tokens": share(masked_B, present_B, lengths_B),
        "policy/masked_sequences_negative": share(masked_B & negative_B, negative_B, ones_B),
        "policy/masked_tokens_negative": share(masked_B & negative_B, negative_B, lengths_B),
        **quantiles("policy/off_policy", terms.off_policy_B[present_B].numpy()),
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
