"""The end of a run: the numbers of `summary.json`, and files that are there when they are claimed."""

import io
import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from samepath.rl.evaluation.held_out import Evaluation, Evaluations
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.report.summary import show_interruption, write_summary
from samepath.rl.run_state import RunState
from samepath.rl.tracking.jsonl import JsonlSink
from samepath.rl.tracking.sink import Sink
from samepath.rl.tracking.tracked_rollout import TrackedRollout
from samepath.rl.tracking.tracker import Tracker

MEASURED = Evaluation(accuracy=0.876543, num_scored=31, num_failed=1, mean_length=3.0, groups=())
AFTER = Evaluations(sets={"": MEASURED})


class Shelf(Sink):
    """Takes files, which must be there."""

    def __init__(self) -> None:
        self.files: list[Path] = []

    def log_artifact(self, path: Path) -> None:
        assert path.is_file()
        self.files.append(path)

    def links(self) -> dict[str, str]:
        return {"charts": "http://127.0.0.1:5000/#/charts"}


def state(**changes: Any) -> RunState:
    values = {
        "run_id": "r1",
        "accuracy_before": 0.123456,
        "gap_at_lag_0": 0.0,
        "seconds": 61.26,
        "peak_bytes": 1.5 * 2**30,
        "alerts": {"truncated": 3},
    }
    return RunState(**{**values, "counters": {"reward/status.timeout": 2.0}, **changes})


def folder(recipe: Recipe, metrics: dict[str, float]) -> Path:
    """The run's folder after one step, with one rollout where there was training."""
    sink = JsonlSink(recipe.run_dir)
    sink.log_metrics(1, metrics)
    if recipe.rl.steps:
        one = TrackedRollout(
            step=1, group_id="s1-g0", sample_index=0, prompt_text="1+2=", response_text="3", reward=1.0
        )
        sink.log_rollouts(1, [one])
    return recipe.run_dir


def test_summary_keeps_the_file_of_alerts_where_there_is_one(tiny_recipe) -> None:
    recipe, shelf = tiny_recipe(), Shelf()
    (folder(recipe, {"reward/mean": 0.5}) / "alerts.jsonl").write_text("{}\n")
    write_summary(recipe, state(), AFTER, Tracker([shelf]))
    assert shelf.files[-1].name == "alerts.jsonl"


