"""Ending a process with everything it started, sessions of their own and orphans included (Linux)."""

import contextlib
import ctypes
import os
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal this process gets when its parent dies."""
PR_SET_CHILD_SUBREAPER = 36
"""prctl(2): orphans below this process become its children instead of init's."""


def signal_at_death_of(parent_pid: int, number: int) -> None:
    """Get this signal when the parent dies, even in the middle of a request. Elsewhere than on Linux: not at all."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent_pid:
        # It died before the signal was asked for.
        raise SystemExit(1)


def adopt_orphans() -> None:
    """Make this process the parent of every process below it whose own parent ends. Does nothing elsewhere than on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(root: int) -> list[int]:
    """Every process below `root`, from one look at /proc; empty where there is none."""
    children: dict[int, list[int]] = {}
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc"):
            if name.isdigit() and (parent := _parent(int(name))) is not None:
                children.setdefault(parent, []).append(int(name))
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def count_descendants(root: int, enough: int) -> int:
    """How many processes there are below `root`, counted up to `enough`; cheap for a small tree, whatever else runs here."""
    waiting, found = [root], 0
    while waiting and found < enough:
        folder = f"/proc/{waiting.pop()}/task"
        try:
            for thread in os.listdir(folder):
                with open(f"{folder}/{thread}/children", "rb") as file:
                    below = [int(pid) for pid in file.read().split()]
                found += len(below)
                waiting += below
        except ProcessLookupError:
            continue
        except FileNotFoundError:
            if not os.path.exists("/proc/self/task") or os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
                # No /proc, or a process or thread that has just ended.
                continue
            # A kernel without CONFIG_PROC_CHILDREN.
            return len(descendants(root))
    return found


def end_descendants(worker: int, limit_s: float) -> tuple[int | None, bool]:
    """Kill and reap all below this process, which must have adopted orphans, until nothing is left or `limit_s` is over.

    Returns the wait status of `worker`, a child not yet waited for (None if it did not go), and whether nothing is left.
    Everything is stopped before anything is killed, so that a process that starts others as fast as they die falls behind.
    """
    deadline, status = time.monotonic() + limit_s, None
    while time.monotonic() < deadline:
        for number in (signal.SIGSTOP, signal.SIGKILL):
            # The worker's id is ours until it is waited for; a descendant's too, as long as it hangs below us.
            for pid in descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
        if status is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                # All that can be done without /proc: the worker leads a group of its own.
                os.killpg(worker, signal.SIGKILL)
        try:
            while True:
                pid, ended = os.waitpid(-1, os.WNOHANG)
                if pid == worker:
                    status = ended
                if pid == 0:
                    time.sleep(0.001)
                    break
        except ChildProcessError:
            return status, True
    return status, False


def _parent(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name stands in brackets and may hold any character; the state and the parent follow the last one.
            return int(file.read().rpartition(b")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None
