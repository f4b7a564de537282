"""The other end of `tests/rl/killed_runs.py` and of programs like it: a test tells it which run to go on with, and when to kill it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Killer:
    """Runs of one recipe in a program of their own, killed at chosen moments."""

    def __init__(self, program: str, recipe_file: Path, runs: Path) -> None:
        self.runs = runs
        """Folder of the runs."""
        self._program = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", program, recipe_file, runs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def attempt(self, name: str, moment: int = 0) -> int:
        """Start or resume a run until a moment (0: to its end; a run may have fewer); returns how many went by."""
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(f"{name} {moment}\n")
        self._program.stdin.flush()
        status, seen = map(int, self._program.stdout.readline().split())
        assert status == (-9 if moment and seen == moment else 0), (
            f"attempt of {name} ended with {status} at moment {seen}"
        )
        return seen

    def close(self) -> None:
        """Let the program end."""
        self._program.communicate(timeout=60)
