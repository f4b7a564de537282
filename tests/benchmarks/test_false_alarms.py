"""What counts as an alarm, settings that load, rows that are sums, and runs that are made once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import false_alarms
from benchmarks.false_alarms import (
    NUM_ROWS,
    RECIPE,
    ROWS,
    SETTINGS,
    TERMS,
    CleanRun,
    alarms_of,
    counted,
    write_rows,
)
from samepath.rl.learner.worked_answers import arithmetic_sum
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.tasks.tasks import build_task
from tests.rl.alerts.folders import Attempt
from tests.rl.alerts.series import HEALTHY, Changes


def clean(folder: Path, number: int = 0, first_seed: int = 0) -> CleanRun:
    return CleanRun(folder=folder, number=number, seed=first_seed + number, steps=3)


def runs(folder: Path, count: int) -> list[CleanRun]:
    return [clean(folder, number, 7) for number in range(count)]


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_settings_load(tmp_path: Path, number: int) -> None:
    recipe = load_recipe(RECIPE, clean(tmp_path, number).overrides, Recipe)
    assert (recipe.runtime, recipe.seed, recipe.rl.steps, recipe.run_dir.parent) == ("inline", number, 3, tmp_path)


def test_names_tell_seeds_settings_and_steps_apart(tmp_path: Path) -> None:
    first = clean(tmp_path)
    others = [replace(first, seed=1), replace(first, number=1), replace(first, steps=4), first]
    assert len({one.name for one in others}) == 4


def test_rows_are_right_sums_that_fit_when_worked(tmp_path: Path) -> None:
    write_rows(tmp_path / ROWS)
    recipe = load_recipe(RECIPE, clean(tmp_path).overrides, Recipe)
    task = build_task(recipe.task, tmp_path)
    assert len(task.held_out) == 64
    assert len(task.train) > NUM_ROWS / 2
    longest = 0
    for row in [*task.train, *task.held_out]:
        worked = arithmetic_sum(row, false_alarms.random.Random(0), direct_share=0.0)
        assert worked.partition("#")[2] == row.answer["answer"]
        assert worked.count(";") == TERMS - 1
        longest = max(longest, len(worked))
    assert longest < recipe.sampling.max_new_tokens


def made_of(run: CleanRun, changes: Changes) -> Path:
    write_rows(run.folder / ROWS)
    healthy = {"rollout/count": 64.0, "reward/status.ok": 64.0, "rollout/length_max": 32.0, "learner/lr": 1e-5}
    own: Changes = {**healthy, "learner/updates": 2.0, **changes}
    recipe = load_recipe(RECIPE, [*run.overrides, *(["rl.updates_per_rollout=2"])], Recipe)
    folder = Attempt(recipe).steps(range(1, 4), lambda step: own).ended("FINISHED")
    (folder / "summary.json").write_text("{}")
    return folder


def test_alarms_are_what_was_said_and_what_is_found_each_once(tmp_path: Path) -> None:
    assert alarms_of(made_of(clean(tmp_path), {})) == []
    run_dir = made_of(clean(tmp_path, first_seed=1), {"rollout/truncated": 1.0})
    assert [rule for rule, _ in alarms_of(run_dir)] == ["truncated"]
    (run_dir / "alerts.jsonl").unlink()
    assert [rule for rule, _ in alarms_of(run_dir)] == ["truncated"]
    assert HEALTHY["rollout/truncated"] == 0.1


def test_counted_makes_each_run_once_and_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, tuple[str, ...]]] = []

    def make(run: CleanRun) -> str:
        asked.append((run.seed, run.settings))
        made_of(run, {"rollout/truncated": float(run.seed == 8)})
        return "it broke" if run.seed == 9 else ""

    monkeypatch.setattr(false_alarms, "made", make)
    result = counted(runs(tmp_path, 4), 1, minutes=5)
    assert asked == [(7 + number, SETTINGS[number]) for number in range(4)]
    assert (result["runs"], result["runs with an alarm"], result["not begun"]) == (3, 1, 0)
    assert result["alarms by rule"] == {"truncated": 1}
    assert list(result["failed"].values()) == ["it broke"]
    (runs(tmp_path, 1)[0].run_dir / "summary.json").unlink()
    counted(runs(tmp_path, 2), 1, minutes=5)
    assert [seed for seed, _ in asked[4:]] == [7]


def test_counted_begins_nothing_after_its_minutes_but_counts_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_of(clean(tmp_path, 1, 7), {})
    monkeypatch.setattr(false_alarms, "made", lambda run: pytest.fail("begun"))
    result = counted(runs(tmp_path, 3), 1, minutes=-1)
    assert (result["runs"], result["not begun"]) == (1, 2)


def test_counted_gives_each_of_those_side_by_side_a_core_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: list[set[int]] = []
    local = false_alarms.os
    monkeypatch.setattr(local, "sched_getaffinity", lambda pid: {4, 5, 6})
    monkeypatch.setattr(local, "sched_setaffinity", lambda pid, cores: pinned.append(cores))
    monkeypatch.setattr(false_alarms, "made", lambda run: "not made")
    counted(runs(tmp_path, 30), 2, minutes=5)
    assert sorted(map(tuple, pinned)) == [(4,), (5,)][: len(pinned)]


def test_made_runs_in_a_process_with_one_thread_and_says_why_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {}

    def run(command: list[str], env: dict[str, str], **options: object) -> object:
        given.update(command=command, threads=(env["OMP_NUM_THREADS"], env["MKL_NUM_THREADS"]))
        return false_alarms.subprocess.CompletedProcess(command, 1, "", "no room")

    monkeypatch.setattr(false_alarms.subprocess, "run", run)
    one = clean(tmp_path, 3, 7)
    one.run_dir.mkdir()
    assert false_alarms.made(one) == "no room"
    assert not one.run_dir.exists()
    assert given["threads"] == ("1", "1")
    assert given["command"][3:] == [str(tmp_path), "--alone", "3", "--first-seed", "7", "--steps", "3"]
    assert json.dumps(one.overrides)
