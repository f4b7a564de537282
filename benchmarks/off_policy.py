"""What sampling while learning does to learning: the quickstart at several lags, what becomes of answers under way, and seeds.

One cold start a seed, from which every arm begins; an arm samples with one worker and learns with one rank, so that two cores are enough.
`python -m benchmarks.off_policy runs/off_policy` runs what is missing there, then writes the table and the picture. Runs that stand side by side
(`--at-once`) have two cores each; further arguments are overrides of the recipe.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.off_policy_report import ArmRuns, write_report
from benchmarks.side_by_side import COLD, RECIPE, Planned, SideBySide, cold_starts

SHARED = "arm.yaml"
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


def planned_arms(folder: Path, chosen: Sequence[Arm], seeds: Sequence[int], overrides: Sequence[str]) -> list[Planned]:
    """Every arm with every seed, seed by seed."""
    shared = str(write_arm_recipe(folder))
    return [
        Planned(
            name=f"{arm.name}-{seed}",
            arguments=(
                shared,
                f"seed={seed}",
                f"model.path={folder.resolve()}/{COLD}-{seed}/reference",
                *arm.overrides,
                *overrides,
            ),
        )
        for seed in seeds
        for arm in chosen
    ]


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
    side_by_side = SideBySide(folder=options.folder, at_once=options.at_once, cores=CORES)
    if problem := side_by_side.problem():
        parser.error(problem)
    chosen = arms([int(lag) for lag in options.lags.split(",")], options.modes.split(","))
    seeds = [int(seed) for seed in options.seeds.split(",")]
    side_by_side.run(cold_starts(seeds, ("runtime=inline", *overrides)))
    side_by_side.run(planned_arms(options.folder, chosen, seeds, overrides))
    runs = [
        ArmRuns(name=arm.name, lag=arm.lag, folders=tuple(options.folder / f"{arm.name}-{seed}" for seed in seeds))
        for arm in chosen
    ]
    print(write_report(runs, options.out or options.folder))


if __name__ == "__main__":
    main()
