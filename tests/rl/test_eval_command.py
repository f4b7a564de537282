"""`samepath eval` on what a short run with two evaluation sets leaves, and what that run itself says of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from samepath.rewards.request import RewardRequest
from samepath.rl.cli import app
from samepath.rl.eval_command import result_table
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run import start_run
from samepath.rl.tracking.jsonl import read_metrics
from tests.rl.conftest import TINY

SETS = {
    "own": {"max_prompts": 3},
    "drawn": {
        "task": {"kind": "file", "path": "drawn.jsonl"},
        "num_samples": 5,
        "pass_at": [1, 5],
        "sampling": {"temperature": 1.0, "max_new_tokens": 4},
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(folder of a run of two steps, an epoch of 7 rows by 4 prompts; its recipe's file)."""
    folder = tmp_path_factory.mktemp("evaluated")
    rows = [{"question": f"{index}+1=", "answer": str(index + 1)} for index in range(2)]
    (folder / "drawn.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        **TINY,
        "runs_dir": str(folder / "runs"),
        "cold_start": {"steps": 0},
        "task": {**TINY["task"], "num_train": 7},
        "rl": {**{key: value for key, value in TINY["rl"].items() if key != "steps"}, "epochs": 1},
        "evaluation": {"sets": SETS, "full_reward": 0.0},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    start_run(load_recipe(folder / "recipe.yaml", [], Recipe), folder)
    return folder / "runs" / "tiny", str(folder / "recipe.yaml")


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def called(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["eval", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def as_json(*arguments: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(called(*arguments, "--json"), parse_constant=no_constant)
    return read


def test_run_logs_every_set_before_and_after_and_shows_them_in_its_summary(run: tuple[Path, str]) -> None:
    steps = read_metrics(run[0] / "metrics.jsonl")
    summary = json.loads((run[0] / "summary.json").read_text())
    for step in (0, 2):
        measured = steps[step]
        assert measured["eval/accuracy"] == measured["evaluation/own/accuracy"]
        assert measured["evaluation/drawn/pass_at_5"] >= measured["evaluation/drawn/pass_at_1"]
        assert measured["evaluation/drawn/pass_at_1"] == pytest.approx(measured["evaluation/drawn/accuracy"])
        assert measured["evaluation/drawn/length_mean"] <= 4 < TINY["sampling"]["max_new_tokens"]
    assert summary["sets"]["drawn"]["accuracy_before"] == round(steps[0]["evaluation/drawn/accuracy"], 4)
    assert summary["sets"]["drawn"]["accuracy"] == round(steps[2]["evaluation/drawn/accuracy"], 4)
    assert summary["held_out_responses"] == 3


def test_run_of_an_epoch_is_kept_as_one_of_steps(run: tuple[Path, str]) -> None:
    kept = load_recipe(run[0] / "recipe.yaml", [], Recipe).rl
    assert (kept.steps, kept.epochs) == (2, 0)
    assert json.loads((run[0] / "summary.json").read_text())["steps"] == 2


def test_eval_of_a_run_measures_what_the_run_measured_at_its_end(run: tuple[Path, str]) -> None:
    """The newest checkpoint, the same rows, seeds and sampling: the same numbers to the last bit."""
    steps, read = read_metrics(run[0] / "metrics.jsonl"), as_json(str(run[0]))
    assert (read["step"], Path(read["checkpoint"]).name) == (2, "step-000002")
    assert list(read["sets"]) == ["own", "drawn"]
    assert read["sets"]["drawn"]["scored"] == 10
    for name, values in read["sets"].items():
        for key in ("accuracy", "reward_mean", "length_mean", *(key for key in values if key.startswith("pass_at"))):
            assert values[key] == steps[2][f"evaluation/{name}/{key}"]


def test_eval_of_an_earlier_step_the_reference_one_set_and_other_settings(run: tuple[Path, str]) -> None:
    steps, folder = read_metrics(run[0] / "metrics.jsonl"), str(run[0])
    before = as_json(folder, "--step", "0", "--set", "drawn")
    assert list(before["sets"]) == ["drawn"]
    assert before["sets"]["drawn"]["reward_mean"] == steps[0]["evaluation/drawn/reward_mean"]
    assert as_json(folder, "--step", "1", "--set", "own")["step"] == 1
    changed = as_json(folder, "--set", "drawn", "evaluation.sets.drawn.num_samples=6")
    assert changed["sets"]["drawn"]["scored"] == 12
    inside = as_json(str(run[0] / "checkpoints" / "step-000001"), "--set", "own")
    assert (inside["step"], inside["sets"]) == (None, as_json(folder, "--step", "1", "--set", "own")["sets"])


def test_eval_of_a_checkpoint_outside_a_run_asks_for_a_recipe(run: tuple[Path, str], tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(run[0] / "checkpoints" / "step-000002", alone)
    with pytest.raises(FileNotFoundError, match="lies in no run.*--recipe"):
        called(str(alone))
    assert as_json(str(alone), "--recipe", run[1])["sets"] == as_json(str(run[0]))["sets"]


def test_eval_of_a_recipe_prints_its_short_json_as_before(run: tuple[Path, str]) -> None:
    checkpoint = run[0] / "checkpoints" / "step-000001"
    read = json.loads(called(run[1], "--checkpoint", str(checkpoint)), parse_constant=no_constant)
    assert {"checkpoint", "accuracy", "scored", "failed", "mean_length", "temperature"} <= set(read)
    assert (read["checkpoint"], read["scored"]) == (str(checkpoint), 3)
    assert json.loads(called(run[1]))["checkpoint"] == str(run[0] / "checkpoints" / "step-000002")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--step", "7"), "7"),
        (("--set", "drwan"), "drwan.*did you mean drawn"),
        (("--step", "1", "--checkpoint", "x"), "one of --checkpoint and --step"),
        (("--recipe", "x"), "is a run and has one"),
    ],
)
def test_eval_of_what_is_not_there_says_what_there_is(
    arguments: tuple[str, ...], said: str, run: tuple[Path, str]
) -> None:
    with pytest.raises((ValueError, RuntimeError, FileNotFoundError), match=said):
        called(str(run[0]), *arguments)


def fails(request: RewardRequest) -> float:
    """Never gives a reward."""
    raise ValueError(request.prompt_text)


def test_eval_without_a_usable_reward_says_null(run: tuple[Path, str]) -> None:
    broken = (
        "reward={parts: {fails: 'tests.rl.test_eval_command:fails'}, max_failed_share: 1, num_workers: 1}",
        f"reward.search_path={Path(__file__).resolve().parents[2]}",
    )
    read = as_json(str(run[0]), "--set", "own", *broken)["sets"]["own"]
    assert (read["accuracy"], read["reward_mean"], read["scored"], read["failed"]) == (None, None, 0, 3)


def test_eval_prints_a_table(run: tuple[Path, str]) -> None:
    shown = called(str(run[0]), "--set", "drawn")
    assert "drawn" in shown
    assert "step-000002" in shown


def test_result_table_has_a_line_for_each_pass_at_k_and_none_for_what_a_set_has_not() -> None:
    table = result_table({"a": {"accuracy": 0.5, "pass_at_4": 0.75}, "b": {"accuracy": None}})
    names, first, second = ([str(cell) for cell in column.cells] for column in table.columns)
    assert [str(column.header) for column in table.columns] == ["", "a", "b"]
    shown = dict(zip(names, zip(first, second, strict=True), strict=True))
    assert (shown["accuracy"], shown["pass@4"], shown["failed"]) == (
        ("0.5", "none"),
        ("0.75", "none"),
        ("none", "none"),
    )
    assert names[names.index("accuracy") + 1] == "pass@4"
