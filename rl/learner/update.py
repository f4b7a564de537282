"""The updates on one rollout batch: the learner walks the sampler's path, mini-batch by mini-batch.

Axes: B sequences, M trained tokens, N rows run, L mixture-of-experts layers, X experts chosen, E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samepath.kernels.head.logprob import SupportRows
from samepath.model.policy import Policy
from samepath.rl.batch.pack import PackedBatch, TrainSequence, pack, sharing_metrics, split_by_tokens
from samepath.rl.batch.route_check import RouteError
from samepath.rl.batch.train_batch import TrainBatch, UpdateReport
from samepath.rl.diagnostics.numerics import LagZero, NumericsGap
from samepath.rl.diagnostics.path_counts import PathCounts
from samepath.rl.diagnostics.step import HeadStatistics, gather_step, step_metrics
from samepath.rl.learner.master_weights import ApplyGradients, MasterWeights
from samepath.rl.learner.pass_pool import PassPool, add_gradients, gradients_of
from samepath.rl.learner.policy_checks import same_path
from samepath.rl.learner.policy_pass import PolicyPass, run_policy
from samepath.rl.objective.aggregation import sequence_mean, token_weights
from samepath.rl.objective.kl import beta_per_sequence
from samepath.rl.objective.objective import LossInputs, LossTerms, policy_loss
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rl.recipe.learner import LearnerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One micro-batch with everything that is fixed before the first optimiser step."""

    indices: tuple[int, ...]
    batch: PackedBatch
    routes_LNX: Tensor | None
    reference_M: Tensor | None
    first_M: Tensor | None
    """The learner's log-probabilities at the step's start, where a pass of their own was run for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """What one micro-batch gave."""

    result: PolicyPass
    inputs: LossInputs
    terms: LossTerms
    loss: Tensor
    gradients: list[Tensor | None]


class PolicyUpdater:
    """Runs the updates of one step. Holds no weights of its own."""

    def __init__(
        self,
        model: Policy,
        reference: Policy | None,
        rl: AlgorithmSettings,
        learner: LearnerSettings,
        weights: MasterWeights | None = None,
    ) -> None:
        self.model, self.reference, self.rl, self.learner = model, reference, rl, learner
        self._weights = weights or MasterWeights(list(model.parameters()))
        self._pool = PassPool(learner.threads)
        self._gap: NumericsGap | None = None

    def run(self, batch: TrainBatch, version: int, apply_gradients: ApplyGradients) -> UpdateReport:
        """Split by groups into mini-batches and take one optimiser step on each.

        `version` is the learner's weight version before the first; `apply_gradients` clips, steps and returns the gradient norm.
        Raises NumericsMismatchError if sampler and learner disagree at equal weights, RouteError for unusable routes.
        """
        minibatches = split_groups(batch.group_B, self.rl.updates_per_rollout)
        prepared = [self._prepare(batch, indices, version, number == 0) for number, indices in enumerate(minibatches)]
        lag_0 = LagZero(version, batch.sequences)
        for parts in prepared:
            for part in parts:
                lag_0.add(part.batch, part.indices, part.first_M)
        report = _Report(batch)
        for number, (indices, parts) in enumerate(zip(minibatches, prepared)):
            self._one_update(batch, indices, parts, lag_0 if number == 0 else None, report)
            report.add_metrics({"learner/grad_norm": apply_gradients()})
        return report.finish(version, len(minibatches))

    def _prepare(self, batch: TrainBatch, indices: Sequence[int], version: int, next_up: bool) -> list[_Part]:
        """Pack a mini-batch into passes; run the reference and, where it is needed, the learner's own first pass.

        `next_up` marks the mini-batch whose training passes are the next to run, and so are at the weights of the step's start themselves.
        """
        sequences = [batch.sequences[index] for index in indices]
        chunks = split_by_tokens(sequences, self.learner.max_tokens_per_pass, self.learner.threads)
        return self._pool.map(
            lambda chunk: self._prepare_part([indices[place] for place in chunk], batch, version, next_up), chunks
        )

    @torch.no_grad()
    def _prepare_part(self, indices: Sequence[int], batch: TrainBatch, version: int, next_up: bool) -> _Part:
        packed = pack([batch.sequences[index] for index in indices], self.model.shape)
        self._check_missing(packed)
        routes_LNX = packed.routes_LNX if self.rl.keep_routing == "sampler" else None
        reference_M, first_M = None, None
        if self.reference is not None:
            use = self._use_support and self.rl.reference_support == "sampled"
            # The reference is a policy of its own: it routes live.
            reference_M = run_policy(self.reference, packed, routes_LNX=None, use_support=use).logprobs_M
        compared = not next_up and self._same_path and bool((packed.version_M == version).any())
        if self.rl.objective.old_policy == "learner" or compared:
            first = run_policy(self.model, packed, routes_LNX=routes_LNX, use_support=self._use_support)
            first_M = first.logprobs_M
            if self.rl.keep_routing == "learner":
                routes_LNX = torch.stack(first.trace.routes)
        return _Part(
            indices=tuple(indices), batch=packed, routes_LNX=routes_LNX, reference_M=reference_M, first_M=first_M
        )

    @property
    def _same_path(self) -> bool:
        return same_path(self.rl, self.model.shape)

    @property
    def _use_support(self) -> bool:
        return self.rl.keep_sampling_mask == "on"

    def _check_missing(self, packed: PackedBatch) -> None:
        entries = len(packed.rows_R) * len(self.model.shape.moe_layers)
        if self.rl.keep_routing == "sampler" and packed.missing_routes > self.rl.max_missing_routes * entries:
            raise RouteError(
                f"at most rl.max_missing_routes={self.rl.max_missing_routes:g} of all routes may be missing; got {packed.missing_routes} of "
                f"{entries}. The engine does not record them for every row; set rl.keep_routing=off to route live."
            )

    def _one_update(
        self,
        batch: TrainBatch,
        indices: Sequence[int],
        parts: list[_Part],
        lag_0: LagZero | None,
        report: "_Report",
    ) -> None:
        weights = self._token_weights(batch, indices, parts)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        running = self._pool.stream(
            lambda pair: self._pass(batch, pair[0], pair[1], len(parts), parameters), zip(parts, weights)
        )
        followed = PathCounts(self.model.shape)
        passes: list[_Pass] = []
        for part, done in zip(parts, running):
            add_gradients(self._weights.of(parameters), done.gradients)
            # As large as the model: they go as soon as they are added.
            done.gradients.clear()
            passes.append(done)
            if lag_0 is not None and part.first_M is None:
                lag_0.add(part.batch, part.indices, done.result.logprobs_M)
            followed.add(part.batch, done.result.trace, part.routes_LNX is not None)
            report.add_part(part.indices, done.terms, done.inputs, part.batch, followed.last_flips_B)
            report.add_metrics({"learner/loss_part": float(done.loss)})
        inputs, terms = [done.inputs for done in passes], [done.terms for done in passes]
        heads = [_head_statistics(done.result, part.batch) for part, done in zip(parts, passes)]
        if lag_0 is not None and (gap := lag_0.gap(self.rl.max_gap_at_lag_0 if self._same_path else None)) is not None:
            self._gap = gap
            report.first = {"policy/gap_at_lag_0": gap.max_abs, "routing/flip_rate_at_lag_0": followed.flip_rate}
        report.add_metrics(sharing_metrics([part.batch for part in parts]))
        report.add_metrics({**step_metrics(*gather_step(inputs, terms, heads), self._gap), **followed.metrics()})

    def _pass(
        self, batch: TrainBatch, part: _Part, weights_M: Tensor, num_parts: int, parameters: list[torch.nn.Parameter]
    ) -> _Pass:
        """Forward, loss and gradients of one micro-batch."""
        train_indexer = self.learner.indexer == "trained"
        result = run_policy(
            self.model,
            part.batch,
            routes_LNX=part.routes_LNX,
            use_support=self._use_support,
            fingerprints=True,
            train_indexer=train_indexer,
        )
        inputs = self._loss_inputs(batch, part, weights_M)
        loss, terms = policy_loss(result.logprobs_M, inputs, self.rl.objective)
        if train_indexer:
            loss = loss + result.trace.indexer_losses_at(part.batch.rows_R).mean(1).sum() / num_parts
        return _Pass(
            result=result, inputs=inputs, terms=terms, loss=loss.detach(), gradients=gradients_of(loss, parameters)
        )

    def _token_weights(self, batch: TrainBatch, indices: Sequence[int], parts: list[_Part]) -> list[Tensor]:
        """Denominators over the whole mini-batch, then cut into its passes."""
        offsets = np.cumsum([0, *(len(part.indices) for part in parts)])
        sequence_M = torch.cat([part.batch.sequence_M + int(offset) for part, offset in zip(parts, offsets)])
        group_B = torch.from_numpy(batch.group_B[list(indices)])
        weights_M = token_weights(
            sequence_M, torch.ones_like(sequence_M, dtype=torch.bool), group_B, self.rl.objective.aggregation
        )
        return list(torch.split(weights_M, [len(part.batch.targets_M) for part in parts]))

    def _loss_inputs(self, batch: TrainBatch, part: _Part, weights_M: Tensor) -> LossInputs:
        indices = list(part.indices)
        in_loss_B = torch.from_numpy(batch.in_loss_B[indices])
        return LossInputs(
            sampler_logprobs_N=part.batch.sampler_logprobs_M,
            old_logprobs_N=part.first_M if self.rl.objective.old_policy == "learner" else None,
            reference_logprobs_N=part.reference_M,
            advantages_B=torch.from_numpy(batch.advantages_B[indices]),
            beta_B=beta_per_sequence([batch.datasets[index] for index in indices], self.rl.objective.kl),
            sequence_N=part.batch.sequence_M,
            trained_N=in_loss_B[part.batch.sequence_M],
            weights_N=weights_M,
        )


def split_groups(group_B: np.ndarray, count: int) -> list[list[int]]:
    """Indices of `count` mini-batches of whole groups, as even as possible; fewer if there are fewer groups."""
    labels = list(dict.fromkeys(group_B.tolist()))
    parts = [part.tolist() for part in np.array_split(np.array(labels), min(count, len(labels)))]
    return [[index for index, label in enumerate(group_B.tolist()) if label in set(part)] for part in parts]


def _head_statistics(result: PolicyPass, batch: PackedBatch) -> HeadStatistics:
    support: SupportRows | None = batch.support
    size_M = torch.zeros_like(batch.targets_M) if support is None else support.counts_N
    return HeadStatistics(entropy_N=result.entropy_M, kept_mass_N=result.kept_mass_M, support_size_N=size_M)


class _Report:
    """Collects what each sequence and each update measured."""

    def __init__(self, batch: TrainBatch) -> None:
        count = len(batch.sequences)
        self.sequences: tuple[TrainSequence, ...] = batch.sequences
        self.first: dict[str, float] = {}
        self._sums: dict[str, list[float]] = {}
        self.kl_B, self.off_policy_B, self.flips_B = (np.zeros(count, np.float32) for _ in range(3))
        self.masked_B = np.zeros(count, np.bool_)
        self.kl_tokens: list[np.ndarray] = [np.zeros(0, np.float32)] * count

    def add_metrics(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._sums.setdefault(name, []).append(value)

    def add_part(
        self, indices: tuple[int, ...], terms: LossTerms, inputs: LossInputs, batch: PackedBatch, flips_B: np.ndarray
    ) -> None:
        places = list(indices)
        everything_M = torch.ones_like(inputs.trained_N)
        self.kl_B[places] = sequence_mean(terms.kl_N, batch.sequence_M, everything_M, len(places)).numpy()
        self.off_policy_B[places] = terms.off_policy_B.numpy()
        self.masked_B[places] = ~terms.kept_B.numpy()
        self.flips_B[places] = flips_B
        counts = torch.bincount(batch.sequence_M, minlength=len(places)).tolist()
        for place, tokens in zip(places, torch.split(terms.kl_N, counts)):
            self.kl_tokens[place] = tokens.numpy()

    def finish(self, version: int, updates: int) -> UpdateReport:
        """Means over the updates (extremes for `…_max` and `…_min`), and the weight lag that each sequence was trained at."""
        metrics = {name: _combined(name, values) for name, values in self._sums.items()}
        loss_parts = self._sums.get("learner/loss_part", [])
        metrics.pop("learner/loss_part", None)
        metrics |= {**self.first, "learner/loss": sum(loss_parts) / max(updates, 1), "learner/updates": float(updates)}
        lags = [version - int(entry.segment.weight_version[entry.segment.trained].min()) for entry in self.sequences]
        return UpdateReport(
            metrics=metrics,
            kl_B=self.kl_B,
            off_policy_B=self.off_policy_B,
            masked_B=self.masked_B,
            route_flips_B=self.flips_B,
            weight_lag_B=np.array(lags, np.int64),
            kl_tokens=tuple(self.kl_tokens),
        )


def _combined(name: str, values: list[float]) -> float:
    """One number for all updates of a step."""
    if name.endswith("_max"):
        return max(values)
    return min(values) if name.endswith("_min") else sum(values) / len(values)
