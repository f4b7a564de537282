"""What `samepath validate` says of evaluation sets."""

import json
from pathlib import Path
from typing import Any

import pytest

from samepath.rl.evaluation.sets import build_set
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.tasks.row import Task
from samepath.rl.tasks.survey import Survey
from samepath.rl.validate.finding import Finding
from samepath.rl.validate.set_findings import set_findings
from samepath.rl.validate.validation import validate_recipe
from tests.rl.conftest import TINY


def checked(folder: Path, questions: list[str], **sets: dict[str, Any]) -> dict[str, list[Finding]]:
    """Findings by name; the file `set.jsonl` holds the questions."""
    lines = (json.dumps({"question": text, "answer": "1"}) + "\n" for text in questions)
    (folder / "set.jsonl").write_text("".join(lines))
    path = folder / "recipe.json"
    path.write_text(json.dumps({**TINY, "evaluation": {"sets": sets}, "cold_start": {"steps": 0}}))
    found: dict[str, list[Finding]] = {}
    for finding in validate_recipe(load_recipe(path, [], Recipe), folder).findings:
        found.setdefault(finding.name, []).append(finding)
    return found


FILE = {"task": {"kind": "file", "path": "set.jsonl"}}


def test_validate_describes_each_set(tmp_path: Path) -> None:
    drawn = {"num_samples": 8, "pass_at": [1, 8], "sampling": {"temperature": 0.6}}
    found = checked(tmp_path, ["1+2=", "33+4="], mine={**FILE, **drawn}, own={})
    (mine,), (own,) = found["evaluation.sets.mine"], found["evaluation.sets.own"]
    assert (mine.outcome, own.outcome) == ("ok", "ok")
    assert "2 prompts of at most 6 tokens, 8 responses each of at most 16 tokens at temperature 0.6" in mine.detail
    assert "pass@1, pass@8" in mine.detail
    assert own.detail.startswith("8 prompts")


def test_validate_counts_bad_rows_of_a_set_and_refuses_one_without_any_good_row(tmp_path: Path) -> None:
    warning, fine = checked(tmp_path, ["1+2=", "7×3="], mine=FILE)["evaluation.sets.mine"]
    assert (warning.outcome, fine.outcome) == ("warning", "ok")
    assert "prompt_not_encodable 1 (" in warning.detail
    (wrong,) = checked(tmp_path, ["7×3="], mine=FILE)["evaluation.sets.mine"]
    assert wrong.outcome == "wrong"
    assert "no row can be asked" in wrong.detail


def test_validate_prompt_that_leaves_no_room_for_the_sets_own_longest_response(tmp_path: Path) -> None:
    """128 positions: the prompt fits with the training's 16 tokens and not with the set's 125."""
    long = {**FILE, "sampling": {"max_new_tokens": 125}}
    (wrong,) = checked(tmp_path, ["1+2="], mine=long)["evaluation.sets.mine"]
    assert "prompt_too_long 1 (" in wrong.detail


def test_validate_set_that_cannot_be_read_is_wrong_beside_one_that_can(tmp_path: Path) -> None:
    found = checked(tmp_path, ["1+2="], gone={"task": {"kind": "file", "path": "seet.jsonl"}}, mine=FILE)
    assert [finding.outcome for finding in found["evaluation.sets.gone"]] == ["wrong"]
    assert [finding.outcome for finding in found["evaluation.sets.mine"]] == ["ok"]


@pytest.mark.parametrize(("trained", "asked", "said"), [(False, True, True), (True, False, True), (True, True, False)])
def test_chat_form_that_only_one_side_has_is_a_warning(
    trained: bool, asked: bool, said: bool, tiny_recipe, tmp_path: Path
) -> None:
    (tmp_path / "set.jsonl").write_text('{"question": "1+2=", "answer": "3"}\n')
    recipe = tiny_recipe(
        f"task.chat.enabled={str(trained).lower()}",
        f"evaluation.sets.mine.task={{kind: file, path: set.jsonl, chat: {{enabled: {str(asked).lower()}}}}}",
    )
    one = build_set(recipe, "mine", Task(name="none", train=[], held_out=[], seed=0), tmp_path)
    found = set_findings(one, Survey(total=1, num_read=1, usable_held_out=1), recipe)
    assert [f"chat.enabled is {trained} in training and {asked} here" in finding.detail for finding in found] == [
        True
    ] * said
