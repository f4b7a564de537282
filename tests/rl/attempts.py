"""A program: the command `samepath` again and again, each time in a child forked from one warm interpreter, and what may go wrong in it.

`python -m tests.rl.attempts` reads lines of JSON: `argv` of the command, and `full` (0: never), the moment of `tests/rl/killed_runs.py` from which no file of
the child takes another byte. It answers with `status`, `output` and the `moments` that went by.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.rl.killed_runs import watch
from tests.rl.warm import warm_up

ROOT = Path(__file__).resolve().parents[2]


def no_room() -> None:
    """Let no file of this process grow: writes fail as on a disk that is full, but for the number of the error."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def forked(argv: list[str], full: int) -> dict[str, Any]:
    """One command in a child."""
    reads, writes = os.pipe()
    counts, counted = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writes, 1)
        os.dup2(writes, 2)
        os.close(reads)
        os._exit(_status(argv, full, counted))
    os.close(writes)
    os.close(counted)
    with os.fdopen(reads, errors="replace") as output, os.fdopen(counts) as moments:
        said = output.read()
        seen = moments.read().split()
    _, ended = os.waitpid(child, 0)
    return {"status": os.waitstatus_to_exitcode(ended), "output": said, "moments": len(seen)}


def _status(argv: list[str], full: int, counted: int) -> int:
    # Late: the test's side of the program has no use for it.
    from samepath.rl import cli

    watch(full, lambda count: os.write(counted, b"x ") and None, no_room)
    sys.argv = ["samepath", *argv]
    status = cli._status()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


class Attempts:
    """The test's side of the program."""

    def __init__(self) -> None:
        self._program = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.rl.attempts"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def __call__(self, *argv: str, full: int = 0) -> dict[str, Any]:
        """Run one command to its end."""
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(json.dumps({"argv": argv, "full": full}) + "\n")
        self._program.stdin.flush()
        answer: dict[str, Any] = json.loads(self._program.stdout.readline())
        return answer

    def close(self) -> None:
        """End the program."""
        self._program.communicate(timeout=60)


if __name__ == "__main__":
    warm_up()
    for line in sys.stdin:
        print(json.dumps(forked(**json.loads(line))), flush=True)
