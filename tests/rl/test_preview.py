"""Looking at a model without training it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from samepath.model.files.checkpoint import save_checkpoint
from samepath.model.manifest import seal
from samepath.model.text.tokenizer import load_tokenizer
from samepath.rl.cli import app
from samepath.rl.preview import sample_source
from samepath.rl.sample_command import PLAIN
from tests.conftest import ALPHABET, tiny_model
from tests.rl.conftest import TINY
from tests.rl.tasks.test_requests import chatty


def test_sample_source_ends_responses_where_the_recipe_does(tmp_path: Path) -> None:
    """With every character as a stop string a response is one character, after special tokens at most."""
    plain, stopping = tmp_path / "plain.yaml", tmp_path / "stopping.yaml"
    plain.write_text(yaml.safe_dump({**TINY, "runs_dir": str(tmp_path / "runs")}))
    sampling = {**TINY["sampling"], "stop_strings": list(ALPHABET)}
    stopping.write_text(yaml.safe_dump({**TINY, "runs_dir": str(tmp_path / "runs"), "sampling": sampling}))
    free = sample_source(plain, "1+2=", 8, {"max_new_tokens": 12}, seed=0)
    ended = sample_source(stopping, "1+2=", 8, {"max_new_tokens": 12}, seed=0)
    assert max(len(rollout.text.replace("<bos>", "")) for rollout in free) > 1
    assert {len(rollout.text.replace("<bos>", "")) for rollout in ended} <= {0, 1}
    assert {rollout.segments[0].finish_reason for rollout in ended} == {"stop"}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run of a chat recipe as it stands on disk, with one checkpoint of random weights."""
    folder = tmp_path / "runs" / "tiny"
    checkpoint = folder / "checkpoints" / "step-000001"
    save_checkpoint(tiny_model(), checkpoint)
    chatty().save(checkpoint)
    (checkpoint / "step.json").write_text('{"step": 1, "version": 1}')
    seal(checkpoint)
    shutil.copytree(checkpoint, folder / "reference")
    task = {"kind": "file", "path": "x.jsonl", "held_out_fraction": 0.5, "chat": {"enabled": True, "system": "7"}}
    model = {"kind": "checkpoint", "path": str(checkpoint)}
    kept = {key: value for key, value in TINY.items() if key not in ("task", "model")}
    recipe = {**kept, "task": task, "model": model, "runs_dir": str(tmp_path / "runs"), "name": "tiny"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def prompt_ids(source: Path, **more: Any) -> tuple[int, ...]:
    (rollout,) = sample_source(source, "1+2", 1, {"max_new_tokens": 2}, seed=0, **more)
    (segment,) = rollout.segments
    return tuple(segment.token_ids[~segment.trained].tolist())


def test_sample_source_asks_as_the_recipe_trains_unless_told_otherwise(run_folder: Path) -> None:
    checkpoint = run_folder / "checkpoints" / "step-000001"
    tokenizer = load_tokenizer(checkpoint)
    chat, plain = (0, *tokenizer.encode_continuation("7#1+2=")), tokenizer.encode("1+2")
    for source in (run_folder, run_folder / "recipe.yaml", checkpoint, run_folder / "reference"):
        assert prompt_ids(source) == prompt_ids(source, chat=True) == chat
        assert prompt_ids(source, chat=False) == plain


def test_sample_source_checkpoint_outside_a_run_is_asked_plainly_unless_told_otherwise(run_folder: Path) -> None:
    alone = run_folder.parent.parent / "alone"
    shutil.copytree(run_folder / "reference", alone)
    tokenizer = load_tokenizer(alone)
    assert prompt_ids(alone) == prompt_ids(alone, chat=False) == tokenizer.encode("1+2")
    assert prompt_ids(alone, chat=True) == (0, *tokenizer.encode_continuation("#1+2="))


def test_sample_command_passes_the_choice_on_and_shows_text_as_it_is(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (rollout,) = sample_source(run_folder, "1+2", 1, {"max_new_tokens": 1}, seed=0)
    asked = []

    def answer(*_: object, chat: bool | None, best: bool) -> list[object]:
        asked.append(chat)
        return [type("Shown", (), {"segments": rollout.segments, "num_trained": 1, "text": "[/b]x[red]"})()]

    monkeypatch.setattr("samepath.rl.preview.sample_source", answer)
    for options in ([], ["--chat"], ["--no-chat"]):
        result = CliRunner().invoke(app, ["sample", str(run_folder), "1+2", *options])
        assert result.exit_code == 0, result.output
        assert "[/b]x[red]" in result.output
    assert asked == [None, True, False]


def test_sample_command_prints_json_with_every_token(run_folder: Path) -> None:
    result = CliRunner().invoke(app, ["sample", str(run_folder), "1+2", "--count", "2", "--json"])
    assert result.exit_code == 0, result.output
    answers = json.loads(result.stdout)
    wanted = sample_source(run_folder, "1+2", 2, PLAIN, seed=0)
    assert [answer["text"] for answer in answers] == [rollout.text for rollout in wanted]
    for answer, rollout in zip(answers, wanted, strict=True):
        (segment,), (plain,) = rollout.segments, answer["segments"]
        assert plain["token_ids"] == segment.token_ids.tolist()
        assert [value is not None for value in plain["logprobs"]] == segment.trained.tolist()
        assert sum(value or 0.0 for value in plain["logprobs"]) == pytest.approx(answer["logprob"])
        assert (answer["sampled_tokens"], answer["finish_reason"]) == (rollout.num_trained, segment.finish_reason)
