"""Rollouts larger than a pass: what their loss needs to know of all their tokens, before any pass of the update is trained on.

Axes: B rollouts, J what the off-policy mask decides on, M trained tokens.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from samepath.rl.diagnostics.spread import once_each
from samepath.rl.diagnostics.step import joined
from samepath.rl.learner.mini_batches import MicroBatch, MiniBatch, PassPlan
from samepath.rl.learner.pass_runner import BY_ITSELF, PassRunner
from samepath.rl.objective.aggregation import rollout_mean
from samepath.rl.objective.importance_ratio import at_least_float32, importance_weight
from samepath.rl.objective.loss_inputs import LossInputs, RolloutSums
from samepath.rl.objective.own_surrogate import SurrogateError, own_surrogate
from samepath.rl.objective.sequence_mask import kept_sequences, off_policy_statistic
from samepath.rl.recipe.objective import ObjectiveSettings, SurrogateName


def with_sums(
    passes: MiniBatch,
    settings: ObjectiveSettings,
    scored: Callable[[MicroBatch], Tensor],
    runner: PassRunner = BY_ITSELF,
) -> MiniBatch:
    """The passes of one optimiser step; those that hold a part of a rollout know the sums over all of it.

    `scored` gives the learner's log-probabilities `[M]` of a pass at the present weights, without gradient; it is not called if every rollout
    stands whole in a pass. Each rank scores its own.
    """
    seen = Counter(place for plan in passes.plans for place in plan.rollouts)
    held = [index for index, plan in enumerate(passes.plans) if any(seen[place] > 1 for place in plan.rollouts)]
    if not held:
        return passes
    _require_by_token(settings)

    own_parts = {index: part for index in held if (part := passes.own.get(index)) is not None}
    scores = runner.run([passes.plans[index].rank for index in held], lambda place: scored(own_parts[held[place]]))
    own_scores = {
        held[place]: _Scored(inputs=own_parts[held[place]].inputs, logprobs_M=logprobs_M)
        for place, logprobs_M in scores.items()
    }
    found = {index: one for part in runner.ranks.together(lambda: own_scores) for index, one in part.items()}
    sums = _sums_of_passes([passes.plans[index] for index in held], [found[index] for index in held], settings)
    by_place = dict(zip(held, sums, strict=True))
    own = {
        index: replace(part, inputs=replace(part.inputs, sums=by_place[index])) if index in by_place else part
        for index, part in passes.own.items()
    }
    return replace(passes, own=own)


def _require_by_token(settings: ObjectiveSettings) -> None:
    """Raise SurrogateError for a surrogate of the user's own that needs all tokens of a rollout in one pass."""
    if settings.surrogate in get_args(SurrogateName):
        return
    own = own_surrogate(settings.surrogate, settings.surrogate_options, settings.clip_low, settings.clip_high)
    if not own.by_token:
        raise SurrogateError(
            f"rl.objective.surrogate {own.path} gives a token another value where its rollout is cut, and a rollout of this step is larger than a pass. "
            "Raise learner.max_tokens_per_pass above the longest conversation, or compute each token's term from that token alone."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    """What a rank found of one of its passes."""

    inputs: LossInputs
    logprobs_M: Tensor


def _sums_of_passes(
    held: Sequence[PassPlan], scored: Sequence[_Scored], settings: ObjectiveSettings
) -> list[RolloutSums]:
    """Of each pass that holds a part of a spread rollout, in its own numbers."""
    rollouts = [place for part in held for place in part.rollouts]
    units = [place for part in held for place in part.units]
    inputs, _ = once_each(joined([one.inputs for one in scored]), rollouts, units)
    logprobs_M, count = at_least_float32(torch.cat([one.logprobs_M for one in scored])), len(inputs.advantages_B)
    sampler_M, old_M = inputs.sampler_logprobs_M, inputs.old_logprobs_M
    # A number that is not finite stops or leaves out the pass that holds it; here it must not reach the others.
    counted_M = inputs.in_loss_M & logprobs_M.isfinite() & sampler_M.isfinite() & old_M.isfinite()
    off_policy_J = off_policy_statistic(logprobs_M, sampler_M, inputs.unit_M, counted_M, len(inputs.rollout_J))
    kept_J = kept_sequences(inputs.advantages_B[inputs.rollout_J], off_policy_J, settings.off_policy_mask)
    weight_M = kept_J[inputs.unit_M] * importance_weight(old_M, sampler_M, settings.importance)
    policy_weight_B = rollout_mean(weight_M, inputs.rollout_M, counted_M, count)
    log_ratio_B = rollout_mean(logprobs_M - at_least_float32(old_M), inputs.rollout_M, counted_M, count)
    spread_B, spread_J = _several(rollouts), _several(units)
    sums = []
    for part in held:
        own_B = torch.from_numpy(np.searchsorted(np.unique(rollouts), part.rollouts))
        own_J = torch.from_numpy(np.searchsorted(np.unique(units), part.units))
        sums.append(
            RolloutSums(
                spread_B=spread_B[own_B],
                log_ratio_B=log_ratio_B[own_B],
                policy_weight_B=policy_weight_B[own_B],
                spread_J=spread_J[own_J],
                off_policy_J=off_policy_J[own_J],
            )
        )
    return sums


def _several(places: Sequence[int]) -> Tensor:
    """Bool, True for each different place, in ascending order, that more than one pass has."""
    return torch.from_numpy(np.unique(places, return_counts=True)[1] > 1)
