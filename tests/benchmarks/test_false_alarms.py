"""What counts as an alarm, and settings that load."""

from pathlib import Path

import pytest

from benchmarks import false_alarms
from benchmarks.false_alarms import RECIPE, SETTINGS, SMALL, alarms_of, counted
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from tests.rl.alerts.folders import Attempt
from tests.rl.alerts.series import HEALTHY, Changes


@pytest.mark.parametrize("settings", SETTINGS, ids=" ".join)
def test_settings_load(settings: tuple[str, ...]) -> None:
    assert load_recipe(RECIPE, [*SMALL, *settings], Recipe).runtime == "inline"


def recipe_at(folder: Path, name: str) -> Recipe:
    return load_recipe(RECIPE, [*SMALL, f"runs_dir={folder}", f"name={name}", "rl.steps=3"], Recipe)


def made(folder: Path, name: str, changes: Changes) -> Path:
    healthy = {"rollout/count": 64.0, "reward/status.ok": 64.0, "rollout/length_max": 32.0, "learner/lr": 1e-5}
    own: Changes = {**healthy, "learner/updates": 2.0, **changes}
    return Attempt(recipe_at(folder, name)).steps(range(1, 4), lambda step: own).ended("FINISHED")


def test_alarms_are_what_was_said_and_what_is_found_each_once(tmp_path: Path) -> None:
    assert alarms_of(made(tmp_path, "clean", {})) == []
    run_dir = made(tmp_path, "sick", {"rollout/truncated": 1.0})
    assert [rule for rule, _ in alarms_of(run_dir)] == ["truncated"]
    (run_dir / "alerts.jsonl").unlink()
    assert [rule for rule, _ in alarms_of(run_dir)] == ["truncated"]
    assert HEALTHY["rollout/truncated"] == 0.1


def test_counted_runs_each_seed_with_the_next_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(folder: Path, name: str, seed: int, steps: int, settings: tuple[str, ...]) -> Path:
        asked.append((seed, settings))
        return made(folder, name, {"rollout/truncated": float(seed == 8)})

    monkeypatch.setattr(false_alarms, "clean_run", run)
    result = counted(tmp_path, 3, 30, first_seed=7)
    assert asked == [(7 + number, SETTINGS[number]) for number in range(3)]
    assert (result["runs"], result["runs with an alarm"]) == (3, 1)
    assert result["alarms by rule"] == {"truncated": 1}
