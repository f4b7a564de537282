"""A rollout batch cut into mini-batches of whole groups, and these into passes, with everything that is fixed before the first step.

Axes: B sequences, M trained tokens, N rows run, L mixture-of-experts layers, X experts chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samepath.model.policy import Policy
from samepath.rl.batch.pack import PackedBatch, TrainSequence, pack, split_by_tokens
from samepath.rl.batch.route_check import RouteError
from samepath.rl.batch.train_batch import TrainBatch
from samepath.rl.learner.pass_pool import PassPool
from samepath.rl.learner.policy_checks import same_path
from samepath.rl.learner.policy_pass import run_policy
from samepath.rl.objective.aggregation import token_weights
from samepath.rl.objective.kl import beta_per_sequence
from samepath.rl.objective.loss_inputs import LossInputs
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rl.recipe.learner import LearnerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """The sequences of one pass."""

    indices: tuple[int, ...]
    """Their places in the rollout batch."""
    packed: PackedBatch
    """The rows to run."""
    routes_LNX: Tensor | None
    """Experts to follow; None routes live."""
    inputs: LossInputs
    """What the loss needs, but for the reference."""
    first_M: Tensor | None
    """The learner's log-probabilities at the step's start, where a pass was run for them."""
    num_rows: int
    """Rows of all sequences of the mini-batch, over which the indexer's loss is a mean."""


class Preparation:
    """Makes the mini-batches of one step, at the weights of its start."""

    def __init__(self, model: Policy, rl: AlgorithmSettings, learner: LearnerSettings, pool: PassPool) -> None:
        self._model, self._rl, self._learner, self._pool = model, rl, learner, pool

    def mini_batches(self, batch: TrainBatch, version: int) -> list[list[MicroBatch]]:
        """The micro-batches of each mini-batch; `version` is the learner's. Raises RouteError for unusable routes."""
        return [
            self._mini_batch(batch, indices, version, next_up=number == 0)
            for number, indices in enumerate(split_groups(batch.group_B, self._rl.updates_per_rollout))
        ]

    def _mini_batch(self, batch: TrainBatch, indices: list[int], version: int, *, next_up: bool) -> list[MicroBatch]:
        """`next_up` marks the mini-batch whose training passes come first, and so are at the weights of the step's start themselves."""
        sequences = [batch.sequences[index] for index in indices]
        chunks = split_by_tokens(sequences, self._learner.max_tokens_per_pass, self._learner.threads)
        weights_M = self._token_weights(sequences, batch.group_B[indices])
        tokens_B = [_trained_tokens(entry) for entry in sequences]
        weights = torch.split(weights_M, [sum(tokens_B[place] for place in chunk) for chunk in chunks])
        num_rows = sum(len(entry.segment.token_ids) - 1 for entry in sequences)

        @torch.no_grad()
        def prepared(job: tuple[list[int], Tensor]) -> MicroBatch:
            chunk, chunk_weights_M = job
            places = [indices[place] for place in chunk]
            packed = pack([batch.sequences[place] for place in places], self._model.shape)
            self._check_missing(packed)
            routes_LNX, first_M = self._first_pass(packed, version, next_up)
            return MicroBatch(
                indices=tuple(places),
                packed=packed,
                routes_LNX=routes_LNX,
                inputs=self._loss_inputs(batch, places, packed, first_M, chunk_weights_M),
                first_M=first_M,
                num_rows=num_rows,
            )

        return self._pool.map(prepared, zip(chunks, weights))

    def _first_pass(self, packed: PackedBatch, version: int, next_up: bool) -> tuple[Tensor | None, Tensor | None]:
        """(routes to follow, log-probabilities of the learner's first pass): the old policy, or what the sampler is compared with."""
        routes_LNX = packed.routes_LNX if self._rl.keep_routing == "sampler" else None
        compared = not next_up and same_path(self._rl, self._model.shape) and bool((packed.version_M == version).any())
        if self._rl.objective.old_policy == "sampler" and not compared:
            return routes_LNX, None
        use_support = self._rl.keep_sampling_mask == "on"
        first = run_policy(self._model, packed, routes_LNX=routes_LNX, use_support=use_support)
        if self._rl.keep_routing == "learner":
            routes_LNX = torch.stack(first.trace.routes)
        return routes_LNX, first.logprobs_M

    def _check_missing(self, packed: PackedBatch) -> None:
        entries = len(packed.rows_R) * len(self._model.shape.moe_layers)
        limit = self._rl.max_missing_routes
        if self._rl.keep_routing == "sampler" and packed.missing_routes > limit * entries:
            raise RouteError(
                f"at most rl.max_missing_routes={limit:g} of all routes may be missing; got {packed.missing_routes} of "
                f"{entries}. The engine does not record them for every row; set rl.keep_routing=off to route live."
            )

    def _token_weights(self, sequences: Sequence[TrainSequence], group_B: np.ndarray) -> Tensor:
        """Denominators over the whole mini-batch, before it is cut into passes."""
        tokens_B = torch.tensor([_trained_tokens(entry) for entry in sequences])
        sequence_M = torch.arange(len(sequences)).repeat_interleave(tokens_B)
        counted_M = torch.ones_like(sequence_M, dtype=torch.bool)
        return token_weights(sequence_M, counted_M, torch.from_numpy(group_B), self._rl.objective.aggregation)

    def _loss_inputs(
        self, batch: TrainBatch, places: list[int], packed: PackedBatch, first_M: Tensor | None, weights_M: Tensor
    ) -> LossInputs:
        objective = self._rl.objective
        old_M = first_M if objective.old_policy == "learner" else None
        return LossInputs(
            sampler_logprobs_M=packed.sampler_logprobs_M,
            old_logprobs_M=packed.sampler_logprobs_M if old_M is None else old_M,
            reference_logprobs_M=None,
            advantages_B=torch.from_numpy(batch.advantages_B[places]),
            beta_B=beta_per_sequence([batch.datasets[place] for place in places], objective.kl),
            sequence_M=packed.sequence_M,
            in_loss_M=torch.from_numpy(batch.in_loss_B[places])[packed.sequence_M],
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
