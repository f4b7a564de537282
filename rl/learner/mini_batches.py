"""A rollout batch cut into mini-batches of whole groups, and these into passes, with everything that is fixed before the first step.

All ranks cut alike; each packs the passes that it runs.

Axes: B rollouts, S their segments, J what the off-policy mask decides on (one or the other), M trained tokens, N rows run,
L mixture-of-experts layers, X experts chosen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samepath.model.policy import Policy
from samepath.rl.batch.cut import cut
from samepath.rl.batch.pack import PackedBatch, TrainSequence, pack
from samepath.rl.batch.route_check import RouteError
from samepath.rl.batch.shared_rows import Placed
from samepath.rl.batch.train_batch import TrainBatch
from samepath.rl.learner.pass_runner import PassRunner
from samepath.rl.learner.policy_checks import same_path
from samepath.rl.learner.policy_pass import run_policy
from samepath.rl.objective.aggregation import token_weights
from samepath.rl.objective.kl import beta_per_rollout
from samepath.rl.objective.loss_inputs import LossInputs
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rl.recipe.learner import LearnerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class PassPlan:
    """What all ranks know of a pass before it is packed."""

    sequences: tuple[int, ...]
    """Their places among the segments of the rollout batch."""
    rollouts: tuple[int, ...]
    """Places of their rollouts in the batch, in the order of the pass's own numbers; another pass may hold the rest of one."""
    units: tuple[int, ...]
    """Places of what the off-policy mask decides on: as `rollouts`, or with `scope: segment` as `sequences`."""
    weights_M: Tensor
    """[M] its tokens' part of `token_weights` over the whole mini-batch."""
    num_rows: int
    """Rows of all sequences of the mini-batch, over which the indexer's loss is a mean."""
    placed: tuple[Placed, ...]
    """Where each sequence stands among its rows."""
    rank: int
    """Who runs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """The segments of one pass, packed."""

    plan: PassPlan
    """Which they are."""
    packed: PackedBatch
    """The rows to run."""
    routes_LNX: Tensor | None
    """Experts to follow; None routes live."""
    inputs: LossInputs
    """What the loss needs, but for the reference."""
    first_M: Tensor | None
    """The learner's log-probabilities at the step's start, where a pass was run for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniBatch:
    """The passes of one optimiser step."""

    plans: tuple[PassPlan, ...]
    """All of them, in order."""
    own: Mapping[int, MicroBatch]
    """Those of this rank, by their places among `plans`."""


