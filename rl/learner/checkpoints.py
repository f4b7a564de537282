"""A run's checkpoints on disk: written whole or not at all, verified before they are taken, dropped once newer ones are safe.

A checkpoint is a folder `checkpoints/step-000012` with a manifest. Beside them may lie, from a process that was killed:
`.step-….partial`, not yet whole; `.step-….replaced`, the one before of the same step, whole; `.step-….dropped`, half deleted.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from samepath.model.durable_file import sync
from samepath.model.json_file import read_json
from samepath.model.manifest import BrokenFolderError, require_whole, seal
from samepath.rl.run_folder import REFERENCE
from samepath.rl.run_state import RunState

logger = logging.getLogger("samepath.checkpoints")

STEP_FILE = "step.json"
_NAME = re.compile(r"step-(\d+)|\.step-(\d+)\.replaced")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, or a run without a whole one; the message says what to do."""


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    """Where a run's checkpoint of a step lies."""
    return run_dir / "checkpoints" / f"step-{step:06d}"


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside `folder`, sync and seal it, and put it in the place of `folder`.

    Whenever the process ends, either the old folder or the new one is whole on the disk, under its name or as `.….replaced`.
    Raises CheckpointError, with nothing changed, if the disk does not take it.
    """
    partial, replaced = _beside(folder, "partial"), _beside(folder, "replaced")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _delete(partial)
        write(partial)
        seal(partial)
        if folder.exists():
            _delete(replaced)
            os.replace(folder, replaced)
        os.replace(partial, folder)
        sync(folder.parent)
    except (OSError, SafetensorError) as error:
        # What is left of it would only take room on a disk that may be full.
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{folder} cannot be written: {error}. What stood there before is untouched. Make room, then go on with `samepath resume`."
        ) from error
    _delete(replaced)


def drop_others(newest: Path, keep: int, best: Path | None = None) -> None:
    """Delete what `newest`, just written, makes superfluous: all but `best` and the last `keep` up to its step, later ones, and leftovers.

    Later steps are of a past that the run has left: it went on from an earlier checkpoint.
    """
    step = _step_of(newest)
    whole = sorted(
        (folder for folder in newest.parent.glob("step-*") if _step_of(folder) <= step), key=_step_of, reverse=True
    )
    kept = {newest, *whole[:keep], best}
    for folder in [*newest.parent.glob("step-*"), *newest.parent.glob(".step-*")]:
        if folder in kept:
            continue
        dropped = _beside(folder, "dropped")
        if not folder.name.startswith("."):
            # Under its own name a half deleted one would be taken for a checkpoint.
            _delete(dropped)
            os.replace(folder, dropped)
            folder = dropped
        _delete(folder)


def latest_checkpoint(run_dir: Path) -> tuple[Path, int] | None:
    """The newest whole checkpoint of a run and its step, or None if it has written none.

    One that is torn or changed is passed over with a warning. Raises CheckpointError if none is whole.
    """
    refused = []
    for folder, step in _candidates(run_dir):
        try:
            _verify(folder, step)
        except BrokenFolderError as error:
            refused.append(str(error))
            logger.warning("the checkpoint of step %d is not whole and is passed over: %s", step, error)
            continue
        if refused:
            logger.warning("taking the checkpoint of step %d, the newest whole one: %s", step, folder)
        return folder, step
    if refused:
        raise CheckpointError(
            f"{run_dir} must hold a whole checkpoint; none is: {'; '.join(refused)}. "
            "Restore one from a copy, or begin again under another name=…."
        )
    return None


def checkpoint_of_step(run_dir: Path, step: int) -> tuple[Path, int]:
    """The whole checkpoint of one step. Raises CheckpointError that names the steps there are, or what is wrong with this one."""
    found = _candidates(run_dir)
    refused = []
    for folder, candidate in found:
        if candidate == step:
            try:
                _verify(folder, step)
            except BrokenFolderError as error:
                refused.append(str(error))
                continue
            return folder, step
    steps = sorted({candidate for _, candidate in found})
    raise CheckpointError(
        f"{run_dir} must hold a whole checkpoint of step {step}; "
        + ("; ".join(refused) if refused else f"it has those of steps {', '.join(map(str, steps)) or 'none'}")
        + ". Choose another step."
    )


def best_checkpoint(run_dir: Path) -> tuple[Path, int]:
    """The checkpoint with the best held-out accuracy of a run, which may be its reference, and its step.

    Raises CheckpointError if the run names none or it is not whole, RunStateError for a folder that is no run.
    """
    best = RunState.load(run_dir).best
    if best is None:
        raise CheckpointError(
            f"{run_dir} names no best checkpoint: none was kept (checkpoint.keep_best=false, or an older version), or no evaluation has "
            "given an accuracy yet. Leave --best out for the newest, or name a step."
        )
    if best.step == 0:
        return run_dir / REFERENCE, 0
    return checkpoint_of_step(run_dir, best.step)


def _candidates(run_dir: Path) -> list[tuple[Path, int]]:
    """Folders that may be checkpoints, newest first; of one step, the one under its own name before the one it replaced."""
    return sorted(_named(run_dir / "checkpoints"), key=lambda found: (-found[1], found[0].name.startswith(".")))


def _named(folder: Path) -> Iterator[tuple[Path, int]]:
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            yield path, int(match[1] or match[2])


def _verify(folder: Path, step: int) -> None:
    require_whole(folder)
    if (written := read_json(folder / STEP_FILE)["step"]) != step:
        raise BrokenFolderError(f"{folder} must hold the checkpoint of its step; it holds that of step {written}")


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def _delete(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
