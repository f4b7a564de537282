"""Whole runs of a transformers learner with vLLM: at every step the engine has the learner's newest weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.state import AcceleratorState

from benchmarks.mismatch_cases import write_case
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run import resume_run, start_run
from samepath.rl.tracking.jsonl import read_metrics
from tests.rl.conftest import TINY

FOREIGN: dict[str, Any] = {
    **TINY,
    "engine": {"kind": "vllm", "dtype": "float32", "cache_bytes": 16 << 20, "max_sequences": 32},
    "rollout": {"num_workers": 1},
    "cold_start": {"steps": 0},
    "sampling": {"max_new_tokens": 16},
    "optimizer": {"lr": 0.003},
    "rl": {**TINY["rl"], "max_gap_at_lag_0": 0.001},
}


def recipe_of(tmp_path: Path, family: str, *overrides: str) -> Recipe:
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path / family
    if not folder.exists():
        write_case(family, folder, 0)
    path = tmp_path / "foreign.yaml"
    model = {"kind": "checkpoint", "path": str(folder), "implementation": "transformers"}
    path.write_text(yaml.safe_dump({**FOREIGN, "model": model}))
    return load_recipe(path, [f"runs_dir={tmp_path / 'runs'}", *overrides], Recipe)


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("DeepseekV3", ["learner.activation_checkpointing=true", "learner.min_passes=2"]),
        ("Qwen3Moe", ["learner.lora.rank=4", "sampling.top_p=0.9", "engine.return_sampling_mask=true"]),
    ],
)
def test_start_run_keeps_engine_and_learner_together(family: str, overrides: list[str], tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, family, *overrides)
    summary = start_run(recipe, tmp_path)
    assert 0 < summary["gap_at_lag_0"] < 1e-4, "also after new weights: a stale engine would be far off"
    steps = read_metrics(recipe.run_dir / "metrics.jsonl")
    assert all(steps[step]["routing/flip_rate_at_lag_0"] == 0.0 for step in (1, 2, 3))
    assert all(steps[step]["learner/grad_norm"] > 0 for step in (1, 2, 3))
    assert steps[3]["policy/off_policy_max"] > 1e-4, "the second update of a step must be off-policy"


def test_resumed_run_goes_on_with_the_trained_weights(tmp_path: Path) -> None:
    resume_run(recipe_of(tmp_path, "Olmoe", "rl.steps=4"), run_until(tmp_path, 2))
    steps = read_metrics(tmp_path / "runs" / "tiny" / "metrics.jsonl")
    assert steps[4]["policy/gap_at_lag_0"] < 1e-4
    assert json.loads((tmp_path / "runs" / "tiny" / "summary.json").read_text())["steps"] == 4


def run_until(tmp_path: Path, step: int) -> Path:
    recipe = recipe_of(tmp_path, "Olmoe", f"rl.steps={step}")
    start_run(recipe, tmp_path)
    return recipe.run_dir
