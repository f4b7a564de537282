"""A run that is killed at any moment and resumed ends like one that was not: equal weights, and every step once."""

import json
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from samepath.rl.tracking.jsonl import read_rollouts
from tests.rl.conftest import TIMED, TINY
from tests.rl.killer import Killer

ROOT = Path(__file__).resolve().parents[2]
REWARD = """
def shorter(request):
    if request.rollout_key.endswith("/1"):
        raise RuntimeError("away")
    return 1.0 / (1 + request.num_tokens) + sum(map(ord, request.response_text)) % 5 / 5
"""
SMALL: dict[str, Any] = {
    **TINY,
    "task": {**TINY["task"], "num_train": 16, "num_held_out": 3},
    "sampling": {"max_new_tokens": 6},
    "cold_start": {"steps": 2, "batch_size": 2, "dense_warmup_steps": 1},
    "rl": {"steps": 3, "prompts_per_step": 2, "group_size": 3, "updates_per_rollout": 2},
    "optimizer": {"warmup_updates": 8},
    "evaluation": {"every": 1, "full_reward": 0.7, "temperature": 1.0},
    "checkpoint": {"every": 2, "keep": 1},
}


class WholeAndKilled(Killer):
    """Killed runs beside one that nobody kills."""

    def __init__(self, folder: Path) -> None:
        (folder / "own.py").write_text(REWARD)
        reward = {"parts": {"short": {"function": "own:shorter"}}, "search_path": str(folder), "num_workers": 1}
        (folder / "small.yaml").write_text(yaml.safe_dump({**SMALL, "reward": reward}))
        super().__init__("tests.rl.killed_runs", folder / "small.yaml", folder / "runs")
        self.moments = self.attempt("whole")
        """Of a run that nobody kills."""

    def assert_like_whole(self, name: str) -> None:
        """Weights to the bit; lines of metrics, rollouts and totals of failures, each once."""
        whole, cut = self.runs / "whole", self.runs / name
        wanted, got = (load_file(run / "checkpoints" / "step-000003" / "model.safetensors") for run in (whole, cut))
        assert wanted.keys() == got.keys()
        assert all(torch.equal(wanted[key], got[key]) for key in wanted)
        assert lines(cut) == lines(whole)
        assert rollouts(cut) == rollouts(whole)
        ends = [json.loads((run / "summary.json").read_text()) for run in (whole, cut)]
        for key in (
            "failures", "accuracy_before", "accuracy_after", "gap_at_lag_0", "steps", "best_step", "best_accuracy",
        ):  # fmt: skip
            assert ends[0][key] == ends[1][key], key
        assert ends[0]["failures"] == {"reward/status.error": 6.0}
        kept = [sorted(path.name for path in (run / "checkpoints").glob("step-*")) for run in (whole, cut)]
        assert kept[0] == kept[1]
        evaluations = [
            {path.name: path.read_text() for path in (run / "evaluations").iterdir()} for run in (whole, cut)
        ]
        assert evaluations[0] == evaluations[1]
        states = [json.loads((run / "run.json").read_text()) for run in (whole, cut)]
        assert [state["phase"] for state in states] == ["finished", "finished"]
        assert not list(cut.glob("set-aside-*"))
        assert not [path for path in cut.rglob(".*") if path.is_dir()], "a folder that was half written"


def lines(run_dir: Path) -> list[tuple[int, dict[str, Any]]]:
    """The lines of `metrics.jsonl` as they stand, without what is a time."""
    entries = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        (entry["step"], {name: value for name, value in entry["metrics"].items() if not name.startswith(TIMED)})
        for entry in entries
    ]


def rollouts(run_dir: Path) -> dict[str, list[str]]:
    """As text, so that NaN equals NaN."""
    return {
        path.name: [repr({**asdict(one), "generate_s": 0}) for one in read_rollouts(path)]
        for path in sorted((run_dir / "rollouts").iterdir())
    }


@pytest.fixture(scope="module")
def killer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeAndKilled]:
    made = WholeAndKilled(tmp_path_factory.mktemp("killed"))
    yield made
    made.close()


def test_run_killed_again_and_again_ends_like_one_that_was_not(killer: WholeAndKilled) -> None:
    """Later and later moments, so that each attempt gets further than its resume."""
    rng = random.Random(3)
    for number in range(3):
        killer.attempt("often", rng.randint(1, killer.moments // 2) + number)
    killer.attempt("often")
    killer.assert_like_whole("often")


@pytest.mark.slow
def test_run_killed_at_any_moment_ends_like_one_that_was_not(killer: WholeAndKilled) -> None:
    for moment in range(1, killer.moments + 1):
        killer.attempt(f"at-{moment}", moment)
        killer.attempt(f"at-{moment}")
        killer.assert_like_whole(f"at-{moment}")
