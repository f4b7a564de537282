"""`samepath validate --json` says to programs what it says to people; exit statuses are those of the README."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from samepath.rl import cli
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from tests.rl.conftest import TINY


def status_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["samepath", *arguments])
    return cli._status()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "runs_dir": str(tmp_path / "runs")}))
    return path


def test_json_has_every_finding_and_the_recipe(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(monkeypatch, "validate", str(recipe), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is True
    assert {"settings", "task", "model"} <= {finding["name"] for finding in found["findings"]}
    assert all(set(finding) == {"name", "outcome", "detail"} for finding in found["findings"])
    assert Recipe.model_validate(found["recipe"]) == load_recipe(recipe, [], Recipe)
    assert status_of(monkeypatch, "validate", str(recipe), "--json", "--quiet") == 0
    assert "recipe" not in json.loads(capsys.readouterr().out)


def test_json_of_a_recipe_that_is_wrong_says_what_and_ends_with_1(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = "reward.parts.short.function=samepath.rewards.length:brevty"
    assert status_of(monkeypatch, "validate", str(recipe), wrong, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is False
    assert [finding["name"] for finding in found["findings"] if finding["outcome"] == "wrong"]


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("--version",), 0),
        (("validate", "RECIPE", "rl.stepss=1"), 1),
        (("run", "nowhere.yaml"), 2),
        (("resume", "RUNS/nothing"), 1),
        (("run",), 2),
        (("no-such-command",), 2),
        (("validate", "RECIPE", "--no-such-option"), 2),
    ],
)
def test_exit_status_is_that_of_the_readme(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], status: int
) -> None:
    typed = [one.replace("RECIPE", str(recipe)).replace("RUNS", str(recipe.parent)) for one in arguments]
    assert status_of(monkeypatch, *typed) == status
