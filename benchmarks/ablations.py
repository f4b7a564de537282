"""What each stabiliser does where the plain objective fails: the quickstart with a bfloat16 sampler, many updates a rollout and a high learning rate.

    python -m benchmarks.ablations runs/ablations --at-once 2           # the arms: each stabiliser taken away, and the field's other answers
    python -m benchmarks.ablations runs/ablations --study grid          # all combinations of the four, by updates a rollout
    python -m benchmarks.ablations runs/ablations --only all none       # single arms

One cold start a seed, from which every arm begins; seeds 0 and 1 served the search for the regime. A call runs what is missing, one core a run, then
writes table, figures and picture. Further arguments are overrides of every run. The two measures
were fixed before the first run of the study: see `ablations_report.py`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import yaml

from benchmarks.ablations_report import ArmRuns, write_report
from benchmarks.side_by_side import COLD, RECIPE, Planned, SideBySide, cold_starts

REGIME: dict[str, object] = {
    "runtime": "inline",
    "learner": {"ranks": 1},
    "engine": {"dtype": "bfloat16"},
    "evaluation": {"every": 2},
    "checkpoint": {"every": 1000, "keep_best": False},
}
"""What every arm lays over the quickstart, beside `rl`, `sampling` and `optimizer` below."""
RL = {
    "steps": 12,
    "prompts_per_step": 64,
    "updates_per_rollout": 16,
    "max_gap_at_lag_0": 1000.0,
    "nonfinite": "skip",
}
TOP_P, LEARNING_RATE, HELD_OUT = 0.9, 1e-4, 256
UPDATES = (4, 16)
"""Updates a rollout in the grid: the last mini-batch is one update less old."""
STABILISERS = {
    "unbiased KL": ("rl.objective.kl.estimator=unbiased", "rl.objective.kl.estimator=k3"),
    "sequence mask": ("rl.objective.off_policy_mask.enabled=true", "rl.objective.off_policy_mask.enabled=false"),
    "Keep Routing": ("rl.keep_routing=sampler", "rl.keep_routing=off"),
    "Keep Sampling Mask": ("rl.keep_sampling_mask=on", "rl.keep_sampling_mask=off"),
}
"""Each with it and without it; without unbiased KL stands the usual k3."""
PEERS = {
    # Group sequence policy optimization, clipped as in its paper.
    "GSPO": ("rl.objective.surrogate=gspo", "rl.objective.clip_low=3e-4", "rl.objective.clip_high=4e-4"),
    # No lower bound, a ratio of 5 at most.
    "CISPO": ("rl.objective.surrogate=cispo", "rl.objective.clip_low=1", "rl.objective.clip_high=4"),
    "TIS": ("rl.objective.old_policy=learner", "rl.objective.importance.mode=truncated"),
    "IcePop": ("rl.objective.old_policy=learner", "rl.objective.importance.mode=banded"),
}
"""Other answers to the same trouble, each in place of the four stabilisers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way of training.

    Example:
        Arm(name="none", overrides=("rl.keep_routing=off",))
    """

    name: str
    """In tables and, with `-` for spaces, in folders."""
    overrides: tuple[str, ...]
    """What it sets."""

    @property
    def folder(self) -> str:
        """Part of a run's name."""
        return self.name.replace(" ", "-").replace("+", "and").replace(",", "")


def with_stabilisers(kept: Sequence[str]) -> tuple[str, ...]:
    """Settings with these of the four and without the others."""
    return tuple(STABILISERS[name][0 if name in kept else 1] for name in STABILISERS)


