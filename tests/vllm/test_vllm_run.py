"""Whole runs with `engine: vllm`, under Ray and inline: the learner trains on what vLLM sampled, with nothing lost and no gap."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from samepath.rl.learner.checkpoints import latest_checkpoint
from samepath.rl.measure import evaluate_source
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run import start_run
from samepath.rl.tracking.jsonl import read_metrics
from tests.rl.conftest import TINY
from tests.rl.test_run import comparable

ENGINE = {
    "kind": "vllm",
    "network": "own",
    "dtype": "float32",
    "return_sampling_mask": True,
    "cache_bytes": 4 << 20,
    "max_sequences": 16,
    "page_size": 16,
}


def load(tmp_path: Path, name: str, *overrides: str) -> Recipe:
    """The tiny recipe with vLLM."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "engine": ENGINE, "rollout": {"num_workers": 1}}))
    return load_recipe(path, [f"runs_dir={tmp_path / 'runs'}", f"name={name}", *overrides], Recipe)


def run(tmp_path: Path, name: str, *overrides: str) -> dict[int, dict[str, Any]]:
    """Metrics of each step."""
    start_run(load(tmp_path, name, *overrides), tmp_path)
    return read_metrics(tmp_path / "runs" / name / "metrics.jsonl")


def test_start_run_with_vllm_has_no_gap_and_is_the_same_under_ray_and_inline(tmp_path: Path) -> None:
    before = torch.set_num_threads
    steps = run(tmp_path, "inline")
    assert torch.set_num_threads is before, "vLLM may not change the process that the learner lives in"
    newest = latest_checkpoint(tmp_path / "runs" / "inline")
    assert newest is not None
    assert evaluate_source(load(tmp_path, "inline"), tmp_path, newest[0])["scored"] == 8
    for step in (1, 2, 3):
        assert steps[step]["policy/gap_at_lag_0"] == 0
        assert steps[step]["routing/missing"] == 0
        assert steps[step]["learner/grad_norm"] > 0
    run(tmp_path, "ray", "runtime=ray", "ray.object_store_bytes=104857600")
    assert comparable(tmp_path / "runs" / "inline") == comparable(tmp_path / "runs" / "ray")


def test_start_run_with_a_published_family_replays_the_experts_of_a_bfloat16_engine(
    tmp_path: Path, checkpoint: Callable
) -> None:
    """vLLM's own Qwen3-MoE sampling, transformers' learning, new weights going over after every step."""
    engine = {"kind": "vllm", "return_sampling_mask": True, "cache_bytes": 4 << 20, "max_sequences": 16}
    steps = run(
        tmp_path,
        "published",
        "~model",
        f"model={{kind: checkpoint, path: {checkpoint('qwen3_moe')}, implementation: transformers}}",
        "~engine",
        f"engine={json.dumps(engine)}",
        "cold_start.steps=0",
        "cold_start.dense_warmup_steps=0",
        "rl.max_gap_at_lag_0=0.5",
        "runtime=ray",
        "ray.object_store_bytes=104857600",
    )
    gaps = [steps[step]["policy/gap_at_lag_0"] for step in (1, 2, 3)]
    assert all(0 < gap < 0.5 for gap in gaps), "bfloat16 rounds, and the replayed experts keep it small"
    assert all(steps[step]["routing/missing"] == 0 for step in (1, 2, 3))
