"""Seconds a step of sampling while learning beside sampling, then learning, at constant and heavy-tailed response lengths.

The quickstart's network, one rollout worker and one learner rank under Ray, forced response lengths (all samples of a prompt have the same one),
nothing recorded or evaluated. Each arm is a process of its own; arms take turns, and the least of all rounds counts.
`python -m benchmarks.overlap --rounds 2`
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.case import Case, CaseName
from benchmarks.off_policy import Arm, arms
from benchmarks.process import peer_environment, run_process
from benchmarks.samepath import BenchFeed, BenchLoop, bench_recipe, loop_parts
from samepath.rewards.runner import RewardRunner
from samepath.rl.learner.handle import build_learner
from samepath.rl.learner.ray_cluster import running_cluster
from samepath.rl.machine import import_path
from samepath.rl.overlapped_loop import OverlappedLoop
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run_folder import REFERENCE
from samepath.rollout.pool.ray_pool import RayPool


class OverlapCase(BaseModel):
    """One arm at one distribution of lengths."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    case: Case = Field(description="lengths, sizes, steps")
    lag: int = Field(0, ge=0, description="rl.max_weight_lag")
    mode: Literal["", "finish", "continue", "recompute"] = Field("", description="rl.on_new_weights; none at lag 0")


class OverlapResult(BaseModel):
    """What the arm measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step_s: tuple[float, ...] = Field(description="from one step's end to the next's, seconds")
    learning_s: tuple[float, ...] = Field(description="of it in updates, seconds")
    sampling_s: tuple[float, ...] = Field(description="of it in sampling, seconds; at lag 0 alone")


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlapped(OverlappedLoop):
    """Sampling while learning."""

    case: Case

    def feed(self) -> BenchFeed:
        """See `BenchFeed`."""
        return BenchFeed(recipe=self.recipe, task=self.task, tokenizer=self.tokenizer, case=self.case)


def overlap_recipe(asked: OverlapCase, folder: Path) -> Recipe:
    """The bench's recipe under Ray, with the arm's lag; a gap is no matter here."""
    recipe = bench_recipe(asked.case, folder).model_dump()
    recipe["runtime"] = "ray"
    recipe["rollout"] |= {"num_workers": 1}
    lag = {"max_weight_lag": asked.lag, "on_new_weights": asked.mode} if asked.lag else {}
    recipe["rl"] |= {"steps": asked.case.warmup_steps + asked.case.measured_steps, "max_gap_at_lag_0": 1000.0, **lag}
    return Recipe.model_validate(recipe)


def run_arm(asked: OverlapCase, folder: Path) -> OverlapResult:
    """Build learner, worker and reward process, run all steps, report the measured ones."""
    case, recipe = asked.case, overlap_recipe(asked, folder)
    with running_cluster(recipe.ray), RewardRunner(recipe.reward) as runner:
        learner = build_learner(recipe, folder, recipe.run_dir, None)
        learner.start_rl()
        reference = (recipe.run_dir / REFERENCE).resolve()
        variables = import_path(folder)
        pool = RayPool(
            reference, recipe.engine, recipe.rollout, variables, recipe.model.placement, steady=asked.lag > 0
        )
        try:
            pool.load_weights(learner.weights(), 0)
            kind = Overlapped if asked.lag else BenchLoop
            loop = kind(case=case, **loop_parts(recipe, reference, learner, pool, runner))
            ends, steps = [], []
            for step in range(recipe.rl.steps):
                steps.append(loop.one_step(step))
                ends.append(time.perf_counter())
        finally:
            pool.close()
            learner.close()
    measured = steps[case.warmup_steps :]
    return OverlapResult(
        step_s=tuple(np.diff(ends)[case.warmup_steps - 1 :].tolist()),
        learning_s=tuple(metrics["time/learning_s"] for metrics in measured),
        sampling_s=tuple(metrics.get("time/sampling_s", 0.0) for metrics in measured),
    )


def measure(asked: OverlapCase) -> OverlapResult:
    """One arm in a process of its own."""
    text = run_process(
        "benchmarks.overlap", asked.model_dump_json(), peer_environment(asked.case.setting), f"{asked.lag} {asked.mode}"
    )
    return OverlapResult.model_validate_json(text)


def table(name: CaseName, results: dict[Arm, list[OverlapResult]]) -> str:
    """Mean seconds a step of the best round of each arm, beside the sum and the larger of lag 0's two halves."""
    best = {arm: min(rounds, key=lambda result: np.mean(result.step_s)) for arm, rounds in results.items()}
    first = next(iter(best.values()))
    halves = float(np.mean(first.sampling_s)), float(np.mean(first.learning_s))
    lines = [f"{name}: lag 0 samples for {halves[0]:.2f} s of a step and learns for {halves[1]:.2f} s", ""]
    lines += ["| arm | seconds a step | speed | share of the floor |", "|---|---|---|---|"]
    for arm, result in best.items():
        seconds = float(np.mean(result.step_s))
        speed = np.mean(first.step_s) / seconds
        lines.append(f"| {arm.name} | {seconds:.2f} | {speed:.2f}× | {max(halves) / seconds:.0%} |")
    return "\n".join(lines)


def main() -> None:
    """Measure all arms in turns and print a table for each distribution; a child gets a case and a result's path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12, help="measured steps of an arm")
    parser.add_argument("--cases", nargs="+", choices=get_args(CaseName), default=list(get_args(CaseName)))
    parser.add_argument("--lags", default="1,2")
    parser.add_argument("--modes", default="finish,recompute,continue")
    options = parser.parse_args()
    if options.files:
        case_file, result_file = options.files
        with tempfile.TemporaryDirectory() as folder:
            result = run_arm(OverlapCase.model_validate_json(case_file.read_text()), Path(folder))
        result_file.write_text(result.model_dump_json())
        return
    for name in options.cases:
        chosen = arms([int(lag) for lag in options.lags.split(",")], options.modes.split(","))
        results: dict[Arm, list[OverlapResult]] = {arm: [] for arm in chosen}
        for _ in range(options.rounds):
            for arm in chosen:
                case = Case(name=name, measured_steps=options.steps)
                results[arm].append(measure(OverlapCase(case=case, lag=arm.lag, mode=arm.mode)))
        print(table(name, results), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
