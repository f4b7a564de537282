"""When a run's checkpoints are written, and when `run.json` and tracking say so: only once they are whole."""

from dataclasses import dataclass, field

from samepath.rl.learner.checkpoints import checkpoint_folder
from samepath.rl.learner.handle import LearnerHandle
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.report.progress import ProgressDisplay
from samepath.rl.run_state import RunState
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

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is not known to be whole."""
        return self._begun is not None

    def after(self, done: int) -> None:
        """Begin a checkpoint if one is due now that `done` steps are done, and write `run.json`. Raises CheckpointError."""
        every = self.recipe.checkpoint.every
        if every and done % every == 0:
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
        self.state.begin(self.recipe.run_dir, step)
        self.state.save(self.recipe.run_dir)
        # Also before: a save that a signal cut off in its middle is waited for.
        self._begun = step
        self.learner.save(step)
        self._look(wait=False)

    def finish(self) -> None:
        """Wait until every checkpoint that was begun is whole. Raises CheckpointError."""
        self._look(wait=True)

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
            self.state.save(self.recipe.run_dir)
            self.tracker.log_checkpoint(step, checkpoint_folder(self.recipe.run_dir, step))
