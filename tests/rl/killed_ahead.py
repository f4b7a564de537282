"""A program as `tests.rl.killed_runs`, for runs that sample while they learn: everything in one process, the engine in a thread of its own."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from samepath.rl import run as run_module
from samepath.rl.group_journal import GroupJournal
from samepath.rl.learner.handle import InlineLearner
from samepath.rl.rollout_stream import RolloutStream
from samepath.rl.training import Training
from samepath.rollout.pool.pool import RolloutPool
from tests.rl import killed_runs
from tests.steady_pool import SteadyPool


def pool(training: Training, reference: Path) -> RolloutPool:
    """In place of the pool under Ray."""
    return SteadyPool(reference, training.recipe.engine, training.recipe.model.placement)


def without_ray(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let `runtime: ray` be one process; `put` may be what a test takes back at its end."""
    put(run_module, "_cluster", lambda runtime, settings: contextlib.nullcontext())
    put(run_module, "build_learner", InlineLearner)
    put(Training, "_pool", pool)


if __name__ == "__main__":
    without_ray()
    killed_runs.WATCHED += [
        (GroupJournal, "append"),
        (GroupJournal, "prune"),
        (GroupJournal, "rewind"),
        (RolloutStream, "begin"),
        (RolloutStream, "taken"),
        (RolloutStream, "offer"),
    ]
    killed_runs.serve(Path(sys.argv[1]), Path(sys.argv[2]))
