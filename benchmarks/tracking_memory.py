"""Does tracking in MLflow keep memory? Events of made-up steps, faster or slower than the store takes them: `python -m benchmarks.tracking_memory`."""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import psutil
import typer

from samepath.rl.recipe.tracking import TrackingSettings
from samepath.rl.tracking.sink import RunStart
from samepath.rl.tracking.tracked_rollout import TrackedRollout
from samepath.rl.tracking.tracker import build_tracker

METRICS, GROUPS, SAMPLES, LOOK_EVERY = 120, 4, 8, 100


def rollouts_of(step: int) -> list[TrackedRollout]:
    """Of one step, as a small run has them."""
    return [
        TrackedRollout(
            step=step,
            group_id=f"s{step}-g{group}",
            sample_index=sample,
            prompt_text="1+2=",
            response_text="3",
            reward=1.0,
            advantage=0.1,
            num_tokens=3,
            tokens=("1", "2", "3"),
            sampler_logprobs=(-0.1, -0.2, -0.3),
        )
        for group in range(GROUPS)
        for sample in range(SAMPLES)
    ]


def main(
    steps: Annotated[int, typer.Option(min=LOOK_EVERY)] = 1200,
    step_s: Annotated[float, typer.Option(min=0, help="time between two steps, seconds")] = 0.02,
) -> None:
    """Print the resident memory every hundred steps."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        run_dir.mkdir()
        tracker = build_tracker(TrackingSettings(kind="mlflow", close_timeout_s=1), run_dir)
        tracker.start(RunStart(run_name="memory", recipe={}, recipe_yaml="", environment={}, run_id=""))
        for step in range(1, steps + 1):
            tracker.log_metrics(step, {f"made/up{number}": float(number + step) for number in range(METRICS)})
            tracker.log_rollouts(step, rollouts_of(step))
            time.sleep(step_s)
            if step % LOOK_EVERY == 0:
                line = {"step": step, "resident_mib": round(psutil.Process().memory_info().rss / 2**20, 1)}
                sys.stdout.write(json.dumps(line) + "\n")
                sys.stdout.flush()
        tracker.finish("FINISHED")


if __name__ == "__main__":
    typer.run(main)
