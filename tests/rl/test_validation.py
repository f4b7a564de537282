"""`samepath validate`: every check's outcome, on small checkpoints and without a network; exit statuses."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from samepath.model.tokenizer import character_tokenizer
from samepath.rl.cli import main
from samepath.rl.recipe import Recipe
from samepath.rl.recipe_file import load_recipe
from samepath.rl.validation import Finding, Validation, validate_recipe
from tests.conftest import ALPHABET, tiny_config
from tests.rl.conftest import TINY

SIZES = {
    "model_type": "deepseek_v32",
    **{
        key: value
        for key, value in tiny_config().model_dump(mode="json").items()
        if key not in ("rope_parameters", "pad_token_id")
    },
}


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No address resolves, and the hub's cache is empty."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint folder without weights: configuration and tokenizer."""
    folder = tmp_path / "checkpoint"
    character_tokenizer(ALPHABET).save(folder)
    (folder / "config.json").write_text(json.dumps(tiny_config().to_json()))
    return folder


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return path


def checked(folder: Path, **changes: Any) -> tuple[Validation, dict[str, Finding]]:
    result = validate_recipe(load_recipe(write(folder, **changes), [], Recipe), folder)
    return result, {finding.name: finding for finding in result.findings}


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["samepath", "validate", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_validate_new_model_everything_is_checked(tmp_path: Path) -> None:
    result, found = checked(tmp_path)
    assert {finding.outcome for finding in result.findings} == {"ok"}
    assert list(found) == [
        "settings",
        "task",
        "model",
        "sizes",
        "tokenizer",
        "prompts",
        "cold start",
        "reward",
        "engine",
        "memory",
    ]
    assert result.passed(strict=True)
    assert any(line.startswith("| least devices of 80 GB") for line in result.lines())


def test_validate_checkpoint_without_weights_is_not_built(checkpoint: Path) -> None:
    _, found = checked(checkpoint.parent, model={"kind": "checkpoint", "path": "checkpoint", "expected": SIZES})
    assert found["model"].outcome == found["tokenizer"].outcome == found["prompts"].outcome == "ok"
    assert f"equal to model.expected in {len(SIZES)} sizes" in found["model"].detail


def test_validate_size_that_is_not_the_expected_one_is_wrong(checkpoint: Path) -> None:
    expected = {**SIZES, "hidden_size": 128}
    result, found = checked(checkpoint.parent, model={"kind": "checkpoint", "path": "checkpoint", "expected": expected})
    assert found["model"].outcome == "wrong"
    assert "hidden_size is 64, expected 128" in found["model"].detail
    assert not result.passed(strict=False)


def test_validate_hub_name_offline_counts_from_the_expected_sizes(tmp_path: Path) -> None:
    model = {"kind": "checkpoint", "path": "someone/something", "expected": SIZES}
    result, found = checked(tmp_path, model=model)
    assert found["model"].outcome == found["tokenizer"].outcome == found["prompts"].outcome == "not checked"
    assert "someone/something is not in the hub's cache" in found["model"].detail
    assert found["sizes"].outcome == "ok"
    assert "(from model.expected)" in found["sizes"].detail
    assert result.passed(strict=False)
    assert not result.passed(strict=True)


def test_validate_hub_name_offline_without_expected_sizes_says_so(tmp_path: Path) -> None:
    _, found = checked(tmp_path, model={"kind": "checkpoint", "path": "someone/something"})
    assert found["sizes"].outcome == found["memory"].outcome == "not checked"
    assert "no model.expected" in found["sizes"].detail


def test_validate_folder_that_does_not_exist_is_wrong(tmp_path: Path) -> None:
    _, found = checked(tmp_path, model={"kind": "checkpoint", "path": "./nowhere", "expected": SIZES})
    assert found["model"].outcome == "wrong"
    assert "no folder ./nowhere" in found["model"].detail


def test_validate_large_model_needs_devices_that_the_learner_does_not_use(tmp_path: Path) -> None:
    expected = {
        **SIZES,
        "num_hidden_layers": 200,
        "hidden_size": 8192,
        "n_routed_experts": 64,
        "moe_intermediate_size": 2048,
    }
    result, found = checked(tmp_path, model={"kind": "checkpoint", "path": "someone/something", "expected": expected})
    assert found["memory"].outcome == "obstacle"
    assert "the learner runs on one process in this version" in found["memory"].detail
    assert result.passed(strict=False)
    assert not result.passed(strict=True)


def test_validate_dataset_offline_is_not_checked(tmp_path: Path) -> None:
    _, found = checked(tmp_path, task={"kind": "hub", "path": "openai/gsm8k", "config": "main"})
    assert found["task"].outcome == found["prompts"].outcome == "not checked"
    assert "hf download openai/gsm8k" in found["task"].detail


@pytest.mark.parametrize(
    ("changes", "name", "said"),
    [
        ({"task": {**TINY["task"], "dataset": "chain_som"}}, "task", "did you mean chain_sum?"),
        ({"reward": "samepath.rewards.exact:numbr"}, "reward", "numbr"),
        ({"cold_start": {"steps": 1, "traces": "samepath.rl.traces:nothing"}}, "cold start", "nothing"),
        ({"task": {**TINY["task"], "rewrite": {}}}, "prompts", "every character must be in the tokenizer's alphabet"),
        ({"task": {**TINY["task"], "chat": {"enabled": True}}}, "chat template", "it has none"),
        ({"sampling": {"max_new_tokens": 126}}, "prompts", "must fit the model's 128 positions"),
    ],
)
def test_validate_what_is_wrong_is_found_and_the_rest_still_checked(
    tmp_path: Path, changes: dict[str, Any], name: str, said: str
) -> None:
    result, found = checked(tmp_path, **changes)
    assert found[name].outcome == "wrong"
    assert said in found[name].detail
    assert found["memory"].outcome == "ok"
    assert not result.passed(strict=False)


def test_validate_command_ends_with_status_0_1_and_strict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write(tmp_path))
    assert command(monkeypatch, path, "--strict") == 0
    output = capsys.readouterr()
    assert yaml.safe_load(output.out)["name"] == "tiny"
    assert "valid: nothing was started" in output.err
    assert command(monkeypatch, path, "reward=samepath.rewards.exact:numbr", "--quiet") == 1
    output = capsys.readouterr()
    assert (output.out, "NOT VALID" in output.err) == ("", True)
    away = str(write(tmp_path, task={"kind": "hub", "path": "openai/gsm8k", "config": "main"}))
    assert (command(monkeypatch, away), command(monkeypatch, away, "--strict")) == (0, 1)
