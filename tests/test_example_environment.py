"""The example of an environment of one's own really runs, and plays as its page says."""

import asyncio
import json
import random
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from samepath.model.text.conversation import Message
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run import start_run
from samepath.rl.tracking.jsonl import read_metrics, read_rollouts
from samepath.rl.tracking.tracked_rollout import TrackedRollout

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "own_environment"
SMALL = (
    "tracking.kind=jsonl",
    "cold_start.steps=6",
    "cold_start.dense_warmup_steps=2",
    "model.tokenizer.rows=16",
    "rl.steps=2",
    "rl.prompts_per_step=4",
    "rl.group_size=4",
    "evaluation.every=0",
    "sampling.max_new_tokens=16",
)


@pytest.fixture(scope="module")
def own() -> dict[str, Any]:
    """The example's module."""
    return runpy.run_path(str(EXAMPLE / "own_environment.py"))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's recipe, started in its own folder as its page says, shortened."""
    runs_dir = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(EXAMPLE)
        # The run appends the folder of the recipe.
        patch.setattr(sys, "path", [*sys.path])
        recipe = load_recipe("recipe.yaml", [f"runs_dir={runs_dir}", *SMALL], Recipe)
        start_run(recipe, Path())
    return recipe.run_dir


@pytest.fixture(scope="module")
def rollouts(run_dir: Path) -> list[TrackedRollout]:
    return [rollout for path in sorted((run_dir / "rollouts").iterdir()) for rollout in read_rollouts(path)]


def test_own_environment_run_scores_as_its_sessions_do(rollouts: list[TrackedRollout]) -> None:
    assert len(rollouts) == 2 * 4 * 4
    for rollout in rollouts:
        parts = rollout.reward_parts
        assert list(parts) == ["right", "surplus_calls"]
        assert rollout.reward == pytest.approx(parts["right"] - 0.1 * parts["surplus_calls"])


def test_own_environment_run_has_an_exact_path(run_dir: Path) -> None:
    assert json.loads((run_dir / "summary.json").read_text())["gap_at_lag_0"] == 0.0
    steps = read_metrics(run_dir / "metrics.jsonl")
    assert steps[2]["reward/part.right"] >= 0


def test_own_environment_holds_out_the_numbers_that_end_in_seven(own: dict[str, Any]) -> None:
    environment = own["GuessEnvironment"](largest=20)
    held_out, train = environment.tasks("held_out"), environment.tasks("train")
    assert [row.data["number"] for row in held_out] == [7, 17]
    assert len(train) == 18
    with pytest.raises(ValueError, match="at least 10"):
        own["GuessEnvironment"](largest=9)


def test_own_environment_worked_conversations_find_the_number(own: dict[str, Any]) -> None:
    for row in own["GuessEnvironment"]().tasks("train"):
        worked = own["worked"](row, random.Random(0))
        assert worked.messages[-1].content == str(row.data["number"])
        assert sum(len(message.calls) for message in worked.messages) <= 6
    guessed = [own["worked"](row, random.Random(seed), guess_share=1.0) for seed in range(20)]
    assert all(len(conversation.messages) == 2 for conversation in guessed)
    assert sum(one.messages[-1].content == str(row.data["number"]) for one in guessed) < 3


def test_own_environment_counts_comparisons_beyond_those_that_halving_needs(own: dict[str, Any]) -> None:
    async def total(guesses: list[int]) -> tuple[float, list[str]]:
        environment = own["GuessEnvironment"]()
        session = await environment.start(environment.tasks("train")[4], seed=0)
        said = [(await session.call("compare", {"guess": guess}, 1.0)).text for guess in guesses]
        assert await session.reply("5") is None
        return (await session.score()).total, said

    assert asyncio.run(total([5, 6, 4, 64])) == (1.0, ["equal", "less", "more", "guess 1 to 63"])
    assert asyncio.run(total([1] * 8))[0] == pytest.approx(0.8)


def test_own_environment_user_gives_a_second_chance(own: dict[str, Any]) -> None:
    async def said(answers: list[str]) -> list[Message | None]:
        environment = own["GuessEnvironment"]()
        session = await environment.start(environment.tasks("train")[4], seed=0)
        return [await session.reply(answer) for answer in answers]

    assert asyncio.run(said(["", "6"])) == [Message(role="user", content="No. Once more?"), None]


def test_own_environment_script_plays_two_conversations(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE / "own_environment.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:6] == [
        "44 of 63",
        "user: 1 to 63?",
        "compare(32): more",
        "compare(48): less",
        "model: 42",
        "user: No. Once more?",
    ]
    assert [line[:15] for line in lines if line.startswith("Score")] == ["Score(total=1.0", "Score(total=0.0"]