def arms() -> list[Arm]:
    """All four; each taken away; each alone; none of them; the others' answers in place of them."""
    names = list(STABILISERS)
    left_out = [
        Arm(name=f"without {name}", overrides=with_stabilisers([kept for kept in names if kept != name]))
        for name in names
    ]
    alone = [Arm(name=f"only {name}", overrides=with_stabilisers([name])) for name in names]
    peers = [Arm(name=name, overrides=(*with_stabilisers([]), *overrides)) for name, overrides in PEERS.items()]
    return [
        Arm(name="all", overrides=with_stabilisers(names)),
        *left_out,
        *alone,
        Arm(name="none", overrides=with_stabilisers([])),
        *peers,
    ]


def grid(updates: Sequence[int]) -> list[Arm]:
    """Every combination of the four at every number of updates a rollout; a combination is named by its letters, U M R S."""
    found = []
    for count, switches in product(updates, product((True, False), repeat=len(STABILISERS))):
        kept = [name for name, on in zip(STABILISERS, switches, strict=True) if on]
        letters = "".join(letter for letter, on in zip("UMRS", switches, strict=True) if on) or "none"
        found.append(
            Arm(
                name=f"{letters} {count} updates",
                overrides=(*with_stabilisers(kept), f"rl.updates_per_rollout={count}"),
            )
        )
    return found


def write_regime(folder: Path) -> Path:
    """The quickstart from its cold start's end on, in the regime; the model's path is an override."""
    recipe = yaml.safe_load(RECIPE.read_text())
    del recipe["cold_start"]
    recipe |= {"model": {"kind": "checkpoint", "path": "given"}, **REGIME}
    recipe["rl"] |= RL
    recipe["sampling"]["top_p"] = TOP_P
    recipe["task"]["num_held_out"] = HELD_OUT
    recipe["optimizer"]["lr"] = LEARNING_RATE
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "regime.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def planned(
    folder: Path, cold: Path, chosen: Sequence[Arm], seeds: Sequence[int], overrides: Sequence[str]
) -> list[Planned]:
    """Every arm with every seed, seed by seed, so that a study that is cut has whole seeds."""
    regime = str(write_regime(folder))
    return [
        Planned(
            name=f"{arm.folder}-{seed}",
            arguments=(
                regime,
                f"seed={seed}",
                f"model.path={cold.resolve()}/{COLD}-{seed}/reference",
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
    parser.add_argument("--study", choices=("arms", "grid"), default="arms")
    parser.add_argument("--only", nargs="+", default=[], help="names of single arms")
    parser.add_argument("--updates", default=",".join(map(str, UPDATES)), help="of the grid")
    parser.add_argument("--seeds", default="2,3,4,5,6")
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side, one core each")
    parser.add_argument("--first-core", type=int, default=0, help="cores below it are left to others")
    parser.add_argument("--cold", type=Path, help="folder with the cold starts; default: the runs' folder")
    parser.add_argument("--out", type=Path, help="folder for table, figures and picture; default: the runs' folder")
    options, overrides = parser.parse_known_args()
    side_by_side = SideBySide(folder=options.folder, at_once=options.at_once, cores=1, first_core=options.first_core)
    if problem := side_by_side.problem():
        parser.error(problem)
    chosen = arms() if options.study == "arms" else grid([int(count) for count in options.updates.split(",")])
    unknown = set(options.only) - {arm.name for arm in chosen}
    if unknown:
        parser.error(f"no arm {', '.join(sorted(unknown))}; there are {', '.join(arm.name for arm in chosen)}")
    if options.only:
        chosen = [arm for arm in chosen if arm.name in options.only]
    seeds = [int(seed) for seed in options.seeds.split(",")]
    cold = options.cold or options.folder
    if not options.cold:
        side_by_side.run(cold_starts(seeds, ("runtime=inline", "learner.ranks=1")))
    side_by_side.run(planned(options.folder, cold, chosen, seeds, overrides))
    runs = [
        ArmRuns(name=arm.name, folders=tuple(options.folder / f"{arm.folder}-{seed}" for seed in seeds))
        for arm in chosen
    ]
    print(write_report(runs, options.out or options.folder, options.study))


if __name__ == "__main__":
    main()
