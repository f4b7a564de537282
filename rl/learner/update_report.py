"""What the passes and updates of one step measured, summed up once over all of them: no number depends on how the step was cut.

Axes: B sequences of the step, M trained tokens.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from samepath.model.shape import ModelShape
from samepath.model.trace import ForwardTrace
from samepath.rl.batch.pack import PackedBatch, TrainSequence, sharing_metrics
from samepath.rl.batch.train_batch import UpdateReport
from samepath.rl.diagnostics.numerics import LagZero, NumericsGap
from samepath.rl.diagnostics.path_counts import PathCounts
from samepath.rl.diagnostics.step import HeadStatistics, joined, step_metrics
from samepath.rl.learner.mini_batches import MicroBatch
from samepath.rl.learner.optimizer import GradientNorms
from samepath.rl.objective.aggregation import sequence_mean
from samepath.rl.objective.loss_inputs import LossInputs
from samepath.rl.objective.objective import LossTerms


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

    def __init__(self, sequences: tuple[TrainSequence, ...], version: int, shape: ModelShape) -> None:
        self._sequences, self._version = sequences, version
        self._lag_0, self._path = LagZero(version, sequences), PathCounts(shape)
        self._packed: list[PackedBatch] = []
        self._inputs: list[LossInputs] = []
        self._terms: list[LossTerms] = []
        self._heads: list[HeadStatistics] = []
        self._norms: list[GradientNorms] = []
        self._places: list[int] = []
        self._flips: list[np.ndarray] = []
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
            self._lag_0.add(part.packed, part.indices, first_M)

    def add_pass(self, part: MicroBatch, done: TrainedPass) -> None:
        """Take a training pass; its gradients are not kept."""
        self.all_finite &= done.finite
        if not self._updates and part.first_M is None and done.finite:
            self._lag_0.add(part.packed, part.indices, done.logprobs_M)
        self._path.add(part.packed, done.trace, part.routes_LNX is not None)
        self._packed.append(part.packed)
        self._inputs.append(done.inputs)
        self._terms.append(done.terms)
        self._heads.append(done.head)
        self._places += part.indices
        self._flips.append(self._path.last_flips_B)
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
        """Metrics of the step and numbers of each sequence; `gap` is the one last measured at equal weights."""
        inputs, terms, head = joined(self._inputs), joined(self._terms), joined(self._heads)
        tokens = step_metrics(inputs, terms, head, gap) if bool(inputs.in_loss_M.any()) else {}
        metrics = {**sharing_metrics(self._packed), **tokens, **self._path.metrics(), **self._update_metrics()}
        order = np.argsort(self._places)
        everything_M = torch.ones_like(inputs.in_loss_M)
        kl_B = sequence_mean(terms.kl_M, inputs.sequence_M, everything_M, len(order))
        counts_B = torch.bincount(inputs.sequence_M, minlength=len(order)).tolist()
        kl_tokens = torch.split(terms.kl_M, counts_B)
        lags = [
            self._version - int(entry.segment.weight_version[entry.segment.trained].min()) for entry in self._sequences
        ]
        return UpdateReport(
            metrics={**metrics, **self._at_lag_0},
            kl_B=kl_B.numpy()[order],
            off_policy_B=terms.off_policy_B.numpy()[order],
            masked_B=~terms.kept_B.numpy()[order],
            route_flips_B=np.concatenate(self._flips)[order],
            weight_lag_B=np.array(lags, np.int64),
            kl_tokens=tuple(kl_tokens[place].numpy() for place in order),
        )

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
