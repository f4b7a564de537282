"""Parent of one worker where no namespace ends its processes: `python -P -m samepath.rewards.sandbox.supervisor CHANNEL CONTROL DRIVER`.

It runs no foreign code. It forks the worker, adopts what the worker orphans, and when the worker ends, or the driver closes
CONTROL or dies, it kills everything below itself and removes the worker's folder.
"""

import os
import resource
import select
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from samepath.rewards.sandbox.tree import adopt_orphans, end_descendants, signal_at_death_of
from samepath.rewards.sandbox.worker import serve

KILL_LIMIT_S = 8.0
"""Longest time spent on killing what the worker left; below the driver's own patience with the supervisor."""


def main(arguments: Sequence[str]) -> None:
    """Run one worker in the current folder until it ends or the driver closes `CONTROL` or dies; end as the worker did."""
    channel, control, driver = map(int, arguments)
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
    signal_at_death_of(driver, signal.SIGTERM)
    own = os.getpid()
    worker = os.fork()
    if worker == 0:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        for fd in (control, woken, wake):
            os.close(fd)
        os.setsid()
        signal_at_death_of(own, signal.SIGKILL)
        serve(channel)
        return
    os.close(channel)
    status = watch(worker, driver, control, woken)
    shutil.rmtree(folder, ignore_errors=True)
    end_like(status)


def watch(worker: int, driver: int, control: int, woken: int) -> int | None:
    """Wait for the worker's end or the driver's word; then end everything. Returns the worker's wait status, None if it stays."""
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        if control in ready:
            break
        os.read(woken, 4096)
        if _reaped(worker) or os.getppid() != driver:
            break
    status, _ = end_descendants(worker, KILL_LIMIT_S)
    return status


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


def end_like(status: int | None) -> None:
    """Exit with the worker's code, or by its signal."""
    code = 1 if status is None else os.waitstatus_to_exitcode(status)
    if code < 0 and -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
