"""A program: a run that is killed (SIGKILL) at chosen moments and resumed each time, in children forked from one warm interpreter.

`python -m tests.rl.killed_runs RECIPE RUNS_DIR` reads lines `NAME MOMENT` (0: not at all), starts or resumes run NAME until that moment, and answers
with the exit status and how many moments went by. A moment is the beginning or end of a call that writes, computes or evaluates, in whichever thread.
"""

import contextlib
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from samepath.rl import run as run_module
from samepath.rl.learner import checkpoints
from samepath.rl.learner.learner import Learner
from samepath.rl.learner.snapshot import Snapshot
from samepath.rl.loop import Loop
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run_folder import recipe_of_run
from samepath.rl.run_state import STATE_FILE, RunState
from samepath.rl.tracking.jsonl import JsonlSink
from tests.rl.warm import warm_up

WATCHED: list[tuple[Any, str]] = [
    (os, "replace"),
    (os, "truncate"),
    (shutil, "rmtree"),
    (Learner, "cold_start"),
    (Learner, "start_rl"),
    (Learner, "update"),
    (Learner, "save"),
    (Learner, "saved"),
    (Snapshot, "write"),
    (checkpoints, "seal"),
    (Loop, "evaluate"),
    (Loop, "one_step"),
    (JsonlSink, "_write"),
    (RunState, "save"),
    (run_module, "write_summary"),
]


def kill() -> None:
    """End this process as the kernel would for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def watch(moment: int, seen: Callable[[int], None], act: Callable[[], None] = kill) -> None:
    """Count the moments, and do something at one of them."""
    count = 0
    # Checkpoints are written in a thread beside the training.
    one_at_a_time = threading.Lock()

    def passed() -> None:
        nonlocal count
        with one_at_a_time:
            count += 1
            seen(count)
            if count == moment:
                act()

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            passed()
            result = original(*arguments, **keywords)
            passed()
            return result

        return call

    for place, name in WATCHED:
        setattr(place, name, watched(getattr(place, name)))


def attempt(recipe_file: Path, runs_dir: Path, name: str) -> None:
    """Resume the run where there is one, or start it."""
    run_dir = runs_dir / name
    if (run_dir / STATE_FILE).exists():
        run_module.resume_run(recipe_of_run(run_dir), run_dir)
    else:
        run_module.start_run(
            load_recipe(recipe_file, [f"runs_dir={runs_dir}", f"name={name}"], Recipe), recipe_file.parent
        )


def forked(recipe_file: Path, runs_dir: Path, name: str, moment: int) -> tuple[int, int]:
    """(exit status, moments that went by) of one attempt in a child."""
    book = runs_dir / "moments"
    book.write_text("0")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                watch(moment, lambda count: book.write_text(str(count)) and None)
                attempt(recipe_file, runs_dir, name)
            status = 0
        finally:
            if status:
                traceback.print_exc()
                sys.stderr.flush()
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended), int(book.read_text())


def serve(recipe_file: Path, runs_dir: Path) -> None:
    """Answer the lines of standard input."""
    runs_dir.mkdir(exist_ok=True)
    warm_up()
    for line in sys.stdin:
        name, moment = line.split()
        print(*forked(recipe_file, runs_dir, name, int(moment)), flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]))
