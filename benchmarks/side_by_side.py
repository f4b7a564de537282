"""Many runs of `samepath run` side by side, each on cores of its own, that a second call goes on with: what the studies are made of."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from benchmarks.process import CHECKOUT, MOST_OUTPUT, BenchError
from samepath.rl.machine import child_environment

RECIPE = CHECKOUT / "recipes" / "quickstart.yaml"
COLD = "cold"
"""Name of the runs that every arm of a seed begins from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One run.

    Example:
        Planned(name="all-0", arguments=("recipes/quickstart.yaml", "seed=0"))
    """

    name: str
    """Of its folder."""
    arguments: tuple[str, ...]
    """Recipe and overrides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SideBySide:
    """Runs in one folder, `at_once` at a time."""

    folder: Path
    """`runs_dir` of them all."""
    at_once: int
    """Runs at a time."""
    cores: int
    """Of each run; with several at a time each keeps to its own."""
    first_core: int = 0
    """Cores below it are left to others."""

    def problem(self) -> str:
        """Why this machine cannot do so; empty if it can."""
        needed, there = self.first_core + self.cores * self.at_once, os.cpu_count() or 1
        if self.at_once < 1 or (self.at_once > 1 and needed > there):
            return f"--at-once {self.at_once} needs {needed} cores; here are {there}"
        return ""

    def run(self, planned: Sequence[Planned]) -> None:
        """Run what is not done. Raises BenchError, once all others have ended, with the end of the output of the first that failed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        slots: SimpleQueue[int] = SimpleQueue()
        for slot in range(self.at_once):
            slots.put(slot)

        def placed(one: Planned) -> str:
            slot = slots.get()
            try:
                return self._run(one, slot)
            finally:
                slots.put(slot)

        with ThreadPoolExecutor(self.at_once) as pool:
            failures = [failure for failure in pool.map(placed, planned) if failure]
        if failures:
            raise BenchError(failures[0])

    def _run(self, one: Planned, slot: int) -> str:
        """Returns what went wrong."""
        if (self.folder / one.name / "summary.json").is_file():
            return ""
        if (self.folder / one.name).exists():
            return f"{self.folder / one.name} is there and not finished: delete it, or finish it with samepath resume"
        fixed = [f"name={one.name}", f"runs_dir={self.folder}", "tracking.kind=jsonl"]
        command = [
            sys.executable,
            "-c",
            "from samepath.rl.cli import main; main()",
            "run",
            *one.arguments,
            *fixed,
        ]
        if self.at_once > 1:
            first = self.first_core + self.cores * slot
            command = ["taskset", "-c", f"{first}-{first + self.cores - 1}", *command]
        # Ray would start an idle worker for every core of the machine, whatever a run may use.
        variables = {
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "RAY_prestart_worker_first_driver": "0",
        }
        done = subprocess.run(
            command,
            env=child_environment(variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        output = done.stdout + done.stderr
        (self.folder / f"{one.name}.log").write_text(output)
        if done.returncode:
            return f"{one.name} ended with {done.returncode}:\n{output[-MOST_OUTPUT:]}"
        print(f"{one.name} is done", flush=True)
        return ""


def cold_starts(seeds: Sequence[int], overrides: Sequence[str]) -> list[Planned]:
    """The quickstart up to where its RL begins, once a seed."""
    return [
        Planned(name=f"{COLD}-{seed}", arguments=(str(RECIPE), f"seed={seed}", "rl.steps=0", *overrides))
        for seed in seeds
    ]
