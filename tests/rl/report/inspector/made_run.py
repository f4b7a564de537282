"""A run's folder with rollouts of every kind, made without training."""

import json
import math
from pathlib import Path
from typing import Any

from samepath.rl.tracking.jsonl import JsonlSink
from samepath.rl.tracking.tracked_rollout import TrackedRollout

RECIPE = "rl:\n  objective:\n    off_policy_mask: {enabled: true, delta: 0.05, scope: rollout}\n"


def tracked(step: int, group: int, sample: int, **changes: Any) -> TrackedRollout:
    values: dict[str, Any] = {"prompt_text": f"prompt {group}", "response_text": "answer", "reward": 0.5}
    named = {"step": step, "group_id": f"s{step}-g{group}", "sample_index": sample}
    return TrackedRollout(**{**values, **named, **changes})


def some_rollouts(steps: int = 3, groups: int = 3, samples: int = 4) -> list[TrackedRollout]:
    """Steps from 1, with failed, masked and truncated ones, two tasks, ties, NaN, and a needle."""
    made = []
    for step in range(1, steps + 1):
        for group in range(groups):
            for sample in range(samples):
                number = (step * 7 + group * 5 + sample * 3) % 11
                one: dict[str, Any] = {
                    "dataset": "sums" if group % 2 else "Words", "gold": str(group), "reward": number / 8, "num_tokens": number % 4,
                    "advantage": (number - 5) / 8, "kl": math.nan if number == 3 else number / 100, "off_policy": (number - 2) / 50,
                    "masked": number == 4, "weight_lag": number % 3, "finish_reason": "length" if number == 6 else "stop",
                    "response_text": f"Answer {number}" + (" NEEDLE\u0130" if number == 7 else ""),
                }  # fmt: skip
                if number == 9:
                    # One that failed may have a number all the same.
                    one |= {
                        "reward": math.nan if sample % 2 else 0.75,
                        "reward_status": "timeout",
                        "reward_detail": "no result within 5 s",
                    }
                made.append(tracked(step, group, sample, **one))
    return made


def write_run(run_dir: Path, rollouts: list[TrackedRollout], phase: str = "finished") -> Path:
    """Write the run's folder; returns it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "recipe.yaml").write_text(RECIPE)
    (run_dir / "run.json").write_text(json.dumps({"phase": phase}))
    write(run_dir, rollouts)
    return run_dir


def write(run_dir: Path, rollouts: list[TrackedRollout]) -> None:
    """Write the steps of these rollouts as a run does."""
    sink = JsonlSink(run_dir)
    for step in sorted({one.step for one in rollouts}):
        sink.log_rollouts(step, [one for one in rollouts if one.step == step])
