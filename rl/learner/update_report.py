"""What the passes and updates of one step measured, summed up once over all of them: no number depends on how the step was cut.

Axes: B rollouts of the step, M trained tokens.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samepath.model.shape import ModelShape
from samepath.model.trace import ForwardTrace
from samepath.rl.batch.pack import PackedBatch, sharing_metrics
from samepath.rl.batch.train_batch import TrainBatch, UpdateReport
from samepath.rl.diagnostics.numerics import LagZero, NumericsGap
from samepath.rl.diagnostics.path_counts import PassFlips, PathCounts
from samepath.rl.diagnostics.spread import once_each
from samepath.rl.diagnostics.step import HeadStatistics, joined, step_metrics
from samepath.rl.learner.mini_batches import MicroBatch
from samepath.rl.learner.optimizer import GradientNorms
from samepath.rl.objective.aggregation import rollout_mean
from samepath.rl.objective.loss_inputs import LossInputs
from samepath.rl.objective.objective import LossTerms
from samepath.rl.objective.sequence_mask import off_policy_statistic


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedPass:
    """What one training pass gave."""

    logprobs_M: Tensor
    """[M] nats, the learner's, of rows that give no loss too."""
    inputs: LossInputs
    """The loss's inputs, the reference's log-probabilities among them."""
    terms: LossTerms
    """The loss's pieces."""
    head: HeadStatistics
    """What the head saw."""
    trace: ForwardTrace
    """Routes, selections."""
    loss: float
    """Its part of the update's loss, the indexer's left out."""
    indexer_kl: float
    """Its part of the update's indexer loss, nats; 0 if that is not trained."""
    gradients: list[Tensor | None]
    """One for each parameter that is trained; none where `finite` is False."""
    finite: bool
    """False if a log-probability is no finite number: then nothing of the pass is in the loss."""


