"""A whole run whose ranks hold the model in shards, gone on with by one process, and its weights for others."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from samepath.model.files.checkpoint import load_checkpoint, published_tensors
from samepath.model.files.policy_files import load_policy
from samepath.rl.cli import app
from samepath.rl.run import resume_run, start_run
from samepath.rl.run_folder import recipe_of_run

SHORT = ("cold_start.steps=1", "rl.steps=1", "evaluation.every=0", "learner.min_passes=2")
IN_SHARDS = ("learner.ranks=2", "learner.shard=full")


def losses(run_dir: Path) -> list[float]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [metrics["learner/loss"] for line in lines if "learner/loss" in (metrics := json.loads(line)["metrics"])]


@pytest.mark.parametrize("experts", ["gathered", "in place"])
def test_run_in_shards_has_no_gap_and_its_checkpoint_is_exported(tiny_recipe, tmp_path: Path, experts: str) -> None:
    """The gap at equal weights is 0: gathered weights have the bits of whole ones, and so have rows that another rank computed."""
    recipe = tiny_recipe(*SHORT, *IN_SHARDS, f"learner.expert_parallel={str(experts == 'in place').lower()}")
    assert start_run(recipe, tmp_path)["gap_at_lag_0"] == 0.0
    checkpoint, exported = recipe.run_dir / "checkpoints" / "step-000001", tmp_path / "exported"
    with pytest.raises(FileNotFoundError, match=r"samepath export .*step-000001 OUT"):
        load_policy(checkpoint, "own", "torch")
    assert CliRunner().invoke(app, ["export", str(checkpoint), str(exported)], catch_exceptions=False).exit_code == 0
    learned, start = load_checkpoint(exported), load_checkpoint(recipe.run_dir / "reference")
    assert any(not torch.equal(one, published_tensors(start)[name]) for name, one in published_tensors(learned).items())


@pytest.mark.slow
@pytest.mark.parametrize("experts", ["false", "true"])
def test_run_in_shards_trains_as_one_process_does_and_one_process_goes_on_with_it(
    tiny_recipe, tmp_path: Path, experts: str
) -> None:
    recipe = tiny_recipe(*SHORT, *IN_SHARDS, f"learner.expert_parallel={experts}", "rl.steps=2", "name=sharded")
    alone = tiny_recipe(*SHORT, "rl.steps=2", "name=alone")
    start_run(recipe, tmp_path)
    start_run(alone, tmp_path)
    assert len(losses(recipe.run_dir)) == 2
    assert losses(recipe.run_dir) == pytest.approx(losses(alone.run_dir), rel=1e-4)
    changes = ["rl.steps=3", "learner.ranks=1", "learner.shard=none", "learner.expert_parallel=false"]
    resume_run(recipe_of_run(recipe.run_dir, changes), recipe.run_dir)
    assert (recipe.run_dir / "checkpoints" / "step-000003" / "model.safetensors").is_file()
    assert len(losses(recipe.run_dir)) == 3
