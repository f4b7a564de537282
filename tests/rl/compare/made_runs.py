"""Folders of runs as they stand on disk, made without running them."""

import json
from collections.abc import Mapping
from pathlib import Path

from samepath.rl.evaluation.outcomes import Outcomes, write_outcomes
from samepath.rl.recipe.file import dump_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run_state import RunState


def made_run(
    recipe: Recipe,
    metrics: Mapping[int, Mapping[str, float]],
    right: Mapping[int, str] | None = None,
    phase: str = "finished",
    alerts: Mapping[str, int] | None = None,
) -> Path:
    """The folder of a run with these metrics by step; `right` says by step which of the held-out prompts p0, p1, … are right, 1 or 0."""
    run_dir = recipe.run_dir
    run_dir.mkdir(parents=True)
    (run_dir / "recipe.yaml").write_text(dump_recipe(recipe))
    RunState(phase=phase, alerts=dict(alerts or {})).save(run_dir)
    lines = [json.dumps({"step": step, "metrics": dict(values)}) for step, values in metrics.items()]
    (run_dir / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    for step, marks in (right or {}).items():
        outcomes = Outcomes(
            prompts=tuple(f"p{place}" for place in range(len(marks))),
            scored=(1,) * len(marks),
            right=tuple(map(int, marks)),
            rewards=tuple(map(float, marks)),
        )
        write_outcomes(run_dir, step, {"": outcomes})
    return run_dir
