"""`samepath validate` on a recipe of an environment: what the model will read first, and what is wrong with a session."""

from pathlib import Path
from typing import Any

import pytest

from samepath.rl.learner.model_source import save_model
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.validate.validation import validate_recipe
from tests.conftest import tiny_model
from tests.random_conversations import talking_tokenizer
from tests.scripted_engine import Toy, failing


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    save_model(tiny_model(), talking_tokenizer(), tmp_path / "model")

    def made(environment: str) -> Recipe:
        return Recipe.model_validate(
            {
                "name": "v",
                "runtime": "inline",
                "runs_dir": str(tmp_path / "runs"),
                "model": str(tmp_path / "model"),
                "task": {"kind": "environment", "environment": environment},
                "sampling": {"max_new_tokens": 40},
            }
        )

    return made


def test_validate_shows_what_the_model_reads_first_and_asks_for_no_reward(recipe: Any, tmp_path: Path) -> None:
    result = validate_recipe(recipe("tests.random_conversations:Notes"), tmp_path)
    found = {finding.name: finding for finding in result.findings}
    assert found["environment"].outcome == "ok"
    assert found["environment"].detail.endswith("held_out-0 begins with 6 tokens, '<bos>0+8=<eos>'")
    assert found["prompts"].outcome == "ok"
    assert "reward" not in found
    assert "chat template" not in found
    assert result.passed(strict=False)
    assert not (tmp_path / "runs").exists()


def test_validate_names_a_session_that_does_not_start(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Toy, "faults", {"start": failing("start", "no licence")})
    result = validate_recipe(recipe("tests.scripted_engine:Toy"), tmp_path)
    found = {finding.name: finding for finding in result.findings}
    assert found["environment"].outcome == "wrong"
    assert "environment_start: no licence" in found["environment"].detail
    assert not result.passed(strict=False)
