"""The driver of a cluster that sleeps: throughput, queues and lag beside what a model predicts, and what a rollout costs the driver.

    python -m benchmarks.cluster                      # 64 workers and 8 ranks, three kinds of cluster
    python -m benchmarks.cluster --workers 1024 --ranks 8 --steps 40

The overlapped loop, the feed, the scorer, batches, metrics and records are the real ones; workers, learner and rewards sleep (cluster_parts.py).
Nothing goes over a network, so what Ray costs is not in it.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.cluster_case import ClusterCase, predicted
from benchmarks.cluster_parts import CoinRunner, SleepingLearner, SleepingPool
from samepath.rl.alerts.alerts import Alerts
from samepath.rl.batch.score_groups import GroupScorer
from samepath.rl.learner.new_tokenizer import new_tokenizer
from samepath.rl.overlapped_loop import OverlappedLoop
from samepath.rl.preparation import prepare
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.report.progress import ProgressDisplay
from samepath.rl.run_state import RunState
from samepath.rl.saving import Saving
from samepath.rl.tracking.jsonl import JsonlSink
from samepath.rl.tracking.tracker import Tracker

RECIPE = Path(__file__).parent.parent / "recipes/quickstart.yaml"
KINDS: dict[str, dict[str, Any]] = {
    "learning": {"slots": 16, "rank_tokens_per_s": 4000.0},
    "sampling": {"slots": 1, "rank_tokens_per_s": 40_000.0},
    "the longest answer": {"slots": 16, "rank_tokens_per_s": 40_000.0, "sigma": 1.0},
}
"""What each kind of cluster is made to wait for, and what differs from the defaults of the command."""


def main() -> None:
    """Measure each kind of cluster and print a table, or JSON."""
    arguments = _arguments()
    case = ClusterCase(
        workers=arguments.workers,
        slots=16,
        token_s=0.002,
        groups=arguments.groups or arguments.workers,
        group_size=8,
        lag=arguments.lag,
        ranks=arguments.ranks,
        rank_tokens_per_s=4000.0,
    )
    for kind in arguments.kinds or KINDS:
        row = measured(replace(case, **KINDS[kind]), arguments.steps, arguments.warm)
        print(json.dumps({"waits for": kind, **row}))


def measured(case: ClusterCase, steps: int, warm: int) -> dict[str, Any]:
    """Run `steps` steps and compare those after the first `warm` with the prediction."""
    wanted = predicted(case)
    with tempfile.TemporaryDirectory() as folder:
        loop, pool = simulated(case, steps, Path(folder))
        rows: list[dict[str, float]] = []
        before = [0.0, 0.0, 0.0]

        def on_step(step: int, metrics: dict[str, float]) -> None:
            rows.append(metrics)
            if step == warm:
                before[:] = time.monotonic(), time.process_time(), pool.cpu_s
                before.append(psutil.Process().memory_info().rss)

        loop.run(0, on_step)
        wall_s, cpu_s = time.monotonic() - before[0], time.process_time() - before[1] - (pool.cpu_s - before[2])
        grown = psutil.Process().memory_info().rss - before[3]
    rows, trained = rows[warm:], (steps - warm) * case.samples
    mean = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    step_s = wall_s / len(rows)
    return {
        "workers": case.workers,
        "ranks": case.ranks,
        "lag allowed": case.lag,
        "samples a step": case.samples,
        "predicted to wait for": wanted.bound,
        "step_s": round(step_s, 4),
        "step_s predicted": round(wanted.step_s, 4),
        "ratio": round(step_s / wanted.step_s, 3),
        "lag": round(mean["rollout/weight_lag_mean"], 3),
        "lag predicted": round(wanted.lag, 3),
        "idle share of slots": round(mean["rollout/idle_share"], 3),
        "idle share of learner": round(mean["learner/idle_share"], 3),
        "rollouts/s": round(trained / wall_s, 1),
        "driver ms a rollout": round(1000 * cpu_s / trained, 3),
        "driver busy": round(cpu_s / wall_s, 3),
        "memory grown, MiB": round(grown / 2**20, 1),
    }


def simulated(case: ClusterCase, steps: int, folder: Path) -> tuple[OverlappedLoop, SleepingPool]:
    """The overlapped loop over a cluster that sleeps, and its pool."""
    recipe = load_recipe(
        RECIPE,
        [
            f"runs_dir={folder}",
            "tracking.kind=jsonl",
            f"rl.steps={steps}",
            f"rl.prompts_per_step={case.groups}",
            f"rl.group_size={case.group_size}",
            f"rl.max_weight_lag={case.lag}",
            "evaluation.every=0",
            "checkpoint.every=0",
        ],
        Recipe,
    )
    task = prepare(recipe, RECIPE.parent).task
    tokenizer = new_tokenizer(recipe, task)
    pool, learner = SleepingPool(case, tokenizer), SleepingLearner(case)
    recipe.run_dir.mkdir(parents=True)
    display = ProgressDisplay(total_steps=steps)
    tracker = Tracker([JsonlSink(recipe.run_dir)])
    runner: Any = CoinRunner()
    handle: Any = learner
    loop = OverlappedLoop(
        recipe=recipe,
        task=task,
        sets=(),
        tokenizer=tokenizer,
        learner=handle,
        pool=pool,
        scorer=GroupScorer(runner),
        saving=Saving(recipe=recipe, learner=handle, tracker=tracker, display=display, state=RunState(), newest=-1),
        tracker=tracker,
        alerts=Alerts(recipe, tracker),
        display=display,
    )
    return loop, pool


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--lag", type=int, default=1)
    parser.add_argument("--groups", type=int, default=0, help="a step; 0: as many as workers")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--warm", type=int, default=5, help="steps before the measurement")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
