"""The ablation study's arms reach the settings that they name, and its measures are those that were fixed."""

import json
from pathlib import Path

import pytest
import yaml

from benchmarks import side_by_side
from benchmarks.ablations import STABILISERS, arms, grid, planned, write_regime
from benchmarks.ablations_report import ArmRuns, outcome, table, write_report
from benchmarks.process import BenchError
from benchmarks.side_by_side import Planned, SideBySide
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe


def recipe_of(one: Planned) -> Recipe:
    return load_recipe(one.arguments[0], one.arguments[1:], Recipe)


def test_every_arm_is_a_recipe_that_differs_from_the_first_where_it_says(tmp_path: Path) -> None:
    chosen = arms()
    recipes = {arm.name: recipe_of(one) for arm, one in zip(chosen, planned(tmp_path, tmp_path, chosen, [3], []))}
    switches = {
        name: (
            recipe.rl.objective.kl.estimator,
            recipe.rl.objective.off_policy_mask.enabled,
            recipe.rl.keep_routing,
            recipe.rl.keep_sampling_mask,
        )
        for name, recipe in recipes.items()
    }
    full, nothing = ("unbiased", True, "sampler", "on"), ("k3", False, "off", "off")
    assert switches["all"] == full
    for place, name in enumerate(STABILISERS):
        assert switches[f"without {name}"] == (*full[:place], nothing[place], *full[place + 1 :])
        assert switches[f"only {name}"] == (*nothing[:place], full[place], *nothing[place + 1 :])
    assert {switches[name] for name in ("none", "GSPO", "CISPO", "TIS", "IcePop")} == {nothing}
    objective = {name: recipe.rl.objective for name, recipe in recipes.items()}
    assert (objective["GSPO"].surrogate, objective["GSPO"].clip_low) == ("gspo", 3e-4)
    assert (objective["CISPO"].surrogate, objective["CISPO"].clip_high) == ("cispo", 4)
    assert (objective["TIS"].old_policy, objective["TIS"].importance.mode) == ("learner", "truncated")
    assert objective["IcePop"].importance.mode == "banded"
    assert {(one.seed, one.engine.dtype, one.rl.updates_per_rollout) for one in recipes.values()} == {
        (3, "bfloat16", 16)
    }


def test_grid_has_every_combination_once(tmp_path: Path) -> None:
    chosen = grid([2, 8])
    assert (
        len({arm.name for arm in chosen})
        == len({arm.folder for arm in chosen})
        == len({arm.overrides for arm in chosen})
        == 32
    )
    one = next(place for place, arm in enumerate(chosen) if arm.name == "MS 8 updates")
    recipe = recipe_of(planned(tmp_path, tmp_path, chosen, [0], [])[one])
    assert recipe.rl.objective.off_policy_mask.enabled
    assert recipe.rl.updates_per_rollout == 8
    assert (recipe.rl.keep_routing, recipe.rl.keep_sampling_mask) == ("off", "on")


def test_regime_keeps_the_quickstart_otherwise(tmp_path: Path) -> None:
    recipe = yaml.safe_load(write_regime(tmp_path).read_text())
    quickstart = yaml.safe_load(side_by_side.RECIPE.read_text())
    assert recipe["reward"] == quickstart["reward"]
    assert recipe["sampling"] == quickstart["sampling"] | {"top_p": 0.9}
    assert "cold_start" not in recipe


def test_measures_by_hand() -> None:
    rising = outcome({0: 0.1, 5: 0.4, 10: 0.8, 15: 0.78}, 15)
    assert rising.held
    assert (rising.before, rising.best, rising.last) == (0.1, 0.8, 0.78)
    assert rising.area == pytest.approx(((0.4 + 0.8) / 2 + (0.8 + 0.78) / 2) / 2)
    falling = outcome({0: 0.1, 5: 0.8, 10: 0.75}, 10)
    assert not falling.held
    # Its last accuracy is its best one, but it ended too soon: 0 from the next step to the 20th.
    dead = outcome({0: 0.1, 5: 0.4, 10: 0.8}, 20)
    assert not dead.held
    assert dead.area == pytest.approx((0.6 * 5 + 0.4 * 1) / 15)
    with pytest.raises(ValueError, match=r"got accuracies of steps \[0\]"):
        outcome({0: 0.1}, 10)


def write_run(folder: Path, accuracies: list[float]) -> Path:
    folder.mkdir(parents=True)
    lines = [
        {"time": "2026-01-01T00:00:00Z", "step": 5 * place, "metrics": {"eval/accuracy": value, "policy/entropy": 0.1}}
        for place, value in enumerate(accuracies)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_report_pairs_arms_by_seed_and_keeps_every_curve(tmp_path: Path) -> None:
    runs = [
        ArmRuns(
            name="all",
            folders=(write_run(tmp_path / "a0", [0.1, 0.5, 0.9]), write_run(tmp_path / "a1", [0.1, 0.4, 0.6])),
        ),
        ArmRuns(
            name="none",
            folders=(write_run(tmp_path / "n0", [0.1, 0.5, 0.3]), write_run(tmp_path / "n1", [0.1, 0.2, 0.6])),
        ),
    ]
    *_, last = write_report(runs, tmp_path / "out", "arms").splitlines()
    assert last == table(runs).splitlines()[-1]
    cells = [cell.strip() for cell in last.split("|")[1:6]]
    assert cells[:2] == ["none", "1 of 2"]
    assert cells[3].startswith("-0.20 (")
    assert cells[4] == "0.50 → 0.30, 0.60 → 0.60"
    curves = json.loads((tmp_path / "out" / "ablation_arms.json").read_text())
    assert curves["none"][1] == {"0": 0.1, "5": 0.2, "10": 0.6}
    assert (tmp_path / "out" / "ablation_arms.png").stat().st_size > 5000


def test_runs_side_by_side_skip_what_is_done_and_name_what_failed(tmp_path: Path) -> None:
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "summary.json").write_text("{}")
    (tmp_path / "begun").mkdir()
    side = SideBySide(folder=tmp_path, at_once=1, cores=1)
    side.run([Planned(name="done", arguments=("nowhere.yaml",))])
    with pytest.raises(BenchError, match=r"begun is there and not finished"):
        side.run([Planned(name="begun", arguments=("nowhere.yaml",))])
    with pytest.raises(BenchError, match=r"missing ended with \d"):
        side.run([Planned(name="missing", arguments=("nowhere.yaml",))])
    assert "nowhere.yaml" in (tmp_path / "missing.log").read_text()
    assert SideBySide(folder=tmp_path, at_once=10_000, cores=1).problem().startswith("--at-once 10000 needs")
