"""Playing a held-out conversation without training: which row, with which sampling, and who is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from samepath.model.files.checkpoint import save_checkpoint
from samepath.model.manifest import seal
from samepath.rl.cli import app
from samepath.rl.preview_conversation import Played, play_conversations
from samepath.rl.run_state import RunState
from tests.conftest import tiny_model
from tests.marked_conversations import marked_tokenizer
from tests.rl.conftest import TINY

TOKENIZER = marked_tokenizer()
STORE = {
    "kind": "environment",
    "environment": "samepath.rollout.environments.store:StoreEnvironment",
    "options": {"num_held_out": 3},
    "episode": {"budgets": {"max_tokens": 40}},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights that can read the store's conversations."""
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    sizes = {"vocab_size": max(*TOKENIZER.control_ids, 400) + 8, "max_position_embeddings": 4096}
    save_checkpoint(tiny_model(**sizes), folder)
    TOKENIZER.save(folder)
    return folder


def recipe_file(folder: Path, checkpoint: Path, **changes: Any) -> Path:
    kept = {key: value for key, value in TINY.items() if key not in ("task", "model", "reward", "cold_start")}
    model = {"kind": "checkpoint", "path": str(checkpoint)}
    recipe = {
        **kept,
        "task": STORE,
        "model": model,
        "runs_dir": str(folder / "runs"),
        "cold_start": {"steps": 0},
        **changes,
    }
    path = folder / "store.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture
def recipe(tmp_path: Path, checkpoint: Path) -> Path:
    return recipe_file(tmp_path, checkpoint)


def drawn(played: Played) -> list[list[int]]:
    return [segment.token_ids[segment.trained].tolist() for one in played.rollouts for segment in one.segments]


def test_conversation_of_a_recipe_begins_as_its_row_does_and_is_drawn_as_the_recipe_says(recipe: Path) -> None:
    played = play_conversations(recipe, 1, 2, {}, seed=0)
    first, second = played.rollouts
    assert first.environment_score is not None
    assert first.messages[0].content == second.messages[0].content
    other = play_conversations(recipe, 2, 1, {}, seed=0)
    assert (played.row_id, other.row_id) == ("held_out-1", "held_out-2")
    asked = [next(one.content for one in run.messages if one.role == "user") for run in (first, *other.rollouts)]
    assert asked[0] != asked[1]
    assert first.segments[0].num_trained <= 16, "sampling.max_new_tokens of the recipe"
    assert first.segments[0].kinds is not None
    assert drawn(play_conversations(recipe, 1, 2, {}, seed=0)) == drawn(played)
    assert drawn(play_conversations(recipe, 1, 2, {}, seed=1)) != drawn(played)
    assert len(drawn(play_conversations(recipe, 1, 1, {"max_new_tokens": 2}, seed=0))[0]) <= 2


def test_conversation_of_a_run_is_played_with_its_checkpoint(tmp_path: Path, checkpoint: Path) -> None:
    recipe = recipe_file(tmp_path, checkpoint, name="tiny")
    run_dir = tmp_path / "runs" / "tiny"
    step = run_dir / "checkpoints" / "step-000001"
    shutil.copytree(checkpoint, step)
    save_checkpoint(
        tiny_model(seed=5, vocab_size=max(*TOKENIZER.control_ids, 400) + 8, max_position_embeddings=4096), step
    )
    (step / "step.json").write_text('{"step": 1, "version": 1}')
    seal(step)
    shutil.copy(recipe, run_dir / "recipe.yaml")
    RunState(recipe_dir=str(tmp_path)).save(run_dir)
    of_run = drawn(play_conversations(run_dir, 0, 1, {}, seed=0))
    assert drawn(play_conversations(recipe, 0, 1, {}, seed=0)) == of_run, "a recipe means its newest checkpoint"
    shutil.rmtree(run_dir)
    assert drawn(play_conversations(recipe, 0, 1, {}, seed=0)) != of_run


def test_what_has_no_environment_or_no_such_row_is_refused(tmp_path: Path, recipe: Path, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"--row must be in 0 … 2, the held-out rows; got 3"):
        play_conversations(recipe, 3, 1, {}, seed=0)
    with pytest.raises(ValueError, match="names an environment; got the folder"):
        play_conversations(checkpoint, 0, 1, {}, seed=0)
    plain = tmp_path / "plain.yaml"
    plain.write_text(yaml.safe_dump(TINY))
    with pytest.raises(ValueError, match="needs a recipe with task.kind: environment; .* has task.kind: reasoning_gym"):
        play_conversations(plain, 0, 1, {}, seed=0)


def test_conversation_that_does_not_fit_says_why(tmp_path: Path, checkpoint: Path) -> None:
    small = recipe_file(tmp_path, checkpoint, engine={"kind": "builtin", "cache_tokens": 64})
    with pytest.raises(ValueError, match="row held_out-0 failed: prompt_too_long"):
        play_conversations(small, 0, 1, {}, seed=0)


def test_command_shows_messages_and_tokens_and_ids_where_asked_for(recipe: Path) -> None:
    result = CliRunner().invoke(app, ["sample", str(recipe), "--conversation", "--row", "1", "--count", "2"])
    assert result.exit_code == 0, result.output
    assert "row held_out-1, conversation 1" in result.output
    assert "segment 1, epoch 0: " in result.output
    assert "trained  '" in result.output
    assert "ended by tokens, score 0" in result.output or "ended by malformed, score 0" in result.output
    user = TOKENIZER.encode_continuation("<｜User｜>", [(0, len("<｜User｜>"))])[0]
    assert f"'<｜User｜>':{user}" not in result.output
    with_ids = CliRunner().invoke(app, ["sample", str(recipe), "--conversation", "--ids", "--temperature", "0"])
    assert f"'<｜User｜>':{user}" in with_ids.output


def test_command_prints_conversations_as_json(recipe: Path) -> None:
    result = CliRunner().invoke(app, ["sample", str(recipe), "--conversation", "--row", "1", "--json"])
    assert result.exit_code == 0, result.output
    (conversation,) = json.loads(result.stdout)
    (rollout,) = play_conversations(recipe, 1, 1, {}, seed=0).rollouts
    assert conversation["row"] == "held_out-1"
    assert [one["token_ids"] for one in conversation["segments"]] == [
        one.token_ids.tolist() for one in rollout.segments
    ]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ([], "give a prompt, such as"),
        (["1+2=", "--conversation"], "leave the prompt and --chat out"),
        (["--conversation", "--no-chat"], "leave the prompt and --chat out"),
        (["1+2=", "--row", "0"], "--row and --ids go with --conversation"),
        (["1+2=", "--ids"], "--row and --ids go with --conversation"),
        (["--conversation", "--ids", "--json"], "--json has the ids: leave --ids out"),
    ],
)
def test_options_that_do_not_go_together_are_refused(recipe: Path, options: list[str], problem: str) -> None:
    result = CliRunner().invoke(app, ["sample", str(recipe), *options])
    assert problem in str(result.exception)
