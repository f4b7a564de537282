"""The runs of a sweep, each in a process of its own, so that one that fails or leaks takes no other with it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal

from samepath.rl.compare.runs import PLACES, flattened
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run_folder import recipe_of_run
from samepath.rl.run_state import STATE_FILE, RunState
from samepath.rl.sweep.plan import PlannedRun, Sweep, SweepError

Ending = Literal["finished", "was finished", "failed", "interrupted"]
LAST_LINES = 3
"""Of a failed run's output that are shown."""
INTERRUPTED = 130
"""Exit status of a run that Ctrl-C or SIGTERM has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What became of a run.

    Example:
        Ended(run=run, ending="failed", detail="error: …", log=Path("runs/quickstart-sweep/quickstart-lr_1.log"))
    """

    run: PlannedRun
    ending: Ending
    detail: str = ""
    """The last that a failed run said."""
    log: Path | None = None
    """Its output; None where nothing was started."""


def command_of(run: PlannedRun, recipe_file: Path) -> list[str]:
    """The words after `samepath` that bring a run to its end: `run`, `resume`, or nothing where it is finished. Raises RecipeError or RunStateError."""
    folder = run.recipe.run_dir
    if not (folder / STATE_FILE).is_file():
        return ["run", str(recipe_file), *run.overrides]
    if _differs(recipe_of_run(folder), run.recipe):
        # Whether a run that has begun may change so is for `resume` to say.
        changes = [word for word in run.overrides if word.partition("=")[0] not in PLACES]
        return ["resume", str(folder), *changes]
    return [] if RunState.load(folder).phase == "finished" else ["resume", str(folder)]


def _differs(there: Recipe, wanted: Recipe) -> bool:
    left_out = {*PLACES, *(("rl.steps", "rl.epochs") if wanted.rl.epochs else ())}
    sides = [dict(flattened(recipe.model_dump(mode="json"))) for recipe in (there, wanted)]
    return any(
        sides[0].get(key) != sides[1].get(key) for key in sides[0].keys() | sides[1].keys() if key not in left_out
    )


def check_room(sweep: Sweep, jobs: int) -> None:
    """Raise SweepError if so many runs at once would want more of this machine than it has, or of a cluster that nobody here knows."""
    if jobs == 1:
        return
    for run in sweep.runs:
        recipe = run.recipe
        if recipe.runtime == "ray" and recipe.ray.address != "local":
            raise SweepError(
                f"--jobs={jobs} needs to know what is free; {run.name} joins a cluster (ray.address={recipe.ray.address}), where runs go in turn"
            )
        if recipe.model.device == "cuda":
            raise SweepError(
                f"--jobs={jobs} would have the runs share GPUs; {run.name} has model.device=cuda. Leave --jobs out"
            )
    wanted = jobs * max(_processes(run.recipe) for run in sweep.runs)
    cores = os.process_cpu_count() if hasattr(os, "process_cpu_count") else len(os.sched_getaffinity(0))
    if wanted > (cores or 1):
        raise SweepError(
            f"--jobs={jobs} would run {wanted} computing processes on {cores} cores. Give a lower number, or leave --jobs out"
        )


def _processes(recipe: Recipe) -> int:
    """Processes of a run that compute at one time: ranks and workers take turns unless it samples while it learns."""
    workers = recipe.rollout.num_workers if recipe.runtime == "ray" else 1
    return recipe.learner.ranks + workers if recipe.rl.max_weight_lag else max(recipe.learner.ranks, workers)


@dataclass(slots=True)
class Runner:
    """Makes the runs; a signal ends it once the runs under way have left their checkpoints."""

    sweep: Sweep
    say: Callable[[str], None]
    command: Sequence[str] = (sys.executable, "-c", "from samepath.rl.cli import main; main()")
    """What stands for `samepath`."""
    _children: set["subprocess.Popen[bytes]"] = field(default_factory=set, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _stopping: bool = field(default=False, init=False)

    def run(self, jobs: int) -> list[Ended]:
        """Bring every run to its end, `jobs` at a time, in order; what has become of each. One that fails stops no other."""
        self.sweep.folder.mkdir(parents=True, exist_ok=True)
        with self._signals(), ThreadPoolExecutor(jobs) as pool:
            waiting = [pool.submit(self._one, number) for number in range(len(self.sweep.runs))]
            return [one.result() for one in waiting]

    def _one(self, number: int) -> Ended:
        run = self.sweep.runs[number]
        place = f"{number + 1}/{len(self.sweep.runs)} {run.name}"
        if self._stopping:
            return Ended(run=run, ending="interrupted")
        try:
            words = command_of(run, self.sweep.recipe_file)
        except (ValueError, OSError) as error:
            self.say(f"{place}: failed: {error}")
            return Ended(run=run, ending="failed", detail=str(error))
        if not words:
            self.say(f"{place}: was finished")
            return Ended(run=run, ending="was finished")
        log = self.sweep.folder / f"{run.name}.log"
        self.say(f"{place}: {'begins' if words[0] == 'run' else 'goes on'}, output in {log}")
        status = self._status([*self.command, *words], log)
        if status == 0:
            self.say(f"{place}: finished")
            return Ended(run=run, ending="finished", log=log)
        if self._stopping or status == INTERRUPTED:
            return Ended(run=run, ending="interrupted", log=log)
        detail = "\n".join(_last_lines(log))
        self.say(f"{place}: failed with status {status}:\n{detail}")
        return Ended(run=run, ending="failed", detail=detail or f"status {status}", log=log)

    def _status(self, command: Sequence[str], log: Path) -> int:
        with log.open("ab") as output:
            with self._lock:
                if self._stopping:
                    return INTERRUPTED
                # A group of its own: a Ctrl-C reaches it once, through this process.
                child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
                )
                self._children.add(child)
            status = child.wait()
            with self._lock:
                self._children.discard(child)
        return status

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Hand Ctrl-C and SIGTERM to the runs under way, and begin no other."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            # The main thread, which handles signals, holds the lock nowhere else.
            with self._lock:
                self._stopping = True
                for child in self._children:
                    child.send_signal(signal.SIGTERM)

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _last_lines(log: Path) -> list[str]:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if line.strip()][-LAST_LINES:]
