"""The updates on one rollout batch: the learner walks the sampler's path, mini-batch by mini-batch.

Axes: M trained tokens.
"""

from dataclasses import replace

import torch
from torch import Tensor

from samepath.model.policy import Policy
from samepath.rl.batch.train_batch import TrainBatch, UpdateReport
from samepath.rl.diagnostics.numerics import NumericsGap
from samepath.rl.learner.mini_batches import MicroBatch, Preparation
from samepath.rl.learner.optimizer import GradientStep
from samepath.rl.learner.pass_pool import PassPool, gradients_of
from samepath.rl.learner.policy_checks import same_path
from samepath.rl.learner.policy_pass import PolicyPass, reference_kl, run_policy
from samepath.rl.learner.spread_rollouts import with_sums
from samepath.rl.learner.update_report import StepReport, TrainedPass
from samepath.rl.objective.objective import NonFiniteError, policy_loss
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rl.recipe.learner import LearnerSettings


class PolicyUpdater:
    """Runs the updates of one step. Holds no weights of its own."""

    def __init__(
        self, model: Policy, reference: Policy | None, rl: AlgorithmSettings, learner: LearnerSettings
    ) -> None:
        self.model, self.reference, self.rl, self.learner = model, reference, rl, learner
        self._pool = PassPool(learner.threads)
        self._preparation = Preparation(model, rl, learner, self._pool)
        self._gap: NumericsGap | None = None

    def run(self, batch: TrainBatch, version: int, optimizer: GradientStep) -> UpdateReport:
        """Split by groups into mini-batches and take one optimiser step on each; `version` is the learner's before the first.

        A mini-batch without a token in the loss moves no weight, nor with `rl.nonfinite: skip` one whose numbers are not finite. Raises
        NumericsMismatchError, before any weight has changed, if sampler and learner disagree at equal weights, RouteError for unusable
        routes, and else NonFiniteError.
        """
        mini_batches = self._preparation.mini_batches(batch, version)
        report = StepReport(batch, version, self.model.shape)
        report.start(mini_batches, finite_only=self.rl.nonfinite == "skip")
        for number, passes in enumerate(mini_batches):
            parts = with_sums(passes, self.rl.objective, self._scored)
            running = self._pool.stream(lambda part: self._pass(part, optimizer.parameters), parts)
            for part, done in zip(parts, running):
                optimizer.add(done.gradients)
                # As large as the model: they go as soon as they are added.
                done.gradients.clear()
                report.add_pass(part, done)
            if number == 0:
                limit = self.rl.max_gap_at_lag_0 if same_path(self.rl, self.model.shape) else None
                self._gap = report.gap(limit) or self._gap
            self._end_update(parts, optimizer, report)
        return report.finish(self._gap)

    @torch.no_grad()
    def _score(self, part: MicroBatch) -> Tensor:
        """The learner's log-probabilities of a pass, `[M]`, at the present weights."""
        use_support = self.rl.keep_sampling_mask == "on"
        return run_policy(self.model, part.packed, routes_LNX=part.routes_LNX, use_support=use_support).logprobs_M

    def _scored(self, parts: list[MicroBatch]) -> list[Tensor]:
        return self._pool.map(self._score, parts)

    def _end_update(self, parts: list[MicroBatch], optimizer: GradientStep, report: StepReport) -> None:
        """Take the optimiser step, or leave it out and count that."""
        if not report.all_finite:
            optimizer.forget()
            report.skip_update("nonfinite")
            return
        if self.learner.indexer == "frozen" and not any(bool(part.inputs.in_loss_M.any()) for part in parts):
            # AdamW would move the weights by its momentum even if every gradient is 0.
            optimizer.forget()
            report.skip_update("empty")
            return
        try:
            report.end_update(optimizer.step())
        except NonFiniteError:
            if self.rl.nonfinite == "stop":
                raise
            optimizer.forget()
            report.skip_update("nonfinite")

    def _pass(self, part: MicroBatch, parameters: list[torch.nn.Parameter]) -> TrainedPass:
        """Forward, loss and gradients of one micro-batch."""
        use_support = self.rl.keep_sampling_mask == "on"
        reference = self._reference_pass(part, use_support and self.rl.reference_support == "sampled")
        train_indexer = self.learner.indexer == "trained"
        result = run_policy(
            self.model,
            part.packed,
            routes_LNX=part.routes_LNX,
            use_support=use_support,
            fingerprints=True,
            train_indexer=train_indexer,
        )
        inputs, head = part.inputs, result.head
        if self.reference is not None and reference is not None:
            inputs = replace(inputs, reference_logprobs_M=reference.logprobs_M)
            full_M = reference_kl(self.model, result, self.reference, reference, part.packed)
            head = replace(head, reference_kl_M=full_M)
        finite = True
        try:
            loss, terms = policy_loss(result.logprobs_M, inputs, self.rl.objective)
        except NonFiniteError:
            if self.rl.nonfinite == "stop":
                raise
            finite = False
            inputs = replace(inputs, in_loss_M=torch.zeros_like(inputs.in_loss_M))
            loss, terms = policy_loss(result.logprobs_M, inputs, self.rl.objective)
        indexer_kl = result.trace.indexer_loss(part.packed.rows_R, part.num_rows) if train_indexer else torch.zeros(())
        return TrainedPass(
            logprobs_M=result.logprobs_M.detach(),
            inputs=inputs,
            terms=terms,
            head=head,
            trace=result.trace,
            loss=float(loss.detach()),
            indexer_kl=float(indexer_kl.detach()),
            gradients=gradients_of(loss + indexer_kl if train_indexer else loss, parameters) if finite else [],
            finite=finite,
        )

    @torch.no_grad()
    def _reference_pass(self, part: MicroBatch, use_support: bool) -> PolicyPass | None:
        """The reference is a policy of its own: it routes live. Its weights never move, so it may run at any time of the step."""
        if self.reference is None:
            return None
        return run_policy(self.reference, part.packed, routes_LNX=None, use_support=use_support)
