"""The processes of a run that a fault may hit, found as the system shows them: below this one, by what their command line says."""

import contextlib
import os
import random
import signal

import psutil

from samepath.rl.recipe.faults import FaultName

MARKS: dict[FaultName, tuple[str, ...]] = {
    "worker_killed": ("ray::RolloutWorker", "ray::SteadyWorker", "samepath.rollout.pool.process_worker"),
    "worker_stopped": ("ray::RolloutWorker", "ray::SteadyWorker", "samepath.rollout.pool.process_worker"),
    "rank_killed": ("ray::RankHost", "samepath.rl.learner.rank_process"),
    "reward_child_killed": ("samepath.rewards.sandbox.",),
}
"""What stands in the command line of each kind: an actor's class as Ray shows it, or the module that a child runs."""


def processes_of(fault: FaultName) -> list[psutil.Process]:
    """The processes that this fault may hit, in the order of their numbers."""
    return sorted(_found(MARKS[fault]), key=lambda process: process.pid)


def hit(fault: FaultName, rng: random.Random) -> psutil.Process | None:
    """One of the processes, drawn; None if there is none now."""
    found = processes_of(fault)
    return rng.choice(found) if found else None


def strike(fault: FaultName, process: psutil.Process) -> None:
    """Send the process its signal; one that has ended meanwhile needs none."""
    number = signal.SIGSTOP if fault == "worker_stopped" else signal.SIGKILL
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return


def _found(marks: tuple[str, ...]) -> list[psutil.Process]:
    """The innermost that name it: around a child stand others that do, a supervisor or bubblewrap."""
    named = {process.pid: process for process in psutil.Process().children(recursive=True) if _is_named(process, marks)}
    for process in list(named.values()):
        with contextlib.suppress(psutil.Error):
            named.pop(process.ppid(), None)
    return list(named.values())


def _is_named(process: psutil.Process, marks: tuple[str, ...]) -> bool:
    try:
        alive = process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED)
        return alive and any(mark in " ".join(process.cmdline()) for mark in marks)
    except psutil.Error:
        return False
