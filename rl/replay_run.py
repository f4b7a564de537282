"""A run that sampled while it learned, made again from its history: the same batches from the same tokens, and every step's weights compared."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from samepath.model.text.tokenizer import load_tokenizer
from samepath.rewards.runner import RewardRunner
from samepath.rewards.score import Score
from samepath.rl.batch.score_groups import GroupScorer, training_batch
from samepath.rl.feed import Feed
from samepath.rl.group_journal import GroupJournal
from samepath.rl.history import History, SampleLine, StepLine
from samepath.rl.learner.handle import InlineLearner, LearnerHandle
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.recipe.task import EnvironmentTask
from samepath.rl.resampling import ReplayError, Resampler, check_records
from samepath.rl.run_folder import REFERENCE, recipe_of_run
from samepath.rl.run_state import RunState
from samepath.rl.tasks.tasks import build_task
from samepath.rollout.capabilities import refusal
from samepath.rollout.engine_description import Capability
from samepath.rollout.pool.worker import RolloutWorker
from samepath.rollout.types import Group, Rollout
from samepath.rollout.weights.publication import Publication

DECIDED_BY_TIME = ("timeout", "memory", "died")
"""How a reward may go that does not follow from its response alone: it is taken as it went."""


@dataclass(slots=True, kw_only=True)
class _Replay:
    """A run that is made again, in this process."""

    recipe: Recipe
    run_dir: Path
    history: History
    feed: Feed
    learner: LearnerHandle
    scorer: GroupScorer
    resampler: Resampler | None
    """None: the groups of the journal are trained."""
    _kept: dict[int, Group] = field(default_factory=dict, init=False)
    _published: Publication | None = field(default=None, init=False)
    """Of the last step."""

    def step(self, line: StepLine) -> None:
        """Sample, score and learn as it was. Raises ReplayError."""
        groups = self._groups(line)
        for group in groups:
            self.scorer.submit(group)
        scored = [
            replace(group, rollouts=tuple(map(_scored, known.samples, group.rollouts)))
            for known, group in zip(line.groups, self.scorer.collect(groups), strict=True)
        ]
        batch, _ = training_batch(scored, self.recipe.rl)
        if batch is None:
            self.learner.advance()
        else:
            self.learner.update(batch)
        self._published = self.learner.weights()
        made = self._published.fingerprint
        if made != line.weights:
            raise ReplayError(
                f"step {line.step + 1}, groups {', '.join(group.group_id for group in groups)}: the weights after it are not those of the run "
                f"({made}, recorded {line.weights}), though all that it trained is. Learner, libraries and processor must be those of the run."
            )

    def _groups(self, line: StepLine) -> list[Group]:
        if self.resampler is None:
            return [self._recorded(line.step, number) for number in range(len(line.groups))]
        ahead = range(line.step, line.step + self.recipe.rl.max_weight_lag + 1)
        lines = [one for one in map(self.history.line, ahead) if one is not None]
        self.resampler.draw(self._published or self.learner.weights(), line.step, lines)
        return [self.resampler.group(line.step, group) for group in line.groups]

    def _recorded(self, step: int, place: int) -> Group:
        line = self.history.line(step)
        assert line is not None
        known = line.groups[place]
        if known.number not in self._kept:
            entries = GroupJournal(self.run_dir).entries(self.feed.step(known.number))
            self._kept |= {entry.number: entry.group for entry in entries}
        request = self.feed.request(known.number)
        group = request if isinstance(request, Group) else self._kept.pop(known.number, None)
        if group is None:
            raise ReplayError(
                f"step {step + 1}, group number {known.number}: it is not kept any more. Leave --from-rollouts out, or run with "
                "checkpoint.keep_sampled=true."
            )
        check_records(step, known, group)
        return group


def replay_run(run_dir: Path, *, from_rollouts: bool, on_step: Callable[[StepLine], None]) -> int:
    """Make all steps of a run's history again from its reference, and hold every sample and the weights after every step to it, to the bit.

    Returns how many steps that were; the run's folder stays as it is. `from_rollouts` trains the groups that the run has kept
    (`checkpoint.keep_sampled`) in place of sampling them anew. Raises ReplayError.
    """
    recipe, history = recipe_of_run(run_dir), History(run_dir)
    _check(recipe, history, run_dir, from_rollouts=from_rollouts)
    recipe_dir, reference = Path(RunState.load(run_dir).recipe_dir), run_dir / REFERENCE
    alone = recipe.model_copy(update={"runtime": "inline"})
    feed = Feed(recipe=alone, task=build_task(alone.task, recipe_dir), tokenizer=load_tokenizer(reference))
    with RewardRunner(alone.reward) as runner:
        learner = InlineLearner(alone, recipe_dir, run_dir, reference)
        try:
            resampler = None
            if not from_rollouts:
                worker = RolloutWorker(reference, alone.engine, alone.rollout.threads, alone.model.placement)
                resampler = Resampler(worker, feed)
            replay = _Replay(
                recipe=alone,
                run_dir=run_dir,
                history=history,
                feed=feed,
                learner=learner,
                scorer=GroupScorer(runner),
                resampler=resampler,
            )
            for step in history.steps:
                line = history.line(step)
                assert line is not None
                replay.step(line)
                on_step(line)
        finally:
            learner.close()
    return len(history.steps)


def _check(recipe: Recipe, history: History, run_dir: Path, *, from_rollouts: bool) -> None:
    """Raise ReplayError for a run that cannot be made again."""
    if not recipe.rl.max_weight_lag:
        raise ReplayError(
            f"{run_dir} sampled and learned in turn (rl.max_weight_lag=0): nothing was decided by time. Run its recipe again under another name."
        )
    if history.steps != list(range(len(history.steps))) or not history.steps:
        raise ReplayError(
            f"{run_dir} must hold the history of every step from the first on; it has {len(history.steps)} steps"
        )
    if from_rollouts:
        return
    again = "Leave the sampling out with --from-rollouts."
    if isinstance(recipe.task, EnvironmentTask):
        raise ReplayError(
            f"the conversations of {run_dir} cannot be led again: an environment may answer otherwise. {again}"
        )
    if recipe.rl.on_new_weights == "continue":
        raise ReplayError(
            f"{run_dir} went on behind keys of older weights (rl.on_new_weights=continue), which are not in its history. {again}"
        )
    for capability in (Capability.GO_ON, Capability.BATCH_INVARIANT):
        if reason := refusal(capability, recipe.engine):
            raise ReplayError(f"the samples of {run_dir} cannot be drawn again: {reason}. {again}")
    if not recipe.model.placement.batch_invariant:
        raise ReplayError(f"with model.batch_invariant=false samples depend on what else is drawn. {again}")


def _scored(known: SampleLine, rollout: Rollout) -> Rollout:
    """The rollout with its score, which must be that of the run. Raises ReplayError."""
    if known.status in DECIDED_BY_TIME:
        return replace(rollout, score=Score(total=math.nan, status=known.status))  # type: ignore[arg-type]
    score = rollout.score
    status = "" if score is None else score.status
    total = None if score is None or not math.isfinite(score.total) else score.total
    if (status, total) != (known.status, known.reward):
        raise ReplayError(
            f"group {rollout.group_id}, sample {rollout.sample_index}: its reward must be {known.reward} ({known.status or 'none'}) as in the run; now "
            f"it is {total} ({status or 'none'}). A reward function must give the same for the same response."
        )
    return rollout
