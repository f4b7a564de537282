"""Defects of the kind that trainers are mended for, put into the real code of a run: one function each, which changes one place."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from samepath.model.policy import Policy
from samepath.rewards.score import Score
from samepath.rl.batch.score_groups import GroupScorer
from samepath.rl.feed import Feed
from samepath.rl.learner.mini_batches import PassPlan, Preparation
from samepath.rl.learner.optimizer import GradientNorms, Optimizer
from samepath.rl.learner.update import PolicyUpdater
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.pool.pool import InlinePool
from samepath.rollout.pool.worker import RolloutWorker
from samepath.rollout.types import Group

Patch = pytest.MonkeyPatch


def mask_ignored(patch: Patch) -> None:
    """The mask's decision never reaches the loss: everything is kept."""
    patch.setattr(
        "samepath.rl.objective.objective.kept_sequences",
        lambda advantages_J, off_policy_J, settings: torch.ones_like(advantages_J, dtype=torch.bool),
    )


def mask_inverted(patch: Patch) -> None:
    """The mask takes out every bad answer, whatever the statistic says."""
    patch.setattr(
        "samepath.rl.objective.objective.kept_sequences",
        lambda advantages_J, off_policy_J, settings: advantages_J >= 0,
    )


def denominator_of_each_pass(patch: Patch) -> None:
    """Token weights are made anew in each pass, over its own tokens."""
    original = Preparation._plans

    def plans(self: Preparation, *arguments: Any) -> tuple[PassPlan, ...]:
        return tuple(
            replace(plan, weights_M=plan.weights_M / plan.weights_M.sum()) for plan in original(self, *arguments)
        )

    patch.setattr(Preparation, "_plans", plans)


def stale_worker(patch: Patch) -> None:
    """A second worker answers every other group and keeps the weights that it began with, under the new version's name."""
    start, submit, poll = InlinePool.__init__, InlinePool.submit, InlinePool._poll
    load = InlinePool.load_weights

    def started(self: Any, model_folder: Any, engine: BuiltinSettings, settings: Any, *rest: Any) -> None:
        start(self, model_folder, engine, settings, *rest)
        self._second, self._asked = RolloutWorker(model_folder, engine, settings.threads), []

    def submitted(self: Any, requests: Sequence[Any]) -> None:
        submit(self, requests[::2])
        self._asked += requests[1::2]

    def polled(self: Any, wait_s: float) -> list[Group]:
        asked, self._asked = self._asked, []
        return poll(self, wait_s) + self._second.work(asked, wait_s)

    def loaded(self: Any, weights: Any, version: int) -> None:
        load(self, weights, version)
        self._second.engine._begin_version(version, recompute=False)

    for name, made in {"__init__": started, "submit": submitted, "_poll": polled, "load_weights": loaded}.items():
        patch.setattr(InlinePool, name, made)


def weights_never_sent(patch: Patch) -> None:
    """The sampler keeps the first weights, and says so in its records."""

    def loaded(self: InlinePool, weights: Any, version: int) -> None:
        if version == 0:
            self._worker.load_weights({name: one.clone() for name, one in weights.tensors.items()}, 0)

    patch.setattr(InlinePool, "load_weights", loaded)


def wrong_layer_replayed(patch: Patch) -> None:
    """Each layer follows the experts that another one recorded."""
    original = Preparation._recorded_routes

    def routes(self: Preparation, packed: Any) -> Tensor | None:
        routes_LNX = original(self, packed)
        return None if routes_LNX is None else routes_LNX.roll(1, 0)

    patch.setattr(Preparation, "_recorded_routes", routes)


def candidates_dropped(patch: Patch) -> None:
    """The learner renormalises over the full vocabulary, although the recipe asks for the sampler's candidates."""
    from samepath.rl.learner import mini_batches, update

    for module in (mini_batches, update):
        original = module.run_policy

        def run(model: Policy, batch: Any, *, use_support: bool, _run: Any = original, **rest: Any) -> Any:
            return _run(model, batch, use_support=False, **rest)

        patch.setattr(module, "run_policy", run)


def temperature_dropped(patch: Patch) -> None:
    """The learner scores at temperature 1, whatever the tokens were drawn at."""
    from samepath.rl.batch import score_groups

    original = score_groups._train_sequences
    patch.setattr(score_groups, "_train_sequences", lambda rollout, temperature: original(rollout, 1.0))


