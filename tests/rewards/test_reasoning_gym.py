"""Reasoning Gym scorers: gold earns full marks; garbage earns nothing."""

import pytest

pytest.importorskip("reasoning_gym", reason="needs samepath[gym]")

import reasoning_gym as gym

from samepath.rewards.reasoning_gym import score
from samepath.rewards.request import RewardRequest


def entry(name: str, **config: object) -> dict:
    return gym.create_dataset(name, size=1, seed=3, **config)[0]


def request(response: str, row: object, **more: object) -> RewardRequest:
    return RewardRequest(prompt_text="", response_text=response, answer={"entry": row, **more})


@pytest.mark.parametrize(
    "name", ["chain_sum", "prime_factorization", "game_of_life_halting", "countdown", "leg_counting"]
)
def test_score_gold_gives_one(name):
    row = entry(name)
    assert score(request(row["answer"], row)) == 1.0
    assert score(request(f"thinking # {row['answer']}", row), marker="#") == 1.0
    assert score(request(row["answer"], row), marker="#") == 0.0


@pytest.mark.parametrize(
    "change", [lambda gold: gold + "0", lambda gold: "-" + gold, lambda gold: f"{gold} {int(gold) + 1}"]
)
def test_score_near_miss_gives_zero(change):
    row = entry("chain_sum")
    assert score(request(change(row["answer"]), row)) == 0.0


def test_score_partial_marks_only_when_not_strict():
    row = entry("prime_factorization")
    assert score(request("1", row)) == 0.0
    assert score(request("1", row), strict=False) == 0.01


@pytest.mark.parametrize(("name", "text"), [("prime_factorization", "a × b"), ("game_of_life", "{}"), ("boxnet", "[]")])
def test_score_text_that_makes_the_scorer_raise_gives_zero(name, text):
    assert score(request(text, entry(name))) == 0.0


def test_score_scorer_that_pays_nonsense_counts_only_the_entrys_answer():
    row = {**entry("game_of_life_halting"), "answer": "False"}
    row["metadata"] = {**row["metadata"], "solution": False}
    assert score(request("nonsense", row)) == 0.0
    assert score(request("False", row)) == 1.0


def test_score_entry_that_cannot_be_scored_raises():
    row = {**entry("prime_factorization"), "answer": "no factors"}
    with pytest.raises(ValueError, match="invalid literal"):
        score(request("2", row))


def test_score_reads_the_tasks_own_settings():
    row = entry("puzzle24")
    assert score(request(row["answer"], row)) == 1.0
    # Numbers above 1 are then outside of the task.
    assert score(request(row["answer"], row, config={"max_value": 1})) == 0.0
    with pytest.raises(TypeError, match="no_such_setting"):
        score(request("x", row, config={"no_such_setting": 1}))


def test_score_without_entry_raises():
    with pytest.raises(ValueError, match="under 'entry'"):
        score(request("51", None))


def test_score_thinking_does_not_count():
    row = entry("chain_sum")
    assert score(request(f"<think>17?</think>{row['answer']}", row)) == 1.0
    assert score(request(f"<think>{row['answer']}", row)) == 0.0
