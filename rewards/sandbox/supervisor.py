"""Parent of one worker: `python -P -m samepath.rewards.sandbox.supervisor ORDERS`, started by `supervised.py`.

It runs no foreign code. It forks the worker, adopts what the worker orphans, watches how many processes and bytes there are, and when
the worker ends, passes a limit, or the driver closes the control pipe or dies, it kills everything below itself and removes the folder.
"""

import json
import os
import resource
import select
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samepath.rewards.sandbox.tree import adopt_orphans, count_descendants, end_descendants, signal_at_death_of
from samepath.rewards.sandbox.usage import holds_more_than

KILL_LIMIT_S = 8.0
"""Longest time spent on killing what the worker left; below the driver's own patience with the supervisor."""
LOOK_EVERY_S = 0.1
"""Least time between two counts of processes and bytes."""
LOOK_SHARE = 0.05
"""Largest share of a core that counting may take: after a long count, of a folder of many files, the next one waits longer."""
TOO_MANY_PROCESSES, TOO_MANY_BYTES = 250, 251
"""Exit codes of a supervisor that ended its worker at a limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a supervisor is to do."""

    channel: int
    """The worker's end of the socket, a file descriptor."""
    control: int
    """Read end of a pipe that the driver closes to end everything."""
    driver: int
    """The driver's process id."""
    mode: str
    """`bubblewrap`, `landlock` or `none`."""
    network: bool
    max_processes: int
    """Most processes below the supervisor at a time, those of bubblewrap and the worker itself left out."""
    disk_bytes: int
    """Most bytes in the private folder, where it is on a disk."""
    command: tuple[str, ...]
    """What the worker becomes under bubblewrap; empty otherwise."""


def main(orders: Orders) -> None:
    """Run one worker in the current folder until it ends, passes a limit, or the driver wants it to end; end as the worker did."""
    folder = Path.cwd()
    adopt_orphans()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A signal wakes the wait below through this pipe; the handler itself has nothing to do.
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(wake)
    # Some other process may hold a copy of CONTROL's far end, so the driver's death is heard of in a second way.
    signal_at_death_of(orders.driver, signal.SIGTERM)
    own = os.getpid()
    worker = os.fork()
    if worker == 0:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        for fd in (orders.control, woken, wake):
            os.close(fd)
        os.setsid()
        signal_at_death_of(own, signal.SIGKILL)
        become_worker(orders, folder)
        return
    os.close(orders.channel)
    limit, status = watch(worker, orders, woken, folder)
    shutil.rmtree(folder, ignore_errors=True)
    if limit:
        os._exit(limit)
    end_like(status, through_bubblewrap=orders.mode == "bubblewrap")


def become_worker(orders: Orders, folder: Path) -> None:
    """Give up what the mode takes away, then serve requests."""
    if orders.mode == "bubblewrap":
        os.execvp(orders.command[0], orders.command)
    # Late: a supervisor above bubblewrap has no use for it, and each child would start 50 ms later.
    from samepath.rewards.sandbox.landlock import landlock_abi, restrict
    from samepath.rewards.sandbox.worker import serve

    if orders.mode == "landlock":
        restrict(landlock_abi(), folder, network=orders.network)
    serve(orders.channel)


def watch(worker: int, orders: Orders, woken: int, folder: Path) -> tuple[int, int | None]:
    """Wait for the worker's end, a limit, or the driver's word; then end everything.

    Returns the exit code of the limit that was passed, 0 if none was, and the worker's wait status, None if it stays.
    """
    limit, pause_s = 0, LOOK_EVERY_S
    while True:
        ready, _, _ = select.select([orders.control, woken], [], [], pause_s)
        if orders.control in ready:
            break
        if woken in ready:
            os.read(woken, 4096)
            if _reaped(worker) or os.getppid() != orders.driver:
                break
        began = time.process_time()
        if limit := passed_limit(orders, folder):
            break
        pause_s = max(LOOK_EVERY_S, (time.process_time() - began) / LOOK_SHARE)
    status, _ = end_descendants(worker, KILL_LIMIT_S)
    return limit, status


def passed_limit(orders: Orders, folder: Path) -> int:
    """The exit code of the limit that the processes below have passed, 0 if none."""
    own = 3 if orders.mode == "bubblewrap" else 1
    if count_descendants(os.getpid(), orders.max_processes + own + 1) > orders.max_processes + own:
        return TOO_MANY_PROCESSES
    # Under bubblewrap the folder is a file system of that size.
    if orders.mode != "bubblewrap" and holds_more_than(folder, orders.disk_bytes):
        return TOO_MANY_BYTES
    return 0


def _reaped(worker: int) -> bool:
    """Reap orphans that have ended; True once the worker itself waits to be reaped."""
    while True:
        try:
            state = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return True
        if state is None:
            return False
        if state.si_pid == worker:
            return True
        os.waitpid(state.si_pid, os.WNOHANG)


def end_like(status: int | None, *, through_bubblewrap: bool) -> None:
    """Exit with the worker's code, or by its signal, which bubblewrap reports as 128 and its number."""
    code = 1 if status is None else os.waitstatus_to_exitcode(status)
    if through_bubblewrap and 128 < code <= 128 + signal.NSIG:
        code = 128 - code
    if code < 0 and -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)


def read_orders(text: str) -> Orders:
    """Orders from the JSON object that `supervised.py` wrote."""
    values: Mapping[str, Any] = json.loads(text)
    return Orders(**{**values, "command": tuple(values["command"])})


if __name__ == "__main__":
    main(read_orders(sys.argv[1]))
