"""`samepath replay`: what a run could not send to MLflow is sent, and a run whose process is no more gets its end there."""

from dataclasses import dataclass
from pathlib import Path

from samepath.rl.run_folder import RunFolderError, claimed, recipe_of_run
from samepath.rl.run_state import STATE_FILE, RunState
from samepath.rl.tracking.events import StoreUnavailableError
from samepath.rl.tracking.tracker import end_in_mlflow, resend_to_mlflow, store_uri


@dataclass(frozen=True, slots=True, kw_only=True)
class Resent:
    """What became of it, for people."""

    said: tuple[str, ...] = ()
    """Sentences."""
    problem: str = ""
    """What is still to be done, or ""."""


def resend_run(run_dir: Path) -> Resent:
    """Send what waits in the run's folder, which is held meanwhile: a live run sends its own events, and is RUNNING.

    Raises FileNotFoundError or RecipeError for what is no run's folder, RuntimeError without MLflow.
    """
    recipe = recipe_of_run(run_dir)
    uri = store_uri(recipe.tracking.uri, run_dir.parent)
    try:
        with claimed(run_dir):
            resent = _sent(run_dir, uri)
            if resent.problem or recipe.tracking.kind != "mlflow" or not (run_dir / STATE_FILE).is_file():
                return resent
            ending = _ended(run_dir, uri, recipe.tracking.experiment)
            return Resent(said=(*resent.said, *ending.said), problem=ending.problem)
    except RunFolderError:
        return Resent(
            problem=f"{run_dir} is held by a live run, which sends what waits by itself and is RUNNING in MLflow. Nothing was done; "
            f"call `samepath replay {run_dir}` again when it has ended."
        )


def _sent(run_dir: Path, uri: str) -> Resent:
    queue_file = run_dir / "tracking-queue.jsonl"
    counts = resend_to_mlflow(queue_file, uri)
    if counts.sent == counts.refused == counts.waiting == 0:
        return Resent(said=(f"nothing waits to be sent: {run_dir} has no {queue_file.name}",))
    return Resent(
        said=(f"sent {counts.sent}, refused {counts.refused}, waiting {counts.waiting}",),
        problem=f"MLflow at {uri} did not take the rest, which stays in {queue_file}. Once it answers, call `samepath replay {run_dir}` again."
        if counts.waiting
        else "",
    )


def _ended(run_dir: Path, uri: str, experiment: str) -> Resent:
    """Give the run its end: nobody holds its folder, so no process works on it."""
    state = RunState.load(run_dir)
    # Written last when the run last did something.
    ended_ms = int(1000 * (run_dir / STATE_FILE).stat().st_mtime)
    try:
        before, after = end_in_mlflow(uri, experiment, state.run_id, state.phase == "finished", ended_ms)
    except StoreUnavailableError as error:
        return Resent(
            problem=f"MLflow at {uri} does not answer ({error}). Call `samepath replay {run_dir}` again when it does."
        )
    if before == after:
        return Resent()
    return Resent(said=(f"the run has ended but was {before} in MLflow: it is {after} now",))
