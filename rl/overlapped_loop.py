"""The loop of a run that samples while it learns (`rl.max_weight_lag` ≥ 1): rollout workers are `max_weight_lag` steps ahead at most.

workers   ├─ groups of step 2, weights 0 ─┤├─ groups of step 3, weights 1 ─┤
learner   ├─ learns step 1 ─┤─ waits ─────┤├─ learns step 2 ─┤
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from samepath.rl.batch.train_batch import TrainBatch, UpdateReport
from samepath.rl.begun_journal import BegunJournal
from samepath.rl.diagnostics.weights import weight_metrics
from samepath.rl.evaluation.held_out import Evaluations
from samepath.rl.group_journal import GroupJournal
from samepath.rl.history import History, step_line
from samepath.rl.loop import Loop, PhaseClock, speeds
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.rollout_stream import RolloutStream
from samepath.rl.run_folder import CHECKPOINTS, step_of
from samepath.rl.step_batch import StepBatch, step_batch
from samepath.rollout.bounded_call import Begun
from samepath.rollout.weights.publication import Publication

LOOK_S = 0.02
"""How often the driver looks at sampler and learner, seconds."""
RECORD_S = 600.0
"""Longest wait for the rollouts of a step to be written."""


@dataclass(slots=True)
class _Records:
    """Rollouts that are written while the next step is learned: those of one step at a time."""

    begun: Begun[None] | None = None
    waiting: Callable[[], None] | None = None
    """Writes those that nobody has begun to write."""

    def keep(self, write: Callable[[], None]) -> None:
        """Write them later, once those before are written."""
        self.finish()
        self.waiting = write

    def begin(self) -> None:
        """Write what waits in a thread, beside which the driver has little to do."""
        if self.waiting is not None:
            self.begun, self.waiting = Begun("records", self.waiting), None

    def finish(self) -> None:
        """Wait until they are written; raises what the writing raised."""
        self.begin()
        begun, self.begun = self.begun, None
        if begun is not None:
            begun.result(RECORD_S)


@dataclass(slots=True)
class _Ahead:
    """The next step, which is made ready in a thread. What that raises is raised when its turn comes: the step before is a whole one."""

    begun: Begun[StepBatch] | None = None
    groups: int = 0
    """How many it holds."""

    def begin(self, recipe: Recipe, stream: RolloutStream, step: int) -> None:
        """Score the groups of a step that is complete, and make a batch of them."""
        groups = stream.taken(step)
        self.groups = len(groups)
        # The scorer is asked for these groups here and for others there: it keeps nothing between two of them but counts of failures, which no
        # other call touches until this one has come back.
        self.begun = Begun(
            "batch", lambda: step_batch(stream.scorer.collect(groups), step, recipe, stream.feed.task.name)
        )

    def settle(self) -> None:
        """Wait until it is ready or has failed."""
        if self.begun is not None:
            self.begun.settle()

    def taken(self) -> StepBatch:
        """The step, or what its making raised; the next one may begin."""
        assert self.begun is not None
        self.settle()
        begun, self.begun, self.groups = self.begun, None, 0
        return begun.result(0.0)


@dataclass(slots=True)
class _SinceLast:
    """When the step before was done, and for how long workers had been idle by then."""

    time_s: float = 0.0
    idle_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlappedLoop(Loop):
    """As `Loop`, but for how a step comes about: evaluations, checkpoints and records are the same."""

    stream: RolloutStream = field(init=False)
    history: History = field(init=False)
    _since: _SinceLast = field(default_factory=_SinceLast, init=False)
    _records: _Records = field(default_factory=_Records, init=False)
    _ahead: _Ahead = field(default_factory=_Ahead, init=False)

    def __post_init__(self) -> None:
        history = History(self.recipe.run_dir)
        stream = RolloutStream(
            feed=self.feed(),
            pool=self.pool,
            scorer=self.scorer,
            on_new_weights=self.recipe.rl.on_new_weights,
            journal=GroupJournal(self.recipe.run_dir),
            begun=BegunJournal(self.recipe.run_dir),
            history=history,
        )
        object.__setattr__(self, "stream", stream)
        object.__setattr__(self, "history", history)

    def run(self, first_step: int, on_step: Callable[[int, dict[str, float]], None]) -> None:
        """See `Loop.run`. Whatever ends it, and before a checkpoint is begun, the rollouts of all steps that are done are written."""

        def written(step: int, metrics: dict[str, float]) -> None:
            if self.saving.due(step):
                self._records.finish()
            on_step(step, metrics)

        try:
            # Not the short form: a dataclass with slots is a class of its own, which that one does not find.
            super(OverlappedLoop, self).run(first_step, written)
        finally:
            self._records.finish()

    def keep(self, write: Callable[[], None]) -> None:
        """While the next step is learned: between two updates the learner would wait for it."""
        self._records.keep(write)

    def one_step(self, step: int) -> dict[str, float]:
        """Learn from the next groups by number while later ones are sampled; returns the step's metrics."""
        clock = PhaseClock(self.display)
        if not self._since.time_s:
            self._measured()
            self.stream.begin(step)

        clock.start("waiting")
        ready = self._ready(step)
        self._say(self.alerts.failures(ready.groups))

        clock.start("learning")
        self.interruption.hold()
        report = self._learned(step, ready.batch)

        clock.start("syncing")
        arrived = self.pool.handover()
        published = self.learner.weights()
        lost = self._offered(step, ready, published)

        clock.start("recording")
        metrics = self.recorded(step, ready, report)
        self._prune(step + 1)
        seconds = clock.stop()
        wall_s, idle_s = self._measured()
        return {
            **metrics,
            **weight_metrics(published, arrived),
            **speeds(ready, seconds, sampling_s=wall_s),
            "rollout/tokens_lost": float(lost),
            "rollout/idle_s": idle_s,
            "rollout/idle_share": min(1.0, idle_s / max(wall_s, 1e-9)),
            "rollout/groups_waiting": float(self.stream.waiting + self._ahead.groups),
            "rollout/groups_under_way": float(self.stream.under_way),
            "learner/idle_s": max(0.0, wall_s - seconds["learning"]),
            "learner/idle_share": max(0.0, 1 - seconds["learning"] / max(wall_s, 1e-9)),
        }

    def evaluate(self) -> Evaluations:
        """See `Loop.evaluate`; not beside the making of a batch, which judges failed scores too."""
        self._ahead.settle()
        return super(OverlappedLoop, self).evaluate()

    def _ready(self, step: int) -> StepBatch:
        """The groups of a step, scored and made a batch: begun while the step before was learned, if they had all ended by then."""
        if self._ahead.begun is None:
            while not self.stream.complete(step):
                self.stream.pump(LOOK_S)
            return step_batch(self.scorer.collect(self.stream.taken(step)), step, self.recipe, self.task.name)
        return self._ahead.taken()

    def _learned(self, step: int, batch: TrainBatch | None) -> UpdateReport | None:
        """The updates on a batch, while the sampler is looked after, records are written and the next step is made ready."""
        if batch is None:
            self.learner.advance()
            return None
        update = Begun("update", lambda: self.learner.update(batch))
        self._records.begin()
        while not update.done:
            self.stream.pump(LOOK_S)
            following = step + 1
            if following < self.recipe.rl.steps and self._ahead.begun is None and self.stream.complete(following):
                self._ahead.begin(self.recipe, self.stream, following)
        return update.result(0.0)

    def _offered(self, step: int, ready: StepBatch, published: Publication) -> int:
        """Note the step, and hand its weights over; returns how many tokens are lost because a step made again gave other ones."""
        version, before = step + 1, self.history.weights(step + 1)
        numbers = [self.stream.feed.number(group.group_id) for group in ready.groups]
        # Before anything is drawn with these weights, which is theirs only as long as their name is known.
        self.history.note(step_line(step, numbers, ready.groups, published.fingerprint))
        lost = self.stream.offer(published, version, known=before == published.fingerprint)
        if lost:
            again = f"{lost} tokens that the earlier ones drew are drawn again"
            self._say([f"warning: step {version}, made again, has other weights than before: {again}"])
        return lost

    def _prune(self, done: int) -> None:
        """Let go of trained groups that no checkpoint needs; the reference is that of step 0."""
        # What is left over stands with the step that asked for it.
        later = int(self.recipe.rl.oversample > 0)
        self.stream.begun.prune(done - later)
        if self.recipe.checkpoint.keep_sampled:
            return
        folder = self.recipe.run_dir / CHECKPOINTS
        written = {step_of(path) for path in [*folder.glob("step-*"), *folder.glob(".step-*.replaced")]}
        needed = {step - later for step in (0, *written)}
        self.stream.journal.prune(done - later, needed, self.recipe.rl.max_weight_lag + later)

    def _measured(self) -> tuple[float, float]:
        """Seconds since the last call, and those of them in which workers had nothing to sample."""
        now, idle_s = time.perf_counter(), self.pool.idle_s()
        before = _SinceLast(self._since.time_s, self._since.idle_s)
        self._since.time_s, self._since.idle_s = now, idle_s
        return now - before.time_s, idle_s - before.idle_s
