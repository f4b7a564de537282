"""A run whose engine has a process beside the learner's (`rollout.own_process`): its metrics, its lag, its GPU and what is refused."""

from pathlib import Path

import pytest
import torch

from samepath.rl.machine import gpu_alone
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run import start_run
from samepath.rl.tracking.jsonl import read_metrics
from samepath.rl.training import pool_beside
from samepath.rollout.engine_errors import RolloutPoolError
from tests.rl.test_run import comparable

SMALL = ("cold_start.steps=1", "rl.steps=3", "rl.prompts_per_step=2", "rl.group_size=2", "rl.max_gap_at_lag_0=0")


def test_start_run_with_its_engine_beside_gives_the_numbers_of_one_process(tiny_recipe, tmp_path: Path) -> None:
    whole, beside = tiny_recipe("name=whole", *SMALL), tiny_recipe("name=beside", "rollout.own_process=true", *SMALL)
    start_run(whole, tmp_path)
    start_run(beside, tmp_path)
    assert comparable(beside.run_dir) == comparable(whole.run_dir)
    sent = [step["weights/sent_bytes"] for step in steps_of(beside.run_dir)]
    assert len(sent) == 3
    assert all(count > 0 for count in sent)


def steps_of(run_dir: Path) -> list[dict[str, float]]:
    """Metrics of the RL steps."""
    return [step for step in read_metrics(run_dir / "metrics.jsonl").values() if "time/step_s" in step]


def test_start_run_with_its_engine_beside_samples_ahead_at_a_gap_of_0(tiny_recipe, tmp_path: Path) -> None:
    ahead = ("rollout.own_process=true", "rl.max_weight_lag=1", "rl.on_new_weights=recompute")
    recipe = tiny_recipe("name=ahead", *ahead, *SMALL)
    summary = start_run(recipe, tmp_path)
    steps = steps_of(recipe.run_dir)
    assert summary["gap_at_lag_0"] == 0
    assert [step["rollout/weight_lag_max"] for step in steps] == [0, 1, 1]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("runtime=ray",), r"under runtime: ray every worker has a process.*Leave it out"),
        (("engine=vllm",), r"engine\.kind vllm has a process of its own anyway"),
    ],
)
def test_recipe_with_a_process_that_is_there_anyway_is_refused(tiny_recipe, overrides, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        tiny_recipe("rollout.own_process=true", *overrides)


def test_pool_beside_without_a_gpu_behind_those_of_the_ranks_is_refused(
    tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe: Recipe = tiny_recipe("rollout.own_process=true", "rl.max_gap_at_lag_0=1", "learner.ranks=2")
    model = recipe.model.model_copy(update={"device": "cuda"})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RolloutPoolError, match=r"behind those of learner\.ranks=2; 2 are visible"):
        pool_beside(tmp_path, recipe.model_copy(update={"model": model}), tmp_path)


@pytest.mark.parametrize(("visible", "seen"), [("", "1"), ("4,6", "6")])
def test_gpu_alone_counts_among_those_that_are_visible(visible: str, seen: str, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_alone(1) == {"CUDA_VISIBLE_DEVICES": seen}
