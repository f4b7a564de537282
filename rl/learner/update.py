"""The updates on one rollout batch: the learner walks the sampler's path, mini-batch by mini-batch.

Axes: M trained tokens.
"""

from dataclasses import replace

import torch
from torch import Tensor

from samepath.model.policy import Policy
from samepath.rl.batch.train_batch import TrainBatch, UpdateReport
from samepath.rl.diagnostics.numerics import NumericsGap, SameWeights
from samepath.rl.learner.mini_batches import MicroBatch, MiniBatch, Preparation
from samepath.rl.learner.optimizer import GradientStep
from samepath.rl.learner.pass_report import PassReport, TrainedPass, first_tokens, report_of
from samepath.rl.learner.policy_checks import check_reference, same_path
from samepath.rl.learner.policy_pass import PolicyPass, reference_kl, run_policy
from samepath.rl.learner.ranks import ALONE, Ranks
from samepath.rl.learner.sharded_runner import runner_of
from samepath.rl.learner.spread_rollouts import with_sums
from samepath.rl.learner.update_report import StepReport
from samepath.rl.objective.objective import NonFiniteError, policy_loss
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rl.recipe.learner import LearnerSettings


class PolicyUpdater:
    """Runs the updates of one step. Holds no weights of its own."""

    def __init__(
        self,
        model: Policy,
        reference: Policy | None,
        rl: AlgorithmSettings,
        learner: LearnerSettings,
        ranks: Ranks = ALONE,
    ) -> None:
        """Raises ValueError if the reference would move with the policy."""
        if reference is not None:
            check_reference(model, reference)
        self.model, self.reference, self.rl, self.learner = model, reference, rl, learner
        self._runner = runner_of(ranks, model, reference, learner, train_indexer=learner.indexer == "trained")
        self._preparation = Preparation(model, rl, learner, self._runner)
        self._gap: NumericsGap | None = None

    def run(self, batch: TrainBatch, version: int, optimizer: GradientStep) -> UpdateReport:
        """Split by groups into mini-batches and take one optimiser step on each; `version` is the learner's before the first.

        A mini-batch without a token in the loss moves no weight, nor with `rl.nonfinite: skip` one whose numbers are not finite. Raises
        NumericsMismatchError, before any weight has changed, if sampler and learner disagree at equal weights, RouteError for unusable
        routes, and else NonFiniteError.
        """
        mini_batches = self._preparation.mini_batches(batch, version)
        report = StepReport(batch, version, self.model.shape)
        for tokens in self._first_tokens(mini_batches, version):
            report.add_first(tokens)
        for number, passes in enumerate(mini_batches):
            known = with_sums(passes, self.rl.objective, self._score, self._runner)
            done = self._trained(known, version, optimizer)
            for plan, one in zip(known.plans, done, strict=True):
                report.add_pass(plan, one)
            if number == 0:
                limit = self.rl.max_gap_at_lag_0 if same_path(self.rl, self.model.shape) else None
                self._gap = report.gap(limit) or self._gap
            in_loss = any(bool(one.inputs.in_loss_M.any()) for one in done)
            self._end_update(in_loss, optimizer, report)
        return report.finish(self._gap)

    def _first_tokens(self, mini_batches: list[MiniBatch], version: int) -> list[SameWeights]:
        """What the learner's passes before the first update compared, in the order of the passes."""

        def own_part() -> dict[tuple[int, int], SameWeights | None]:
            return {
                (number, place): first_tokens(part, version, finite_only=self.rl.nonfinite == "skip")
                for number, passes in enumerate(mini_batches)
                for place, part in passes.own.items()
            }

        found = {place: one for part in self._runner.ranks.together(own_part) for place, one in part.items()}
        return [tokens for _, tokens in sorted(found.items(), key=lambda one: one[0]) if tokens is not None]

    def _trained(self, passes: MiniBatch, version: int, optimizer: GradientStep) -> list[PassReport]:
        """The training passes of one update, whose gradients the optimiser takes."""

        def run(place: int) -> tuple[PassReport, Tensor]:
            part = passes.own[place]
            done, loss = self._pass(part)
            return report_of(part, done, self.model.shape, version), loss

        return self._runner.train([plan.rank for plan in passes.plans], run, optimizer)

    @torch.no_grad()
    def _score(self, part: MicroBatch) -> Tensor:
        """The learner's log-probabilities of a pass, `[M]`, at the present weights."""
        use_support = self.rl.keep_sampling_mask == "on"
        return run_policy(self.model, part.packed, routes_LNX=part.routes_LNX, use_support=use_support).logprobs_M

    def _end_update(self, in_loss: bool, optimizer: GradientStep, report: StepReport) -> None:
        """Take the optimiser step, or leave it out and count that."""
        if not report.all_finite:
            optimizer.forget()
            report.skip_update("nonfinite")
            return
        if self.learner.indexer == "frozen" and not in_loss:
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

    def _pass(self, part: MicroBatch) -> tuple[TrainedPass, Tensor]:
        """Forward of one micro-batch, and the loss to differentiate; of one that is not finite nothing is in it."""
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
        indexer_kl = (
            result.trace.indexer_loss(part.packed.rows_R, part.plan.num_rows) if train_indexer else torch.zeros(())
        )
        done = TrainedPass(
            logprobs_M=result.logprobs_M.detach(),
            inputs=inputs,
            terms=terms,
            head=head,
            trace=result.trace,
            loss=float(loss.detach()),
            indexer_kl=float(indexer_kl.detach()),
            finite=finite,
        )
        return done, loss + indexer_kl if train_indexer else loss

    @torch.no_grad()
    def _reference_pass(self, part: MicroBatch, use_support: bool) -> PolicyPass | None:
        """The reference is a policy of its own: it routes live. Its weights never move, so it may run at any time of the step."""
        if self.reference is None:
            return None
        return run_policy(self.reference, part.packed, routes_LNX=None, use_support=use_support)
