"""Faults find the processes of a run by their command lines, the innermost of those that name it."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from samepath.rl.faults.processes import MARKS, hit, processes_of, strike
from samepath.rl.recipe.faults import FaultName

SLEEP = "print('there', flush=True); import time; time.sleep(60)"
AROUND = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEP!r}, *sys.argv[1:]])"


@contextmanager
def child(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that sleeps, once it says so."""
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "there\n"
        yield process
    finally:
        for one in [*psutil.Process(process.pid).children(), process] if process.poll() is None else [process]:
            one.kill()
        process.communicate(timeout=20)


@pytest.mark.parametrize("fault", sorted(MARKS))
def test_hit_finds_a_process_below_this_one_by_its_command_line(fault: FaultName) -> None:
    assert hit(fault, random.Random(0)) is None
    with child(SLEEP, MARKS[fault][-1] + "worker") as process, child(SLEEP, "samepath.rl.other"):
        found = hit(fault, random.Random(0))
        assert found is not None
        assert found.pid == process.pid


def test_hit_inside_a_supervisor_finds_what_it_watches() -> None:
    with child(AROUND, "samepath.rewards.sandbox.supervisor") as outer:
        (found,) = processes_of("reward_child_killed")
        assert [found.pid] == [one.pid for one in psutil.Process(outer.pid).children()]


def test_strike_stops_a_worker_and_kills_everything_else() -> None:
    with child(SLEEP, "samepath.rollout.pool.process_worker") as process:
        (found,) = processes_of("worker_stopped")
        strike("worker_stopped", found)
        deadline = time.monotonic() + 20
        while found.status() != psutil.STATUS_STOPPED:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert processes_of("worker_killed") == [], "what is stopped already is not hit again"
        strike("worker_killed", found)
        assert process.wait(20) == -signal.SIGKILL
        strike("worker_killed", found)
