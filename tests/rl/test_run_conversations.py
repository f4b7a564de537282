"""The whole job on conversations: reproducible to the last bit, every segment trained on the sampled path, and stopped where environments fail."""

import json
from pathlib import Path
from typing import Any

import pytest

from samepath.rl.batch.failed_share import TooManyFailuresError
from samepath.rl.learner.model_source import save_model
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run import start_run
from samepath.rl.tracking.jsonl import read_metrics
from samepath.rollout.environments.protocol import EnvironmentFailure
from tests.conftest import tiny_model
from tests.random_conversations import Notes, talking_tokenizer
from tests.rl.test_run import comparable


@pytest.fixture
def talking(tmp_path: Path) -> Any:
    """`talking(name, **changes)`: a recipe of conversations with a model of random weights."""
    save_model(tiny_model(), talking_tokenizer(), tmp_path / "model")

    def made(name: str, **changes: Any) -> Recipe:
        recipe = {
            "name": name,
            "runtime": "inline",
            "runs_dir": str(tmp_path / "runs"),
            "model": str(tmp_path / "model"),
            "task": {
                "kind": "environment",
                "environment": "tests.random_conversations:Notes",
                "episode": {
                    "form": {"parser": "tests.random_conversations:calls_or_answers"},
                    "budgets": {"max_turns": 5, "max_tokens": 120},
                },
                "max_held_out": 2,
            },
            "sampling": {"max_new_tokens": 40, "top_p": 0.9},
            "engine": {"page_size": 4},
            "rl": {"steps": 2, "prompts_per_step": 2, "group_size": 3, "updates_per_rollout": 2},
            "optimizer": {"lr": 1e-3},
            "tracking": {"kind": "jsonl"},
        }
        return Recipe.model_validate({**recipe, **changes})

    return made


def test_start_run_on_conversations_twice_gives_identical_metrics_without_a_gap(talking: Any, tmp_path: Path) -> None:
    summary = start_run(talking("a"), tmp_path)
    start_run(talking("b"), tmp_path)
    assert comparable(tmp_path / "runs" / "a") == comparable(tmp_path / "runs" / "b")
    assert summary["gap_at_lag_0"] == 0
    steps = read_metrics(tmp_path / "runs" / "a" / "metrics.jsonl")
    assert steps[2]["learner/grad_norm"] > 0
    assert steps[2]["segments/calls_per_rollout"] > 1
    assert steps[2]["rollout/cache_share"] > 0.3
    assert steps[2]["conversation/turns_mean"] > 1
    assert sum(value for name, value in steps[2].items() if name.startswith("conversation/ended.")) == pytest.approx(1)
    shown = [
        json.loads(line)
        for line in (tmp_path / "runs" / "a" / "rollouts" / "step-00001.jsonl").read_text().splitlines()
    ]
    assert all(len(rollout["messages"]) > 1 for rollout in shown)
    assert {rollout["reward"] for rollout in shown} > {0.0}


def test_run_whose_environments_fail_stops_and_says_why(
    talking: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy = Notes.start

    async def start(self: Notes, row: Any, seed: int) -> Any:
        if row.row_id.startswith("train"):
            raise EnvironmentFailure("start", "the licence server is gone")
        return await healthy(self, row, seed)

    recipe = talking("c", rl={"steps": 2, "prompts_per_step": 2, "group_size": 4})
    monkeypatch.setattr("samepath.rl.tasks.survey.SESSIONS", 1)
    monkeypatch.setattr(Notes, "start", start)
    with pytest.raises(TooManyFailuresError, match=r"environment_start in rollout s1-g0/0: the licence server is gone"):
        start_run(recipe, tmp_path)
