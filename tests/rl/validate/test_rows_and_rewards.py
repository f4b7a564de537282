"""What `samepath validate` says of every row, and of one call of each reward function."""

import json
from pathlib import Path
from typing import Any

import pytest

from samepath.rewards.sandbox import isolation
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.validate import validation
from samepath.rl.validate.finding import Finding, Validation
from samepath.rl.validate.validation import validate_recipe
from tests.rl.conftest import TINY


def checked(folder: Path, recipe: dict[str, Any], questions: list[str]) -> tuple[Validation, dict[str, Finding]]:
    """The findings on a file of these questions; those named `rows` are put together by outcome."""
    for name, texts in (("rows.jsonl", questions), ("held.jsonl", ["9+9="])):
        lines = (json.dumps({"question": text, "answer": "1"}) + "\n" for text in texts)
        (folder / name).write_text("".join(lines))
    task = {"kind": "file", "path": str(folder / "rows.jsonl"), "held_out_path": str(folder / "held.jsonl")}
    path = folder / "recipe.json"
    path.write_text(json.dumps({**TINY, "task": task, **recipe}))
    result = validate_recipe(load_recipe(path, [], Recipe), folder)
    return result, {f.name if f.name != "rows" else f"rows {f.outcome}": f for f in result.findings}


def own(folder: Path, code: str) -> dict[str, Any]:
    (folder / "own_validated.py").write_text(code)
    return {"reward": {"parts": {"own": "own_validated:f"}, "search_path": str(folder), "timeout_s": 0.5}}


def test_validate_reads_every_row_and_strict_fails_on_a_bad_one_beyond_the_first_hundred(tmp_path: Path) -> None:
    questions = [f"{number}+1=" for number in range(120)]
    for place in (101, 103, 107, 111):
        questions[place] = "7×3="
    result, found = checked(tmp_path, {}, questions)
    detail = found["rows warning"].detail
    assert "4 of 121 rows cannot be asked: prompt_not_encodable 4 (" in detail
    assert [f"rows.jsonl:{line}:" in detail for line in (102, 104, 108, 112)] == [True, True, True, False]
    assert result.passed(strict=False)
    assert not result.passed(strict=True)
    assert "121 encoded" in found["prompts"].detail


def test_validate_row_that_is_too_long_is_a_warning_beside_rows_that_fit(tmp_path: Path) -> None:
    """128 positions, 16 of them for the response."""
    _, found = checked(tmp_path, {}, ["1+2=", "1" * 120 + "="])
    assert found["prompts"].outcome == "ok"
    assert "prompt_too_long 1 (" in found["rows warning"].detail
    assert "it needs 122 + 16" in found["rows warning"].detail


def test_validate_rows_that_were_not_reached_in_time_are_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "READ_LIMIT_S", 0.0)
    _, found = checked(tmp_path, {}, ["1+2=", "3+4="])
    assert "0 of 3 rows were read" in found["rows not checked"].detail


def test_validate_one_training_row_is_a_warning(tmp_path: Path) -> None:
    result, found = checked(tmp_path, {}, ["1+2="])
    assert "there is one training row" in found["rows warning"].detail
    assert not result.passed(strict=True)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def f(request): raise KeyError('gold')", "own_validated:f (error): own: KeyError: 'gold'"),
        ("def f(request): return None", "own_validated:f (invalid): own: it must return a finite number"),
        ("import time\ndef f(request): time.sleep(60)", "own_validated:f (timeout): own: no result within 0.5 s"),
    ],
)
def test_validate_reward_that_fails_on_a_real_row_is_wrong(tmp_path: Path, code: str, said: str) -> None:
    result, found = checked(tmp_path, own(tmp_path, code), ["1+2=", "3+4="])
    assert found["reward"].outcome == "wrong"
    assert said in found["reward"].detail
    assert "held.jsonl:1" in found["reward"].detail
    assert not result.passed(strict=False)


def test_validate_calls_each_part_alone_on_the_right_answer(tmp_path: Path) -> None:
    recipe = own(tmp_path, "def f(request): return float(request.response_text) + 0.5\ndef g(request): return 0")
    recipe["reward"]["parts"]["other"] = "own_validated:g"
    _, found = checked(tmp_path, recipe, ["1+2=", "3+4="])
    assert found["reward"].outcome == "ok"
    assert "own: own_validated:f gives own 1.5, other: own_validated:g gives other 0" in found["reward"].detail
    assert "reward functions run under" in found["reward"].detail or "reward isolation none" in found["reward"].detail


def test_validate_isolation_that_does_not_work_here_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "problem_of", lambda mode: "not today")
    recipe = own(tmp_path, "def f(request): return 1")
    recipe["reward"]["isolation"] = "landlock"
    _, found = checked(tmp_path, recipe, ["1+2=", "3+4="])
    assert found["reward"].outcome == "wrong"
    assert "reward.isolation=landlock must work on this machine; it does not: not today" in found["reward"].detail
