"""Run by a test: the command `samepath`, ended by SIGKILL at the COUNT-th call of a method of the stream: METHOD COUNT ARGUMENTS… (0: not at all)."""

import os
import signal
import sys
from typing import Any

from samepath.rl import cli
from samepath.rl.rollout_stream import RolloutStream

method, limit, *arguments = sys.argv[1:]
original, calls = getattr(RolloutStream, method), 0


def counted(self: RolloutStream, *given: Any, **named: Any) -> Any:
    global calls
    calls += 1
    if calls == int(limit):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *given, **named)


if __name__ == "__main__":
    setattr(RolloutStream, method, counted)
    sys.argv = ["samepath", *arguments]
    cli.main()
