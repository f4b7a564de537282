"""What sampling while learning does to learning: the quickstart at several lags, what becomes of answers under way, and seeds.

One cold start a seed, from which every arm begins; an arm samples with one worker and learns with one rank, so that two cores are enough.
`python -m benchmarks.off_policy runs/off_policy` runs what is missing there, then writes the table and the picture. Runs that stand side by side
(`--at-once`) have two cores each; further arguments are overrides of the recipe.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import yaml

from benchmarks.off_policy_report import ArmRuns, write_report
from benchmarks.process import CHECKOUT, MOST_OUTPUT, BenchError
from samepath.rl.machine import child_environment

RECIPE = CHECKOUT / "recipes" / "quickstart.yaml"
COLD, SHARED = "cold", "arm.yaml"
CORES = 2
"""Of each run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way of sampling."""

    lag: int
    """`rl.max_weight_lag`."""
    mode: str
    """`rl.on_new_weights`; empty at lag 0."""

    @property
    def name(self) -> str:
        """For folders and tables: `lag1-recompute`."""
        return f"lag{self.lag}-{self.mode}" if self.mode else f"lag{self.lag}"

    @property
    def overrides(self) -> list[str]:
        """What the arm changes in the recipe; `continue` has a gap, so its check is off."""
        if not self.lag:
            return []
        ways = [f"rl.max_weight_lag={self.lag}", f"rl.on_new_weights={self.mode}"]
        return [*ways, "rl.max_gap_at_lag_0=1000"] if self.mode == "continue" else ways


def arms(lags: Sequence[int], modes: Sequence[str]) -> list[Arm]:
    """Lag 0, then every lag with every mode."""
    return [Arm(lag=0, mode=""), *(Arm(lag=lag, mode=mode) for lag in lags for mode in modes)]


def write_arm_recipe(folder: Path) -> Path:
    """The quickstart from its cold start's end on; the model's path is an override."""
    recipe = yaml.safe_load(RECIPE.read_text())
    del recipe["cold_start"]
    recipe |= {
        "model": {"kind": "checkpoint", "path": "given"},
        "learner": {"ranks": 1},
        "rollout": {"num_workers": 1},
        "evaluation": {"every": 15},
        "checkpoint": {"every": 1000},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SHARED).write_text(yaml.safe_dump(recipe))
    return folder / SHARED


def run(arguments: Sequence[str], folder: Path, name: str, slot: int | None) -> None:
    """`samepath run` unless it is done; an unfinished run begins again. Raises BenchError with the end of its output."""
    if (folder / name / "summary.json").is_file():
        return
    if (folder / name).exists():
        raise BenchError(f"{folder / name} is there and not finished: delete it, or finish it with samepath resume")
    fixed = [f"name={name}", f"runs_dir={folder}", "tracking.kind=jsonl"]
    command = [sys.executable, "-c", "from samepath.rl.cli import main; main()", "run", *arguments, *fixed]
    if slot is not None:
        command = ["taskset", "-c", f"{CORES * slot}-{CORES * slot + CORES - 1}", *command]
    # Ray would start an idle worker for every core of the machine, whatever a run may use.
    variables = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "RAY_prestart_worker_first_driver": "0"}
    done = subprocess.run(
        command, env=child_environment(variables), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    (folder / f"{name}.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        raise BenchError(f"{name} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-MOST_OUTPUT:]}")
    print(f"{name} is done", flush=True)


def run_all(folder: Path, chosen: Sequence[Arm], seeds: Sequence[int], at_once: int, overrides: Sequence[str]) -> None:
    """Cold starts, then every arm with every seed, seed by seed."""
    shared = str(write_arm_recipe(folder))
    slots: SimpleQueue[int] = SimpleQueue()
    for slot in range(at_once):
        slots.put(slot)

    def placed(arguments: Sequence[str], name: str) -> None:
        slot = slots.get()
        try:
            run([*arguments, *overrides], folder, name, slot if at_once > 1 else None)
        finally:
            slots.put(slot)

    with ThreadPoolExecutor(at_once) as pool:
        cold = ["rl.steps=0", "runtime=inline"]
        begun = [pool.submit(placed, [str(RECIPE), f"seed={seed}", *cold], f"{COLD}-{seed}") for seed in seeds]
        for each in begun:
            each.result()
        begun = [
            pool.submit(
                placed,
                [shared, f"seed={seed}", f"model.path={folder.resolve()}/{COLD}-{seed}/reference", *arm.overrides],
                f"{arm.name}-{seed}",
            )
            for seed in seeds
            for arm in chosen
        ]
        for each in begun:
            each.result()


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the runs stand, and where a second call finds them")
    parser.add_argument("--lags", default="1,2,4")
    parser.add_argument("--modes", default="recompute,continue")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--at-once", type=int, default=1, help=f"runs side by side, {CORES} cores each")
    parser.add_argument("--out", type=Path, help="folder for the table and the picture; default: the runs' folder")
    options, overrides = parser.parse_known_args()
    if not 1 <= CORES * options.at_once <= max(CORES, os.cpu_count() or 1):
        parser.error(f"--at-once {options.at_once} needs {CORES * options.at_once} cores; here are {os.cpu_count()}")
    chosen = arms([int(lag) for lag in options.lags.split(",")], options.modes.split(","))
    seeds = [int(seed) for seed in options.seeds.split(",")]
    run_all(options.folder, chosen, seeds, options.at_once, overrides)
    runs = [
        ArmRuns(name=arm.name, lag=arm.lag, folders=tuple(options.folder / f"{arm.name}-{seed}" for seed in seeds))
        for arm in chosen
    ]
    print(write_report(runs, options.out or options.folder))


if __name__ == "__main__":
    main()
