"""The folder of a run: who holds it, and what in it belongs to which start. Needs no torch."""

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from samepath.rl.file_errors import said
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run_state import METRICS_FILE, RECIPE_FILE, STATE_FILE, RunState

LOCK_FILE = "run.lock"
"""Locked by the process that runs; the operating system lets go of it when the process ends, however it ends."""
REFERENCE = "reference"
CHECKPOINTS = "checkpoints"
ROLLOUTS = "rollouts"
EVALUATIONS = "evaluations"
"""What each evaluation gave prompt by prompt."""
SAMPLED = "sampled"
"""Groups that were sampled ahead of the learner, and samples under way."""
HISTORY = "history.jsonl"
"""What time decided in a run that samples while it learns."""
ALERTS_FILE = "alerts.jsonl"
"""What was said of the run's numbers, and what ended it."""
FAULTS_FILE = "faults.jsonl"
"""What was broken on purpose (`faults` of the recipe)."""
OUTCOME = ("summary.json", "training.png", "rollouts.html", "report.html")
"""Written when a run is finished."""
BELONGINGS = (
    RECIPE_FILE,
    "recipe-attempt-*.yaml",
    METRICS_FILE,
    ROLLOUTS,
    EVALUATIONS,
    SAMPLED,
    HISTORY,
    REFERENCE,
    CHECKPOINTS,
    "tracking.json",
    "tracking-queue*",
    FAULTS_FILE,
    ALERTS_FILE,
    *OUTCOME,
    ".*.partial",
    ".*.replaced",
    STATE_FILE,
)
"""All that a run writes, in the order in which it is taken away: without its recipe a half cleared folder cannot be resumed."""


class RunFolderError(RuntimeError):
    """The folder belongs to another run or process, or holds what a run would mix with its own."""


class RunFolderUnusableError(OSError):
    """The file system does not let a run write its folder; the message names the path and what to do."""


@contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Hold the run's folder, which is made if missing, against every other process.

    Raises:
        RunFolderError: another process holds it; nothing was written.
        RunFolderUnusableError: it cannot be made or written.
    """
    descriptor = _locked(run_dir)
    try:
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat("T", "seconds"),
        }
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, (json.dumps(holder) + "\n").encode(), 0)
        except OSError as error:
            raise RunFolderUnusableError(error.errno, f"{run_dir / LOCK_FILE}: {error.strerror}") from error
        yield
    finally:
        os.close(descriptor)


def _locked(run_dir: Path) -> int:
    """Descriptor of the locked file, which child processes do not inherit."""
    path = run_dir / LOCK_FILE
    while True:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise RunFolderUnusableError(error.errno, said(error)) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise RunFolderError(
                f"{run_dir} is in use by {_holder(path)}. Wait for it, end it, or choose another name=…"
            ) from error
        except OSError as error:
            os.close(descriptor)
            raise RunFolderUnusableError(
                error.errno, f"{path}: the file system gives no locks ({error.strerror}). Set runs_dir to one that does"
            ) from error
        # Somebody may have deleted the folder between the two calls: then this lock holds nothing.
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return "another process, which has just begun"
    return f"process {holder['pid']} on {holder['host']} since {holder['since']}"


def unusable(run_dir: Path) -> str:
    """Why a run could not write its folder, or "": looks, and writes nothing."""
    there = run_dir
    while not there.exists() and there.parent != there:
        there = there.parent
    if not there.is_dir():
        return f"{there} must be a folder; it is a file. Move it, or set runs_dir or name to a place that is free."
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} cannot be written. Make it writable for this user, or set runs_dir to a folder that is."
    return ""


def recipe_of_run(run_dir: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a run's folder, where it stands now, with settings laid over it. Raises FileNotFoundError or RecipeError."""
    if not (run_dir / RECIPE_FILE).is_file():
        raise FileNotFoundError(f"{run_dir} is no run folder: it has no {RECIPE_FILE}")
    where = [f"runs_dir={run_dir.resolve().parent}", f"name={run_dir.resolve().name}"]
    return load_recipe(run_dir / RECIPE_FILE, [*overrides, *where], Recipe)


def run_of_checkpoint(folder: Path) -> Path | None:
    """The run that a checkpoint folder, or a reference, lies in; None outside a run."""
    folder = folder.resolve()
    run_dir = folder.parent.parent if folder.parent.name == CHECKPOINTS else folder.parent
    inside = folder.name == REFERENCE or folder.parent.name == CHECKPOINTS
    return run_dir if inside and (run_dir / RECIPE_FILE).is_file() else None


def begun(run_dir: Path) -> RunState | None:
    """State of the unfinished start in this folder, or None.

    Raises:
        RunFolderError: there is more: a run to go on with.
        RunFolderUnusableError: the folder could not be written.
    """
    if problem := unusable(run_dir):
        raise RunFolderUnusableError(problem)
    state = RunState.load(run_dir) if (run_dir / STATE_FILE).is_file() else None
    if state is None and (run_dir / CHECKPOINTS).exists():
        raise RunFolderError(
            f"{run_dir} holds checkpoints without {STATE_FILE}, which no run leaves. Choose another name=…, or move them."
        )
    if state is not None and state.phase in ("training", "finished"):
        done = " that is finished" if state.phase == "finished" else ""
        raise RunFolderError(
            f"{run_dir} already holds a run{done}. Choose another name=…, delete the folder, or go on with `samepath resume {run_dir}`."
        )
    return state


def clear_start(run_dir: Path) -> str:
    """Take away what an unfinished start left; a whole reference, which may have taken a long cold start, is set aside with its files.

    Returns a sentence about it, or "" if there was nothing.
    """
    state = begun(run_dir)
    if state is None and not (run_dir / RECIPE_FILE).exists():
        return ""
    found = belongings(run_dir)
    if state is not None and state.phase == "evaluation":
        folder = set_aside(run_dir, found)
        return f"an earlier start under this name ended before its first step: its files are in {folder} now"
    for path in found:
        remove(path)
    return "an earlier start under this name ended before its first step: its files are removed"


def belongings(run_dir: Path) -> list[Path]:
    """All files and folders of a run, in the order in which they may be taken away."""
    return [path for pattern in BELONGINGS for path in sorted(run_dir.glob(pattern))]


def set_aside(run_dir: Path, paths: Sequence[Path]) -> Path:
    """Move files of the run, one after the other, to their places below a new folder `set-aside-…`; returns that folder."""
    number = 1
    while (folder := run_dir / f"set-aside-{number}").exists():
        number += 1
    for path in paths:
        target = folder / path.relative_to(run_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    return folder


def remove(path: Path) -> None:
    """Remove a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def steps_after(folder: Path, step: int) -> list[Path]:
    """Entries `step-…` of a folder (checkpoints, also those being replaced, files of rollouts) that are later than `step`, latest first."""
    found = [*folder.glob("step-*"), *folder.glob(".step-*.replaced")]
    return sorted((path for path in found if step_of(path) > step), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Step in a name such as `step-000040` or `step-00040.jsonl`."""
    return int(path.name.removeprefix(".").removeprefix("step-").split(".")[0])
