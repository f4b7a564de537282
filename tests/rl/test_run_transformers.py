"""Whole jobs of a transformers learner with the built-in engine, whose own network loads the same checkpoint."""

from pathlib import Path

import numpy as np
import pytest

from samepath.model.files.policy_files import load_policy, policy_tensors
from samepath.rl.learner.checkpoints import latest_checkpoint
from samepath.rl.measure import evaluate_source
from samepath.rl.preview import sample_source
from samepath.rl.run import resume_run, start_run
from samepath.rl.tracking.jsonl import read_metrics

BUILTIN = ["engine={kind: builtin}", "rl.max_gap_at_lag_0=0.001", "rl.steps=3"]


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("Llama", ["sampling.top_p=0.9"]),
        ("Qwen3Moe", ["learner.lora.rank=4", "optimizer.lr=0.01"]),
        ("DeepseekV3", ["learner.activation_checkpointing=true", "learner.min_passes=2"]),
    ],
)
def test_start_run_with_the_builtin_engine_stays_together(
    family: str, overrides: list[str], foreign_recipe, tmp_path: Path
) -> None:
    recipe = foreign_recipe(family, *BUILTIN, *overrides)
    summary = start_run(recipe, tmp_path)
    assert 0 < summary["gap_at_lag_0"] < 1e-4, "other kernels round differently, and no more than that"
    steps = read_metrics(recipe.run_dir / "metrics.jsonl")
    for step in (1, 2, 3):
        assert float(steps[step]["learner/grad_norm"]) > 0
        assert family == "Llama" or float(steps[step]["routing/flip_rate_at_lag_0"]) == 0.0
    found = latest_checkpoint(recipe.run_dir)
    assert found is not None
    before = policy_tensors(load_policy(recipe.run_dir / "reference", "transformers", "torch"))
    after = policy_tensors(load_policy(found[0], "own", "torch"))
    assert before.keys() == after.keys(), "the own network takes the checkpoint as it stands"
    assert any(not np.array_equal(before[name].numpy(), after[name].numpy()) for name in before)


def test_resumed_run_equals_one_that_was_not_interrupted(foreign_recipe, tmp_path: Path) -> None:
    overrides = [*BUILTIN, "learner.lora.rank=4", "optimizer.lr=0.01"]
    whole = foreign_recipe("Qwen3Moe", *overrides, "name=whole")
    start_run(whole, tmp_path)
    part = foreign_recipe("Qwen3Moe", *overrides, "name=part", "rl.steps=2")
    start_run(part, tmp_path)
    resume_run(foreign_recipe("Qwen3Moe", *overrides, "name=part"), part.run_dir)
    ends = [read_metrics(recipe.run_dir / "metrics.jsonl")[3] for recipe in (whole, part)]
    timed = ("time/", "weights/", "memory/", "rollout/tokens_per_s", "learner/tokens_per_s")
    first, second = ({name: repr(value) for name, value in end.items() if not name.startswith(timed)} for end in ends)
    assert first == second


def test_sample_and_evaluate_of_a_transformers_recipe_use_its_checkpoint(foreign_recipe, tmp_path: Path) -> None:
    recipe = foreign_recipe("Qwen3Moe", *BUILTIN, "rl.steps=1")
    path = tmp_path / "foreign.yaml"
    untrained = sample_source(path, "1+2=", 2, {"max_new_tokens": 4}, seed=0)
    assert [rollout.num_trained > 0 for rollout in untrained] == [True, True]
    start_run(recipe, tmp_path)
    newest = latest_checkpoint(recipe.run_dir)
    assert newest is not None
    found = evaluate_source(recipe, tmp_path, newest[0])
    assert found["scored"] == 8
    assert found["checkpoint"].endswith("step-000001")
