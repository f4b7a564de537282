"""When a run's checkpoints are written, and when `run.json` and tracking say so: only once they are whole."""

import math
from dataclasses import dataclass, field

from samepath.rl.learner.checkpoints import checkpoint_folder, drop_others
from samepath.rl.learner.handle import LearnerHandle
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.report.progress import ProgressDisplay
from samepath.rl.run_folder import REFERENCE
from samepath.rl.run_state import Best, RunState
from samepath.rl.tracking.tracker import Tracker


@dataclass(slots=True, kw_only=True)
class Saving:
    """A run's checkpoints as its driver sees them: begun, and later whole."""

    recipe: Recipe
    learner: LearnerHandle
    tracker: Tracker
    display: ProgressDisplay
    state: RunState
    newest: int
    """Step of the newest checkpoint that was begun; −1 if there is none."""
    _begun: int | None = field(default=None, init=False)
    """Step of the one that is not known to be whole."""
    _best: Best | None = field(default=None, init=False)
    """The best evaluation so far, whose checkpoint may not be whole yet."""

    def __post_init__(self) -> None:
        if not self.recipe.checkpoint.keep_best:
            self.state.best = None
        self._best = self.state.best

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is not known to be whole."""
        return self._begun is not None

    def evaluated(self, step: int, accuracy: float) -> None:
        """Take note of an evaluation of the weights after `step` steps; a new best makes a checkpoint of that step due.

        Of equal accuracies the earliest counts, and NaN counts for nothing. Without `checkpoint.keep_best` nothing is noted.
        """
        if not self.recipe.checkpoint.keep_best or math.isnan(accuracy):
            return
        if self._best is None or accuracy > self._best.accuracy:
            self._best = Best(step=step, accuracy=accuracy)
            self._name_best()

    def due(self, done: int) -> bool:
        """Whether a checkpoint is to be begun now that `done` steps are done."""
        every = self.recipe.checkpoint.every
        return bool(every and done % every == 0) or (self._best is not None and self._best.step == done)

    def after(self, done: int) -> None:
        """Begin a checkpoint if one is due now that `done` steps are done, and write `run.json`. Raises CheckpointError."""
        if self.due(done):
            self.begin(done)
            return
        self._look(wait=False)
        self.state.save(self.recipe.run_dir)

    def begin(self, step: int) -> None:
        """Begin the checkpoint of a step, unless that was done. Raises CheckpointError if this or the one before cannot be written."""
        if step == self.newest:
            return
        self._look(wait=True)
        self.newest = step
        # Before it can be whole: whoever goes on from it needs to know how the totals stood.
        self.state.begin(self.recipe.run_dir, step, self._best)
        self.state.save(self.recipe.run_dir)
        # Also before: a save that a signal cut off in its middle is waited for.
        self._begun = step
        self.learner.save(step, None if self._best is None else self._best.step)
        self._look(wait=False)

    def finish(self) -> None:
        """Wait until every checkpoint that was begun is whole. Raises CheckpointError."""
        self._look(wait=True)

    def end(self) -> None:
        """The same after the last evaluation, and drop the best before it if that is not the best any more."""
        self.finish()
        if self._best is not None and self.newest > 0:
            folder = checkpoint_folder(self.recipe.run_dir, self._best.step)
            drop_others(checkpoint_folder(self.recipe.run_dir, self.newest), self.recipe.checkpoint.keep, folder)

    def close(self) -> None:
        """The same after an error that is already on its way: what the writing raised is said, and nothing is raised."""
        step = self.newest
        try:
            self.finish()
        except (RuntimeError, OSError) as error:
            self.display.message(f"the checkpoint of step {step} was not written: {error}")

    def _look(self, *, wait: bool) -> None:
        if self._begun is None:
            return
        step = self._begun
        try:
            whole = self.learner.saved(step, wait=wait)
        except (RuntimeError, OSError):
            # Raised once: it ends the run.
            self._begun = None
            raise
        if whole or wait:
            # Before what follows, which a full disk may cut off: it is counted once.
            self._begun = None
        if whole:
            self.state.whole(step, self.recipe.checkpoint.keep)
            self._name_best()
            self.state.save(self.recipe.run_dir)
            self.tracker.log_checkpoint(step, checkpoint_folder(self.recipe.run_dir, step))

    def _name_best(self) -> None:
        """Name the best in `run.json`, if its checkpoint is whole; that of step 0 is the reference."""
        best = self._best
        if best is None or best == self.state.best or (best.step and best.step not in self.state.marks):
            return
        self.state.best = best
        run_dir = self.recipe.run_dir
        folder = checkpoint_folder(run_dir, best.step) if best.step else run_dir / REFERENCE
        self.tracker.log_best(best.step, folder, best.accuracy)