class Preparation:
    """Makes the mini-batches of one step, at the weights of its start."""

    def __init__(self, model: Policy, rl: AlgorithmSettings, learner: LearnerSettings, runner: PassRunner) -> None:
        self._model, self._rl, self._learner, self._runner = model, rl, learner, runner

    def mini_batches(self, batch: TrainBatch, version: int) -> list[MiniBatch]:
        """The passes of each mini-batch; `version` is the learner's. Raises RouteError, on all ranks, for unusable routes."""
        plans = [self._plans(batch, indices) for indices in split_groups(batch.group_B, self._rl.updates_per_rollout)]
        packed: dict[tuple[int, int], PackedBatch] = {}
        ranks = self._runner.ranks

        def pack_own() -> None:
            for number, passes in enumerate(plans):
                for place, plan in enumerate(passes):
                    if plan.rank == ranks.rank:
                        packed[number, place] = self._packed(batch, plan)

        ranks.together(pack_own)
        scored = [
            (number, place)
            for number, passes in enumerate(plans)
            for place, plan in enumerate(passes)
            if self._scored_first(batch, plan, version, next_up=number == 0)
        ]
        found = self._runner.run(
            [plans[number][place].rank for number, place in scored],
            lambda index: self._first_pass(packed[scored[index]]),
        )
        firsts = {scored[index]: first for index, first in found.items()}
        return [
            MiniBatch(
                plans=passes,
                own={
                    place: self._micro_batch(batch, plan, packed[number, place], firsts.get((number, place)))
                    for place, plan in enumerate(passes)
                    if plan.rank == ranks.rank
                },
            )
            for number, passes in enumerate(plans)
        ]

    def _plans(self, batch: TrainBatch, rollouts: list[int]) -> tuple[PassPlan, ...]:
        """The passes of the mini-batch of these rollouts."""
        indices = np.isin(batch.rollout_S, rollouts).nonzero()[0].tolist()
        sequences = [batch.sequences[index] for index in indices]
        learner, rollout_S = self._learner, batch.rollout_S[indices].tolist()
        parts = cut(
            sequences,
            learner.max_tokens_per_pass,
            learner.min_passes,
            multiple_of=self._runner.ranks.size,
            rollout_S=rollout_S,
        )
        weights_M = self._token_weights(sequences, np.searchsorted(rollouts, rollout_S), batch.group_B[rollouts])
        tokens_S = [_trained_tokens(entry) for entry in sequences]
        num_rows = sum(len(entry.segment.token_ids) - 1 for entry in sequences)
        weights = torch.split(weights_M, [sum(tokens_S[place] for place in part.indices) for part in parts])
        owners = self._runner.owners([part.num_rows for part in parts])
        plans = []
        for part, part_weights_M, rank in zip(parts, weights, owners, strict=True):
            places = tuple(indices[place] for place in part.indices)
            own = tuple(np.unique(batch.rollout_S[list(places)]).tolist())
            plans.append(
                PassPlan(
                    sequences=places,
                    rollouts=own,
                    units=own if self._whole_rollouts else places,
                    weights_M=part_weights_M,
                    num_rows=num_rows,
                    placed=tuple(part.placed),
                    rank=rank,
                )
            )
        return tuple(plans)

    def _packed(self, batch: TrainBatch, plan: PassPlan) -> PackedBatch:
        """The rows of a pass. Raises RouteError for unusable routes."""
        own_S = np.unique(batch.rollout_S[list(plan.sequences)], return_inverse=True)[1]
        sequences = [batch.sequences[place] for place in plan.sequences]
        packed = pack(sequences, self._model.shape, own_S.tolist(), plan.placed)
        self._check_missing(packed)
        return packed

    def _scored_first(self, batch: TrainBatch, plan: PassPlan, version: int, *, next_up: bool) -> bool:
        """Whether a pass runs at the weights of the step's start before any trains: for the old policy, or to compare with the sampler.

        `next_up` marks the mini-batch whose training passes come first, and so are at these weights themselves.
        """
        if self._rl.objective.old_policy == "learner":
            return True
        if next_up or not same_path(self._rl, self._model.shape):
            return False
        segments = (batch.sequences[place].segment for place in plan.sequences)
        return any(bool((one.weight_version[1:][one.trained[1:]] == version).any()) for one in segments)

    @torch.no_grad()
    def _first_pass(self, packed: PackedBatch) -> tuple[Tensor | None, Tensor]:
        """(routes to follow, the learner's log-probabilities) of a pass that runs before any trains."""
        routes_LNX = self._recorded_routes(packed)
        use_support = self._rl.keep_sampling_mask == "on"
        first = run_policy(self._model, packed, routes_LNX=routes_LNX, use_support=use_support)
        if self._rl.keep_routing == "learner":
            routes_LNX = torch.stack(first.trace.routes)
        return routes_LNX, first.logprobs_M

    def _recorded_routes(self, packed: PackedBatch) -> Tensor | None:
        return packed.routes_LNX if self._rl.keep_routing == "sampler" else None

    def _micro_batch(
        self, batch: TrainBatch, plan: PassPlan, packed: PackedBatch, first: tuple[Tensor | None, Tensor] | None
    ) -> MicroBatch:
        """`first` is what `_first_pass` gave, if it ran."""
        routes_LNX, first_M = (self._recorded_routes(packed), None) if first is None else first
        own = np.unique(batch.rollout_S[list(plan.sequences)])
        return MicroBatch(
            plan=plan,
            packed=packed,
            routes_LNX=routes_LNX,
            inputs=self._loss_inputs(batch, own, packed, first_M, plan.weights_M),
            first_M=first_M,
        )

    def _check_missing(self, packed: PackedBatch) -> None:
        entries = len(packed.rows_R) * len(self._model.shape.moe_layers)
        limit = self._rl.max_missing_routes
        if self._rl.keep_routing == "sampler" and packed.missing_routes > limit * entries:
            raise RouteError(
                f"at most rl.max_missing_routes={limit:g} of all routes may be missing; got {packed.missing_routes} of "
                f"{entries}. The engine does not record them for every row; set rl.keep_routing=off to route live."
            )

    @property
    def _whole_rollouts(self) -> bool:
        """Whether the off-policy mask decides on whole rollouts."""
        return self._rl.objective.off_policy_mask.scope == "rollout"

    def _token_weights(self, sequences: Sequence[TrainSequence], rollout_S: np.ndarray, group_B: np.ndarray) -> Tensor:
        """Denominators over the whole mini-batch, before it is cut into passes."""
        tokens_S = torch.tensor([_trained_tokens(entry) for entry in sequences])
        rollout_M = torch.from_numpy(rollout_S).repeat_interleave(tokens_S)
        counted_M = torch.ones_like(rollout_M, dtype=torch.bool)
        return token_weights(rollout_M, counted_M, torch.from_numpy(group_B), self._rl.objective.aggregation)

    def _loss_inputs(
        self, batch: TrainBatch, own: np.ndarray, packed: PackedBatch, first_M: Tensor | None, weights_M: Tensor
    ) -> LossInputs:
        """`own` are the rollouts of the pass."""
        objective = self._rl.objective
        old_M = first_M if objective.old_policy == "learner" else None
        return LossInputs(
            sampler_logprobs_M=packed.sampler_logprobs_M,
            old_logprobs_M=packed.sampler_logprobs_M if old_M is None else old_M,
            reference_logprobs_M=None,
            advantages_B=torch.from_numpy(batch.advantages_B[own]),
            beta_B=beta_per_rollout([batch.datasets[place] for place in own], objective.kl),
            rollout_M=packed.rollout_M,
            unit_M=packed.rollout_M if self._whole_rollouts else packed.sequence_M,
            rollout_J=torch.arange(len(own)) if self._whole_rollouts else packed.rollout_S,
            in_loss_M=torch.from_numpy(batch.in_loss_B[own])[packed.rollout_M],
            weights_M=weights_M,
        )


def split_groups(group_B: np.ndarray, count: int) -> list[list[int]]:
    """Indices of `count` mini-batches of whole groups, as even as possible; fewer if there are fewer groups."""
    labels = list(dict.fromkeys(group_B.tolist()))
    parts = [part.tolist() for part in np.array_split(np.array(labels), min(count, len(labels)))]
    return [[index for index, label in enumerate(group_B.tolist()) if label in set(part)] for part in parts]


def _trained_tokens(entry: TrainSequence) -> int:
    """Sampled tokens that a row predicts: the first token of a segment has no row before it."""
    return int(entry.segment.trained[1:].sum())
