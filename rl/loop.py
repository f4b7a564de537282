"""The algorithm on one page: sample, score, advantage, updates, new weights, again."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.alerts.alerts import Alerts
from samepath.rl.batch.failed_share import TooManyFailuresError
from samepath.rl.batch.refill import has_spread
from samepath.rl.batch.score_groups import GroupScorer
from samepath.rl.batch.train_batch import UpdateReport
from samepath.rl.diagnostics.conversations import cache_share
from samepath.rl.diagnostics.memory import resident_gib
from samepath.rl.diagnostics.weights import weight_metrics
from samepath.rl.evaluation.held_out import Evaluations, evaluate, set_requests
from samepath.rl.evaluation.outcomes import write_outcomes
from samepath.rl.evaluation.sets import AskedSet
from samepath.rl.feed import Feed
from samepath.rl.interruption import Interruption
from samepath.rl.learner.handle import LearnerHandle
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.report.progress import ProgressDisplay
from samepath.rl.saving import Saving
from samepath.rl.step_batch import StepBatch, step_batch
from samepath.rl.tasks.requests import answered
from samepath.rl.tasks.row import Task
from samepath.rl.tracking.step_rollouts import tracked_rollouts
from samepath.rl.tracking.tracker import Tracker
from samepath.rollout.environments.request import Request
from samepath.rollout.pool.pool import RolloutPool
from samepath.rollout.types import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """Everything the loop talks to; the same objects under Ray and inline."""

    recipe: Recipe
    task: Task
    sets: tuple[AskedSet, ...]
    tokenizer: Tokenizer
    learner: LearnerHandle
    pool: RolloutPool
    scorer: GroupScorer
    saving: Saving
    tracker: Tracker
    display: ProgressDisplay
    alerts: Alerts
    interruption: Interruption = field(default_factory=Interruption)

    def run(self, first_step: int, on_step: Callable[[int, dict[str, float]], None]) -> None:
        """Steps `first_step … steps − 1`. The pool already holds the learner's weights of version `first_step`.

        `on_step` gets a step that is done and its metrics, before its checkpoint is begun. An interrupt comes between two steps, or before
        a step's updates.
        """
        self.display.start_clock()
        self._say(self.alerts.begin(len(self.task.train)))
        for step in range(first_step, self.recipe.rl.steps):
            metrics, failed = {**self.one_step(step), "memory/driver_gib": resident_gib()}, None
            done = step + 1
            if (
                self.recipe.evaluation.every
                and done % self.recipe.evaluation.every == 0
                and done < self.recipe.rl.steps
            ):
                try:
                    metrics |= self.evaluated(done).metrics()
                except TooManyFailuresError as error:
                    # The step itself is done: its numbers are kept, and a checkpoint can be written.
                    failed = error
            self.tracker.log_metrics(done, metrics)
            said = self.alerts.step(done, metrics)
            on_step(done, metrics)
            self.saving.after(done)
            self.display.update(done, metrics)
            self._say(said)
            self.interruption.release()
            if failed is not None:
                raise failed

    def one_step(self, step: int) -> dict[str, float]:
        """One rollout batch and the updates on it; returns the step's metrics."""
        clock = PhaseClock(self.display)
        asked = self.requests(step)

        clock.start("sampling")
        before = self.pool.statistics()
        sampled = self._refilled(step, answered(self.pool, asked, self.scorer.submit))
        cached = cache_share(before, self.pool.statistics())

        clock.start("scoring")
        groups = self.scorer.collect(sampled)
        self._say(self.alerts.failures(groups))
        ready = step_batch(groups, step, self.recipe, self.task.name)

        clock.start("learning")
        self.interruption.hold()
        report = None
        if ready.batch is None:
            self.learner.advance()
        else:
            report = self.learner.update(ready.batch)

        clock.start("syncing")
        published = self.learner.weights()
        self.pool.load_weights(published, step + 1)
        synced = weight_metrics(published, self.pool.handover())

        clock.start("recording")
        metrics = self.recorded(step, ready, report)
        seconds = clock.stop()
        return {**metrics, **cached, **synced, **speeds(ready, seconds, sampling_s=seconds["sampling"])}

    def recorded(self, step: int, ready: StepBatch, report: UpdateReport | None) -> dict[str, float]:
        """Hand the step's rollouts to the tracker; returns what they and the update measured."""

        def write() -> None:
            rollouts = tracked_rollouts(
                step + 1, ready.groups, ready.advantages_by_group, ready.batch, report, self.tokenizer
            )
            self.tracker.log_rollouts(step + 1, rollouts)

        self.keep(write)
        return {**ready.metrics, **({} if report is None else report.metrics)}

    def keep(self, write: Callable[[], None]) -> None:
        """Have a step's rollouts written."""
        write()

    def requests(self, step: int) -> list[Request | Group]:
        """The prompts of one step with a seed for every sample: a function of the recipe's seed and the step alone.

        Where a row cannot be asked stands the group of its failed samples.
        """
        feed = self.feed()
        return [feed.request(number) for number in feed.batch(step)]

    def feed(self) -> Feed:
        """The order of groups."""
        return Feed(recipe=self.recipe, task=self.task, tokenizer=self.tokenizer)

    def _refilled(self, step: int, sampled: list[Group]) -> list[Group]:
        """The groups, and behind them those that replace some without spread (`rl.refill`), until enough have it or no more may be asked."""
        rl, feed = self.recipe.rl, self.feed()
        left = [*feed.refills(step)]
        while left:
            spread = sum(has_spread(self.scorer.peek(group), rl) for group in sampled)
            asked, left = left[: rl.prompts_per_step - spread], left[rl.prompts_per_step - spread :]
            if not asked:
                break
            sampled = sampled + answered(self.pool, [feed.request(number) for number in asked], self.scorer.submit)
        return sampled

    def evaluated(self, step: int) -> Evaluations:
        """Evaluate after `step` steps, and keep what came of it prompt by prompt, and whether it is the best."""
        results = self.evaluate()
        write_outcomes(self.recipe.run_dir, step, results.outcomes)
        self.saving.evaluated(step, results.headline.accuracy)
        return results

    def evaluate(self) -> Evaluations:
        """Accuracy on every set with the pool's current weights."""
        recipe, results = self.recipe, {}
        for asked in self.sets:
            self.display.phase(f"evaluating {asked.name}".rstrip())
            requests = set_requests(asked, self.tokenizer, recipe.seed, recipe.rl.group_size)
            results[asked.name] = evaluate(
                asked, requests, self.pool, self.scorer, recipe.reward.main_part, recipe.evaluation.full_reward
            )
            self._say(self.alerts.failures(results[asked.name].groups))
        return Evaluations(sets=results)

    def _say(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.display.message(text)


def speeds(ready: StepBatch, seconds: dict[str, float], sampling_s: float) -> dict[str, float]:
    """`time/…`, and the tokens a second of both sides; `sampling_s` is the time in which the groups were sampled, seconds."""
    sampled_tokens = sum(rollout.num_trained for group in ready.groups for rollout in group.rollouts)
    learned_tokens = 0 if ready.batch is None else sum(len(entry.segment.token_ids) for entry in ready.batch.sequences)
    return {
        **{f"time/{phase}_s": value for phase, value in seconds.items()},
        "time/step_s": sum(seconds.values()),
        "rollout/tokens_per_s": sampled_tokens / max(sampling_s, 1e-9),
        "learner/tokens_per_s": learned_tokens / max(seconds["learning"], 1e-9),
    }


class PhaseClock:
    """Seconds of each phase of a step, and its name on the display."""

    def __init__(self, display: ProgressDisplay) -> None:
        self._display = display
        self._seconds: dict[str, float] = {}
        self._phase, self._since = "", 0.0

    def start(self, phase: str) -> None:
        """End the phase before and begin `phase`."""
        self.stop()
        self._phase, self._since = phase, time.perf_counter()
        self._display.phase(phase)

    def stop(self) -> dict[str, float]:
        """End the phase; returns all seconds so far."""
        if self._phase:
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + time.perf_counter() - self._since
            self._phase = ""
        return self._seconds
