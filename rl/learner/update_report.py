"""What the passes and updates of one step measured, summed up once over all of them: no number depends on how the step was cut.

Axes: B rollouts of the step, M trained tokens.
"""

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from samepath.model.shape import ModelShape
from samepath.rl.batch.pack import sharing_metrics
from samepath.rl.batch.train_batch import TokenReport, TrainBatch, UpdateReport
from samepath.rl.diagnostics.flipped_routes import flips_of_rollouts
from samepath.rl.diagnostics.numerics import LagZero, NumericsGap, SameWeights
from samepath.rl.diagnostics.path_counts import PathCounts
from samepath.rl.diagnostics.spread import once_each
from samepath.rl.diagnostics.step import HeadStatistics, joined, step_metrics
from samepath.rl.learner.mini_batches import PassPlan
from samepath.rl.learner.optimizer import GradientNorms
from samepath.rl.learner.pass_report import PassReport
from samepath.rl.objective.aggregation import rollout_mean
from samepath.rl.objective.loss_inputs import LossInputs
from samepath.rl.objective.objective import LossTerms
from samepath.rl.objective.sequence_mask import off_policy_statistic


class StepReport:
    """Takes passes and updates in their order."""

    def __init__(self, batch: TrainBatch, version: int, shape: ModelShape) -> None:
        self._batch, self._version = batch, version
        self._lag_0, self._path = LagZero(batch.sequences), PathCounts(shape)
        self._shape = shape
        self._passes: list[PassReport] = []
        self._norms: list[GradientNorms] = []
        self._rollouts: list[int] = []
        self._units: list[int] = []
        self._at_lag_0: dict[str, float] = {}
        self._loss, self._loss_so_far = 0.0, 0.0
        self.all_finite = True
        """Of the passes since the last update."""
        self._skipped = {"empty": 0, "nonfinite": 0}

    def add_first(self, tokens: SameWeights) -> None:
        """Take a pass that ran before the first update."""
        self._lag_0.add(tokens)

    def add_pass(self, plan: PassPlan, done: PassReport) -> None:
        """Take a training pass."""
        self.all_finite &= done.finite
        if not self._updates and done.same_weights is not None:
            self._lag_0.add(done.same_weights)
        self._path.merge(done.path)
        self._passes.append(done)
        self._rollouts += plan.rollouts
        self._units += plan.units
        self._loss_so_far += done.loss

    def gap(self, limit: float | None) -> NumericsGap | None:
        """Before the first optimiser step: the gap at equal weights (see `LagZero.gap`)."""
        gap = self._lag_0.gap(limit, self._path.flip_rate)
        if gap is not None:
            self._at_lag_0 = {"policy/gap_at_lag_0": gap.max_abs}
            if not self._weight_lag().any():
                # Rows of older weights flip for another reason.
                self._at_lag_0["routing/flip_rate_at_lag_0"] = self._path.flip_rate
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
        passes = self._passes
        terms, head = joined([one.terms for one in passes]), joined([one.head for one in passes])
        inputs, once_J = once_each(joined([one.inputs for one in passes]), self._rollouts, self._units)
        terms = replace(terms, off_policy_J=terms.off_policy_J[once_J], kept_J=terms.kept_J[once_J])
        tokens = step_metrics(inputs, terms, head, gap) if bool(inputs.in_loss_M.any()) else {}
        metrics = {
            **sharing_metrics([one.shared for one in passes]),
            **tokens,
            **self._path.metrics(),
            "learner/weight_sum": float(inputs.weights_M.double().sum()) / max(self._updates, 1),
            **self._update_metrics(),
        }
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
            tokens=self._tokens(inputs, terms, head),
            moe_layers=tuple(self._shape.moe_layers),
        )

    def _tokens(self, inputs: LossInputs, terms: LossTerms, head: HeadStatistics) -> tuple[TokenReport, ...]:
        """[B] each rollout's tokens, in the order in which they were drawn."""
        rollout_M, in_loss_M, count = inputs.rollout_M, inputs.in_loss_M, len(inputs.advantages_B)
        log_ratio_M = torch.where(in_loss_M, terms.logprobs_M - inputs.sampler_logprobs_M, torch.nan)
        role_M = torch.where(in_loss_M, 1 + terms.kept_J[inputs.unit_M].long(), 0)
        order_M, sizes = rollout_M.argsort(stable=True), torch.bincount(rollout_M, minlength=count).tolist()
        columns = [
            [part.numpy() for part in torch.split(column_M[order_M], sizes)]
            for column_M in (log_ratio_M, head.entropy_M, role_M)
        ]
        flips = flips_of_rollouts([(one.flipped, len(one.inputs.rollout_M)) for one in self._passes], rollout_M, count)
        return tuple(
            TokenReport(log_ratio_T=log_ratio_T, entropy_T=entropy_T, role_T=role_T, flips=own)
            for log_ratio_T, entropy_T, role_T, own in zip(*columns, flips, strict=True)
        )

    def _route_flips(self) -> NDArray[np.float32]:
        """[B] share of (row, layer), over all passes that hold a part of the rollout."""
        place = torch.tensor(self._rollouts)
        flips = [one.path.last_flips for one in self._passes]
        flips_B = torch.zeros(len(self._batch.names)).index_add(0, place, torch.cat([one.flips_B for one in flips]))
        rows_B = torch.zeros(len(flips_B), dtype=torch.int64).index_add(
            0, place, torch.cat([one.rows_B for one in flips])
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
            rows = sum(one.shared.rows for one in self._passes)
            kl = sum(one.indexer_kl_sum for one in self._passes)
            metrics |= {"indexer/kl": kl / rows, "indexer/grad_norm": sum(indexer) / len(indexer)}
        return metrics
