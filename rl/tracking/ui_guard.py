"""Parent of MLflow's server: `python -m samepath.rl.tracking.ui_guard OWNER COMMAND…` ends the server, with all that it started, with itself.

It ends at SIGTERM, and when the process OWNER that started it ends, however it ends (on Linux).
"""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from samepath.rewards.sandbox.tree import adopt_orphans, end_descendants, signal_at_death_of

END_LIMIT_S = 3.0
"""Longest wait for the server to end by itself."""
KILL_LIMIT_S = 3.0
"""Longest wait for what is killed to go."""


def main(arguments: Sequence[str]) -> int:
    """Run the command until it ends or this process is to end; returns its exit status."""
    owner, *command = arguments
    adopt_orphans()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _end)
    signal_at_death_of(int(owner), signal.SIGTERM)
    server = subprocess.Popen(command, start_new_session=True)
    try:
        return server.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(END_LIMIT_S)
        end_descendants(server.pid, KILL_LIMIT_S)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