def length_limit_dropped(patch: Patch) -> None:
    """The engine is asked for longer answers than the recipe allows."""
    original = Feed.request

    def request(self: Feed, number: int) -> Any:
        asked: Any = original(self, number)
        return replace(asked, sampling=asked.sampling.model_copy(update={"max_new_tokens": 24}))

    patch.setattr(Feed, "request", request)


def updates_dropped(patch: Patch) -> None:
    """All groups go into one update."""
    from samepath.rl.learner import mini_batches

    original = mini_batches.split_groups
    patch.setattr(mini_batches, "split_groups", lambda group_B, count: original(group_B, 1))


def rate_dropped(patch: Patch) -> None:
    """The optimiser has a rate of its own."""
    from samepath.rl.learner import optimizer

    patch.setattr(optimizer, "learning_rate", lambda settings, updates, total: 0.5 * settings.lr)


def group_size_dropped(patch: Patch) -> None:
    """Two samples of each prompt, whatever is asked for."""
    original = Feed.request

    def request(self: Feed, number: int) -> Any:
        asked: Any = original(self, number)
        return replace(asked, seeds=asked.seeds[:2])

    patch.setattr(Feed, "request", request)


def dead_rollouts_score_0(patch: Patch) -> None:
    """Of every group one rollout breaks, and gets the reward 0 like a bad answer."""
    original = GroupScorer.collect

    def collect(self: GroupScorer, groups: Sequence[Group]) -> list[Group]:
        zero = Score(total=0.0, parts={"short": 0.0})
        return [
            replace(group, rollouts=(replace(group.rollouts[0], failure="aborted", score=zero), *group.rollouts[1:]))
            for group in original(self, groups)
        ]

    patch.setattr(GroupScorer, "collect", collect)


def rewards_break(patch: Patch) -> None:
    """A quarter of the rewards fail."""
    original = GroupScorer.collect

    def collect(self: GroupScorer, groups: Sequence[Group]) -> list[Group]:
        failed = Score(total=float("nan"), status="error", detail="short: KeyError: 'gold'")
        return [
            replace(group, rollouts=(replace(group.rollouts[0], score=failed), *group.rollouts[1:]))
            for group in original(self, groups)
        ]

    patch.setattr(GroupScorer, "collect", collect)


def rewards_constant(patch: Patch) -> None:
    """Every answer earns the same."""
    original = GroupScorer.collect

    def collect(self: GroupScorer, groups: Sequence[Group]) -> list[Group]:
        same = Score(total=0.5, parts={"short": 0.5})
        return [
            replace(group, rollouts=tuple(replace(one, score=same) for one in group.rollouts))
            for group in original(self, groups)
        ]

    patch.setattr(GroupScorer, "collect", collect)


def dataset_constant(patch: Patch) -> None:
    """Every answer to a row of one dataset of two earns the same."""
    original = GroupScorer.collect

    def collect(self: GroupScorer, groups: Sequence[Group]) -> list[Group]:
        same = Score(total=0.5, parts={"short": 0.5})
        return [
            replace(group, rollouts=tuple(replace(one, score=same) for one in group.rollouts))
            if group.prompt.dataset == "minus"
            else group
            for group in original(self, groups)
        ]

    patch.setattr(GroupScorer, "collect", collect)


def one_seed_for_all(patch: Patch) -> None:
    """All samples of a prompt are drawn with one seed, so they are one answer."""
    original = Feed.request

    def request(self: Feed, number: int) -> Any:
        asked: Any = original(self, number)
        return replace(asked, seeds=(asked.seeds[0],) * len(asked.seeds))

    patch.setattr(Feed, "request", request)


def rows_begin_anew(patch: Patch) -> None:
    """The order of rows begins anew at the third step, as if a resume had forgotten where it was."""
    original = Feed.batch
    patch.setattr(Feed, "batch", lambda self, step: original(self, step if step < 2 else step - 2))


def kl_logged_as_0(patch: Patch) -> None:
    """The KL to the reference is not measured, and logged as 0."""
    _metrics_changed(patch, lambda name: name.startswith("kl/reference"))


def entropy_logged_as_0(patch: Patch) -> None:
    """The entropy is not measured, and logged as 0."""
    _metrics_changed(patch, lambda name: name == "policy/entropy")