class StepReport:
    """Takes passes and updates in their order."""

    def __init__(self, batch: TrainBatch, version: int, shape: ModelShape) -> None:
        self._batch, self._version = batch, version
        self._lag_0, self._path = LagZero(version, batch.sequences), PathCounts(shape)
        self._packed: list[PackedBatch] = []
        self._inputs: list[LossInputs] = []
        self._terms: list[LossTerms] = []
        self._heads: list[HeadStatistics] = []
        self._norms: list[GradientNorms] = []
        self._rollouts: list[int] = []
        self._units: list[int] = []
        self._flips: list[PassFlips] = []
        self._at_lag_0: dict[str, float] = {}
        self._loss, self._indexer_kl = 0.0, 0.0
        self._loss_so_far = 0.0
        self.all_finite = True
        """Of the passes since the last update."""
        self._skipped = {"empty": 0, "nonfinite": 0}

    def start(self, mini_batches: list[list[MicroBatch]], *, finite_only: bool = False) -> None:
        """Take the learner's passes that ran before the first update; with `finite_only` none in which a number is not finite."""
        for part in (part for parts in mini_batches for part in parts):
            first_M = part.first_M
            if first_M is None or (finite_only and not _finite(first_M, part.packed.sampler_logprobs_M)):
                continue
            self._lag_0.add(part.packed, part.sequences, first_M)

    def add_pass(self, part: MicroBatch, done: TrainedPass) -> None:
        """Take a training pass; its gradients are not kept."""
        self.all_finite &= done.finite
        if not self._updates and part.first_M is None and done.finite:
            self._lag_0.add(part.packed, part.sequences, done.logprobs_M)
        self._path.add(part.packed, done.trace, part.routes_LNX is not None)
        self._packed.append(part.packed)
        self._inputs.append(done.inputs)
        self._terms.append(done.terms)
        self._heads.append(done.head)
        self._rollouts += part.rollouts
        self._units += part.units
        self._flips.append(self._path.last_flips)
        self._loss_so_far += done.loss
        self._indexer_kl += done.indexer_kl * part.num_rows

    def gap(self, limit: float | None) -> NumericsGap | None:
        """Before the first optimiser step: the gap at equal weights (see `LagZero.gap`)."""
        gap = self._lag_0.gap(limit)
        if gap is not None:
            self._at_lag_0 = {"policy/gap_at_lag_0": gap.max_abs, "routing/flip_rate_at_lag_0": self._path.flip_rate}
        return gap

    def end_update(self, norms: GradientNorms) -> None:
        """Take what an optimiser step returned."""
        self._norms.append(norms)
        self._loss += self._loss_so_far
        self._next_update()

    def skip_update(self, reason: Literal["empty", "nonfinite"]) -> None:
        """Note that no step was taken: no token in the loss, or a number that is not finite."""
        self._skipped[reason] += 1
        self._next_update()

    def _next_update(self) -> None:
        self._loss_so_far, self.all_finite = 0.0, True

    @property
    def _updates(self) -> int:
        """Mini-batches that are done."""
        return len(self._norms) + sum(self._skipped.values())

    def finish(self, gap: NumericsGap | None) -> UpdateReport:
        """Metrics of the step and numbers of each rollout; `gap` is the one last measured at equal weights."""
        terms, head = joined(self._terms), joined(self._heads)
        inputs, once_J = once_each(joined(self._inputs), self._rollouts, self._units)
        terms = replace(terms, off_policy_J=terms.off_policy_J[once_J], kept_J=terms.kept_J[once_J])
        tokens = step_metrics(inputs, terms, head, gap) if bool(inputs.in_loss_M.any()) else {}
        metrics = {**sharing_metrics(self._packed), **tokens, **self._path.metrics(), **self._update_metrics()}
        rollout_M, count = inputs.rollout_M, len(inputs.advantages_B)
        kl_B = rollout_mean(terms.kl_M, rollout_M, torch.ones_like(inputs.in_loss_M), count)
        off_policy_B = off_policy_statistic(
            terms.logprobs_M, inputs.sampler_logprobs_M, rollout_M, inputs.in_loss_M, count
        )
        masked_B = torch.zeros(count, dtype=torch.int64).index_add(0, inputs.rollout_J, (~terms.kept_J).long()) > 0
        in_order_M = rollout_M.argsort(stable=True)
        kl_tokens = torch.split(terms.kl_M[in_order_M], torch.bincount(rollout_M, minlength=count).tolist())
        return UpdateReport(
            metrics={**metrics, **self._at_lag_0},
            kl_B=kl_B.numpy(),
            off_policy_B=off_policy_B.numpy(),
            masked_B=masked_B.numpy(),
            route_flips_B=self._route_flips(),
            weight_lag_B=self._weight_lag(),
            kl_tokens=tuple(part.numpy() for part in kl_tokens),
        )

    def _route_flips(self) -> NDArray[np.float32]:
        """[B] share of (row, layer), over all passes that hold a part of the rollout."""
        place = torch.tensor(self._rollouts)
        flips_B = torch.zeros(len(self._batch.names)).index_add(
            0, place, torch.cat([one.flips_B for one in self._flips])
        )
        rows_B = torch.zeros(len(flips_B), dtype=torch.int64).index_add(
            0, place, torch.cat([one.rows_B for one in self._flips])
        )
        return (flips_B / rows_B).numpy()

    def _weight_lag(self) -> NDArray[np.int64]:
        """[B] versions that the oldest token is behind."""
        oldest_B = np.full(len(self._batch.names), self._version, np.int64)
        for place, entry in zip(self._batch.rollout_S, self._batch.sequences, strict=True):
            segment = entry.segment
            oldest_B[place] = min(oldest_B[place], segment.weight_version[segment.trained].min())
        return self._version - oldest_B

    def _update_metrics(self) -> dict[str, float]:
        """Loss and gradient norms, means over the step's optimiser steps, and the last one's rate; the indexer's only if it is trained."""
        updates = len(self._norms)
        metrics = {
            "learner/updates": float(updates),
            **{f"learner/updates_{reason}": float(count) for reason, count in self._skipped.items()},
        }
        if updates:
            metrics |= {
                "learner/loss": self._loss / updates,
                "learner/grad_norm": sum(norms.policy for norms in self._norms) / updates,
                "learner/lr": self._norms[-1].lr,
            }
        indexer = [norms.indexer for norms in self._norms if norms.indexer is not None]
        if indexer:
            rows = sum(len(packed.rows_R) for packed in self._packed)
            metrics |= {"indexer/kl": self._indexer_kl / rows, "indexer/grad_norm": sum(indexer) / len(indexer)}
        return metrics


def _finite(*columns: Tensor) -> bool:
    """Whether every number is finite."""
    return all(bool(column.isfinite().all()) for column in columns)
