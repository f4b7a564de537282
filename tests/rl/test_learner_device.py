"""Runs whose network is on another device than the driver's bookkeeping, or in another type."""

from pathlib import Path

import pytest

from samepath.rl.policy_checks import check_policy
from samepath.rl.run import resume_run, start_run
from samepath.rl.tracking_jsonl import read_metrics
from tests.conftest import tiny_model
from tests.cuda_stand_in import gpu_stand_in
from tests.families import family_model

ON_GPU = ("model.device=cuda", "rl.max_gap_at_lag_0=1e-3")


def test_start_run_with_the_network_on_a_gpu_equals_the_run_on_the_cpu(
    tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in computes on the CPU, so whatever differs was left on the wrong device or lost on the way."""
    wanted = start_run(tiny_recipe("name=cpu", "rl.steps=2"), tmp_path)
    with gpu_stand_in(monkeypatch):
        got = start_run(tiny_recipe("name=gpu", "rl.steps=2", *ON_GPU), tmp_path)
        again = resume_run(tiny_recipe("name=gpu", "rl.steps=3", *ON_GPU), tmp_path / "runs" / "gpu")
    for name in ("accuracy_before", "accuracy_after", "gap_at_lag_0", "held_out_responses"):
        assert got[name] == wanted[name]
    assert again["steps"] == 3
    assert again["peak_gpu_memory_gib"] == 1
    assert "peak_gpu_memory_gib" not in wanted
    metrics = read_metrics(tmp_path / "runs" / "gpu" / "metrics.jsonl")[2]
    assert metrics["learner/mfu"] == pytest.approx(metrics["learner/tflops"] * 1e12 / 989e12)


def test_attention_over_all_keys_on_a_gpu_cannot_promise_a_gap_of_0(tiny_recipe) -> None:
    recipe = tiny_recipe("model.device=cuda", "model.backend=triton")
    check_policy(recipe, tiny_model())
    with pytest.raises(ValueError, match="needs sparse attention"):
        check_policy(recipe, family_model("llama"))


def test_threads_beside_a_gpu_are_refused(tiny_recipe) -> None:
    with pytest.raises(ValueError, match="learner.threads=1"):
        tiny_recipe("learner.threads=2", *ON_GPU)


def test_library_products_on_a_gpu_cannot_promise_a_gap_of_0(tiny_recipe) -> None:
    with pytest.raises(ValueError, match="depend on the batch"):
        tiny_recipe("model.device=cuda")
    assert tiny_recipe("model.device=cuda", "model.backend=triton").rl.max_gap_at_lag_0 == 0