def _metrics_changed(patch: Patch, missing: Any) -> None:
    from samepath.rl.learner import update_report

    original = update_report.step_metrics

    def metrics(*arguments: Any) -> Mapping[str, float]:
        return {name: 0.0 if missing(name) else value for name, value in original(*arguments).items()}

    patch.setattr(update_report, "step_metrics", metrics)


def reference_is_the_policy(patch: Patch) -> None:
    """The reference shares its tensors with the policy and moves along."""
    original = PolicyUpdater.__init__

    def made(self: PolicyUpdater, model: Policy, reference: Policy | None, *rest: Any) -> None:
        original(self, model, model, *rest)

    patch.setattr(PolicyUpdater, "__init__", made)


def optimizer_never_steps(patch: Patch) -> None:
    """Gradients are made, and no weight moves."""
    original = Optimizer.step

    def step(self: Optimizer) -> GradientNorms:
        before = [one.detach().clone() for one in self.parameters]
        norms = original(self)
        with torch.no_grad():
            for parameter, value in zip(self.parameters, before, strict=True):
                parameter.copy_(value)
        return norms

    patch.setattr(Optimizer, "step", step)


def baseline_dropped(patch: Patch) -> None:
    """Rewards are taken for advantages."""
    from samepath.rl.batch import score_groups

    patch.setattr(
        score_groups,
        "advantages",
        lambda rewards_B, group_B, scored_B, settings: torch.where(scored_B, rewards_B, 0),
    )


def loss_detached(patch: Patch) -> None:
    """The loss no longer depends on the weights."""
    from samepath.rl.learner import update

    original = update.policy_loss

    def loss(*arguments: Any) -> Any:
        value, terms = original(*arguments)
        return 0 * value, terms

    patch.setattr(update, "policy_loss", loss)


def old_policy_is_the_new_one(patch: Patch) -> None:
    """π_old is read from the pass that is trained, so every ratio is 1 and nothing is ever clipped."""
    from samepath.rl.learner import update

    original = update.policy_loss

    def loss(logprobs_M: Tensor, inputs: Any, settings: Any) -> Any:
        return original(logprobs_M, replace(inputs, old_logprobs_M=logprobs_M.detach()), settings)

    patch.setattr(update, "policy_loss", loss)


def logprobs_shifted(patch: Patch) -> None:
    """The sampler's log-probabilities stand one token too late."""
    from samepath.rl.batch import pack

    original = pack._trained

    def trained(segments: Any, column: str) -> Tensor:
        values = original(segments, column)
        return values.roll(1) if column == "sampler_logprobs" else values

    patch.setattr(pack, "_trained", trained)


def routes_not_recorded(patch: Patch) -> None:
    """The engine records no experts."""
    from samepath.rl.batch import score_groups

    original = score_groups._train_sequences

    def sequences(rollout: Any, temperature: float) -> Any:
        bare = [replace(one, routes=np.full_like(one.routes, -1)) for one in rollout.segments]
        return original(replace(rollout, segments=tuple(bare)), temperature)

    patch.setattr(score_groups, "_train_sequences", sequences)


def token_changed(patch: Patch) -> None:
    """A drawn token is another one by the time it is trained, as after text was tokenised again."""
    original = GroupScorer.collect

    def collect(self: GroupScorer, groups: Sequence[Group]) -> list[Group]:
        found = original(self, groups)
        first = found[0].rollouts[0]
        if first.segments:
            ids = first.segments[0].token_ids.copy()
            ids[-1] = (ids[-1] + 1) % 10
            changed = replace(first, segments=(replace(first.segments[0], token_ids=ids),))
            found[0] = replace(found[0], rollouts=(changed, *found[0].rollouts[1:]))
        return found

    patch.setattr(GroupScorer, "collect", collect)


def logprob_not_finite(patch: Patch) -> None:
    """A log-probability of the learner is NaN in every update."""
    from samepath.rl.learner import update

    loss_of = update.policy_loss

    def loss(logprobs_M: Tensor, *rest: Any) -> Any:
        changed_M = logprobs_M.clone()
        changed_M[0] = torch.nan
        return loss_of(changed_M, *rest)

    patch.setattr(update, "policy_loss", loss)