def read_strictly(path: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    read: dict[str, Any] = json.loads(path.read_text(), parse_constant=refuse)
    return read


def test_summary_has_the_runs_numbers_and_its_files_are_there(tiny_recipe, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, shelf = tiny_recipe("evaluation.temperature=0.5", "evaluation.top_p=0.9", "seed=7"), Shelf()
    run_dir = folder(recipe, {"reward/mean": 0.5, "eval/accuracy": 0.25})
    returned = write_summary(recipe, state(), AFTER, Tracker([shelf]))
    assert (
        read_strictly(run_dir / "summary.json")
        == returned
        == {
            "name": "tiny",
            "seed": 7,
            "runtime": "inline",
            "accuracy_before": 0.1235,
            "accuracy_after": 0.8765,
            "held_out_responses": 31,
            "evaluation_temperature": 0.5,
            "evaluation_top_p": 0.9,
            "gap_at_lag_0": 0.0,
            "steps": 3,
            "seconds": 61.3,
            "peak_memory_gib": 1.5,
            "mlflow_run_id": "r1",
            "failures": {"reward/status.timeout": 2.0},
            "alerts": {"truncated": 3},
        }
    )
    assert [path.relative_to(run_dir).as_posix() for path in shelf.files] == [
        "training.png", "report.html", "summary.json", "rollouts.html",
    ]  # fmt: skip
    assert (run_dir / "training.png").read_bytes().startswith(b"\x89PNG")
    assert "s1-g0" in (run_dir / "rollouts.html").read_text()
    *table, picture, report, numbers, page, charts, more = capsys.readouterr().out.splitlines()
    assert any("0.877" in line or "0.876" in line for line in table)
    # A line each, of any length: no table may cut them.
    assert [picture, report, numbers, page] == [
        str(run_dir / name) for name in ("training.png", "report.html", "summary.json", "rollouts.html")
    ]
    assert charts == "MLflow charts: http://127.0.0.1:5000/#/charts"
    assert more == f"for more steps: samepath resume {run_dir} rl.steps=6"


def test_summary_of_a_rate_that_falls_over_all_steps_offers_no_more_of_them(tiny_recipe, capsys) -> None:
    recipe = tiny_recipe("optimizer.schedule=cosine")
    folder(recipe, {"reward/mean": 0.5})
    write_summary(recipe, state(), AFTER, Tracker([]))
    assert "rl.steps" not in capsys.readouterr().out


def test_summary_shows_every_set_and_says_none_where_nothing_was_measured(
    tiny_recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe("evaluation.sets={easy: {sampling: {temperature: 0.6}}, hard: {}}")
    run_dir = folder(recipe, {"reward/mean": 0.5})
    nothing = Evaluation(accuracy=math.nan, num_scored=0, num_failed=8, mean_length=0.0, groups=())
    easy = replace(MEASURED, mean_reward=0.51236, truncated=0.25, pass_at={4: 0.95})
    after = Evaluations(sets={"easy": easy, "hard": nothing})
    write_summary(recipe, state(sets_before={"easy": 0.25, "hard": math.nan}), after, Tracker([]))
    read = read_strictly(run_dir / "summary.json")
    assert (read["accuracy_after"], read["evaluation_temperature"]) == (0.8765, 0.6)
    assert read["sets"]["easy"] == {
        "accuracy_before": 0.25, "accuracy": 0.8765, "reward_mean": 0.5124, "pass_at_4": 0.95, "failed": 1.0,
        "length_mean": 3.0, "truncated": 0.25,
    }  # fmt: skip
    assert [read["sets"]["hard"][name] for name in ("accuracy_before", "accuracy", "reward_mean")] == [None] * 3
    table = " ".join(capsys.readouterr().out.split())
    assert "nan" not in table
    assert "on easy" in table
    assert "pass_at_4 0.95" in table.replace("│", "").replace("  ", " ")


def test_summary_of_a_gpu_run_has_its_memory_too(tiny_recipe) -> None:
    recipe = tiny_recipe()
    folder(recipe, {"reward/mean": 0.5})
    assert write_summary(recipe, state(gpu_peak_bytes=2.25 * 2**30), AFTER, Tracker([]))["peak_gpu_memory_gib"] == 2.25


def test_summary_without_a_scored_answer_is_strict_json(tiny_recipe) -> None:
    recipe = tiny_recipe()
    run_dir = folder(recipe, {"rollout/length_mean": 2.0, "reward/mean": math.nan})
    nothing = Evaluation(accuracy=math.nan, num_scored=0, num_failed=8, mean_length=0.0, groups=())
    odd = state(accuracy_before=math.nan, gap_at_lag_0=math.inf, counters={"reward/status.error": math.nan})
    write_summary(recipe, odd, Evaluations(sets={"": nothing}), Tracker([]))
    read = read_strictly(run_dir / "summary.json")
    assert [read[name] for name in ("accuracy_before", "accuracy_after", "gap_at_lag_0")] == [None, None, None]
    assert read["failures"] == {"reward/status.error": None}
    assert read["held_out_responses"] == 0


def test_summary_without_training_claims_no_rollout_page(tiny_recipe, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, shelf = tiny_recipe("rl.steps=0"), Shelf()
    run_dir = folder(recipe, {"eval/accuracy": 0.25})
    write_summary(recipe, state(), AFTER, Tracker([shelf]))
    assert [path.name for path in shelf.files] == ["training.png", "report.html", "summary.json"]
    assert not (run_dir / "rollouts.html").exists()
    assert "rollouts.html" not in capsys.readouterr().out


def test_summary_of_a_run_with_nothing_to_draw_has_no_picture_and_says_so(
    tiny_recipe, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, shelf = tiny_recipe("rl.steps=0"), Shelf()
    run_dir = folder(recipe, {"eval/accuracy": math.nan})
    with caplog.at_level(logging.WARNING, "samepath.report"):
        write_summary(recipe, state(), AFTER, Tracker([shelf]))
    assert [path.name for path in shelf.files] == ["report.html", "summary.json"]
    assert not (run_dir / "training.png").exists()
    assert "no picture" in caplog.text


def said_on_interruption(recipe: Recipe, *, charts: bool = False) -> list[str]:
    output = Console(file=io.StringIO(), width=40)
    show_interruption(
        recipe, state(), {"charts": "http://127.0.0.1:5000/#/experiments/1/charts"} if charts else {}, output
    )
    return output.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


def test_interruption_leaves_picture_and_page_and_says_how_to_go_on(tiny_recipe, tmp_path: Path) -> None:
    recipe = tiny_recipe(f"runs_dir={tmp_path / 'two words'}")
    run_dir = folder(recipe, {"reward/mean": 0.5})
    assert said_on_interruption(recipe, charts=True) == [
        f"{run_dir}/training.png",
        f"{run_dir}/report.html",
        f"{run_dir}/rollouts.html",
        "MLflow charts: http://127.0.0.1:5000/#/experiments/1/charts",
        f"go on with: samepath resume '{run_dir}'",
    ]
    assert (run_dir / "training.png").read_bytes().startswith(b"\x89PNG")
    assert "s1-g0" in (run_dir / "rollouts.html").read_text()


def test_interruption_before_anything_was_measured_says_only_how_to_go_on(tiny_recipe) -> None:
    recipe = tiny_recipe()
    recipe.run_dir.mkdir(parents=True)
    assert said_on_interruption(recipe) == [f"go on with: samepath resume {recipe.run_dir}"]
    assert list(recipe.run_dir.iterdir()) == []
