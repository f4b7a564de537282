"""Runs whose network is on another device than the driver's bookkeeping, or in another type."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from samepath.model.network.network import CausalLM
from samepath.model.policy import Policy
from samepath.rl.learner.policy_checks import check_policy
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run import resume_run, start_run
from samepath.rl.tracking.jsonl import read_metrics
from tests.conftest import tiny_model
from tests.cuda_stand_in import gpu_stand_in
from tests.families import family_model

ON_GPU = ("model.device=cuda", "rl.max_gap_at_lag_0=1e-3")
SHORT = (
    "cold_start={steps: 2, batch_size: 4, dense_warmup_steps: 1}",
    "task.num_held_out=4",
    "model.config.num_hidden_layers=2",
    "rl.group_size=2",
    "rl.prompts_per_step=2",
    "sampling.max_new_tokens=10",
)


def checked_policy(recipe: Recipe, policy: Policy) -> None:
    check_policy(policy.shape, recipe.rl, recipe.learner, recipe.model, recipe.engine)


def test_start_run_with_the_network_on_a_gpu_equals_the_run_on_the_cpu(
    tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in computes on the CPU, so whatever differs was left on the wrong device or lost on the way."""
    wanted = start_run(tiny_recipe("name=cpu", "rl.steps=1", *SHORT), tmp_path)
    with gpu_stand_in(monkeypatch):
        got = start_run(tiny_recipe("name=gpu", "rl.steps=1", *SHORT, *ON_GPU), tmp_path)
        again = resume_run(tiny_recipe("name=gpu", "rl.steps=2", *SHORT, *ON_GPU), tmp_path / "runs" / "gpu")
    for name in ("accuracy_before", "accuracy_after", "gap_at_lag_0", "held_out_responses"):
        assert got[name] == wanted[name]
    assert again["steps"] == 2
    assert again["peak_gpu_memory_gib"] == 1
    assert "peak_gpu_memory_gib" not in wanted
    metrics = read_metrics(tmp_path / "runs" / "gpu" / "metrics.jsonl")[1]
    assert metrics["learner/mfu"] == pytest.approx(metrics["learner/tflops"] * 1e12 / 989e12)


@pytest.mark.parametrize("make", [tiny_model, lambda: family_model("llama")])
def test_a_gap_of_0_on_a_gpu_is_accepted_with_kernels_of_this_package_alone(
    tiny_recipe, make: Callable[[], CausalLM]
) -> None:
    checked_policy(tiny_recipe("model.device=cuda", "model.backend=triton"), make())
    with pytest.raises(ValueError, match="library's products depend on the batch"):
        checked_policy(tiny_recipe("model.device=cuda", "model.backend=torch"), make())


@pytest.mark.parametrize(("device", "learner_gpus", "worker_gpus"), [("cpu", 0, 0), ("cuda", 0.5, 0.25)])
def test_ray_actors_ask_for_their_share_of_the_gpus(
    tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, learner_gpus: float, worker_gpus: float
) -> None:
    pytest.importorskip("ray")
    # Late: the other tests need no Ray.
    from samepath.rl.learner.ray_learner import RayLearner
    from samepath.rollout.pool.ray_pool import RayPool

    asked = []

    def remote(**options: Any) -> Any:
        asked.append((options["num_cpus"], options["num_gpus"]))
        return lambda actor: MagicMock()

    monkeypatch.setattr("ray.remote", remote)
    monkeypatch.setattr("ray.get", lambda call, timeout: None)
    overrides = ("ray.learner_gpus=0.5", "rollout.gpus=0.25", f"model.device={device}", "rl.max_gap_at_lag_0=1e-3")
    recipe = tiny_recipe("runtime=ray", *overrides)
    RayLearner(recipe, tmp_path, tmp_path, None)
    RayPool(tmp_path, recipe.engine, recipe.rollout, {}, recipe.model.placement)
    assert asked == [(0, learner_gpus), (0, worker_gpus), (0, worker_gpus)]


def test_ranks_that_would_share_a_gpu_are_refused(tiny_recipe) -> None:
    ranks = ("learner.ranks=2", "runtime=ray", *ON_GPU)
    with pytest.raises(
        ValueError, match="a whole GPU for each rank.* got ray.learner_gpus=0.5. Set ray.learner_gpus=1"
    ):
        tiny_recipe("ray.learner_gpus=0.5", *ranks)
    assert tiny_recipe(*ranks).learner.ranks == 2


def test_library_products_on_a_gpu_cannot_promise_a_gap_of_0(tiny_recipe) -> None:
    with pytest.raises(ValueError, match="depend on the batch"):
        tiny_recipe("model.device=cuda")
    assert tiny_recipe("model.device=cuda", "model.backend=triton").rl.max_gap_at_lag_0 == 0
