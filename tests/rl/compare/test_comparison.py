"""Runs beside each other: which differ in what, their figures and curves, and the same prompts answered by both."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from samepath.rl.cli import app
from samepath.rl.compare.comparison import Comparison, as_plain, compare
from samepath.rl.compare.page import group_line, write_comparison
from samepath.rl.compare.paired import paired_with_first
from samepath.rl.compare.runs import NoRunError, grouped, read_run
from samepath.rl.compare.tables import figure_rows, letter_of, missing_lines, paired_rows, run_rows
from samepath.rl.evaluation.outcomes import Outcomes, OutcomesError, read_outcomes, write_outcomes
from tests.rl.compare.made_runs import made_run


def curve(*rewards: float, accuracy: dict[int, float] | None = None) -> dict[int, dict[str, float]]:
    """Metrics of steps 1, 2, …, and accuracies by step."""
    steps = {step + 1: {"reward/mean": reward, "time/step_s": 2.0} for step, reward in enumerate(rewards)}
    for step, value in (accuracy or {}).items():
        steps.setdefault(step, {})["eval/accuracy"] = value
    return dict(sorted(steps.items()))


@pytest.fixture
def runs(tiny_recipe: Any) -> list[Path]:
    """Two learning rates with seeds 0 and 1; ten prompts. At the end the second rate answers 3 prompts more (seed 0) and 1 more (seed 1)."""
    made = []
    for lr, seed, rewards, right in (
        ("0.1", 0, (1.0, 2.0), {0: "0000000000", 2: "1110000000"}),
        ("0.1", 1, (3.0, 4.0), {0: "0000000000", 2: "1111000000"}),
        ("0.2", 0, (1.0, 6.0), {0: "0000000000", 2: "1111110000"}),
        ("0.2", 1, (1.0, 8.0), {0: "0000000000", 2: "1110100001"}),
    ):
        recipe = tiny_recipe("rl.steps=2", f"optimizer.lr={lr}", f"seed={seed}", f"name=lr{lr}-{seed}")
        accuracy = {step: marks.count("1") / 10 for step, marks in right.items()}
        made.append(made_run(recipe, curve(*rewards, accuracy=accuracy), right))
    return made


def test_runs_that_differ_in_their_seed_alone_are_one_configuration_named_by_what_differs(runs: list[Path]) -> None:
    comparison = compare(runs)
    assert [(group.title, [run.seed for run in group.runs]) for group in comparison.groups] == [
        ("optimizer.lr=0.1", [0, 1]),
        ("optimizer.lr=0.2", [0, 1]),
    ]
    assert comparison.settings == [("optimizer.lr", ["0.1", "0.2"])]
    assert compare(runs[:2]).settings == []


def test_configurations_that_differ_in_much_are_named_by_their_first_run(tiny_recipe: Any) -> None:
    one = made_run(tiny_recipe("name=a", "evaluation.every=2"), {})
    two = made_run(tiny_recipe("name=b", "sampling.stop_strings=['####', '----', '====', '....', '++++', '[red]']"), {})
    comparison = compare([one, two])
    assert [group.title for group in comparison.groups] == ["a", "b"]
    assert [name for name, _ in comparison.settings] == ["sampling.stop_strings", "evaluation.every"]
    assert comparison.settings[0][1][0] == "[]"


def test_settings_that_change_no_step_tell_no_runs_apart(tiny_recipe: Any) -> None:
    kept = ("tracking.log_every=2", "alerts.no_spread_steps=9", "checkpoint.keep=1", "reward.num_workers=2")
    one, two = made_run(tiny_recipe("name=a"), {}), made_run(tiny_recipe("name=b", "seed=1", *kept), {})
    comparison = compare([one, two])
    assert [len(group.runs) for group in comparison.groups] == [2]
    assert comparison.settings == []


def test_figures_are_first_last_best_and_means_of_the_last_tenth(runs: list[Path], tiny_recipe: Any) -> None:
    figures = compare(runs).figures[0].values
    assert figures["accuracy, last"] is not None
    assert figures["accuracy, last"].mean == pytest.approx(0.35)
    assert figures["reward"] is not None
    assert figures["reward"].mean == 3.0, "the last step of two, of each run"
    assert figures["entropy"] is None
    long = made_run(
        tiny_recipe("name=long"), curve(*range(30), accuracy={0: 0.2, 10: 0.7, 20: 0.7, 30: math.nan, 31: 0.4})
    )
    run = read_run(long)
    assert run.best == (10, 0.7)
    assert run.late("reward/mean") == 28.0, "steps 28, 29 and 30"
    assert run.done == 30
    (row,) = [cells for name, cells in figure_rows(compare(runs)) if name == "reward"]
    assert row[0].startswith("3 ± ")


def test_paired_difference_is_by_prompt_over_the_runs_of_each_side(runs: list[Path]) -> None:
    """Prompts 4, 5, 6, 10 gain 1, ½, ½, ½; prompt 4 (index 3) of seed 1 loses: mean shares worked by hand."""
    final, best = paired_with_first(compare(runs).groups)
    assert (final.when, best.when, final.prompts) == ("final", "best", 10)
    before = [1, 1, 1, 0.5, 0, 0, 0, 0, 0, 0]
    after = [1, 1, 1, 0.5, 1, 0.5, 0, 0, 0, 0.5]
    assert final.accuracies == (sum(before) / 10, sum(after) / 10)
    assert final.over_prompts is not None
    assert final.over_prompts.mean == pytest.approx(0.2)
    assert (final.better, final.worse, final.sign_p) == (3, 0, 0.25)
    assert final.over_seeds is not None
    assert (final.over_seeds.mean, final.over_seeds.count) == (pytest.approx(0.2), 2)
    # Paired by seed: differences 0.3 and 0.1, deviation 0.1·√2, t of one degree of freedom.
    assert final.over_seeds.high - 0.2 == pytest.approx(12.7062 * 0.1, rel=1e-4)


def test_paired_by_prompt_and_not_by_place(tiny_recipe: Any) -> None:
    """The second run asks the same prompts in another order, and others too."""
    one = made_run(tiny_recipe("name=a", "rl.steps=1"), curve(1.0, accuracy={1: 0.5}))
    two = made_run(tiny_recipe("name=b", "rl.steps=2"), curve(1.0, accuracy={1: 0.5}))
    write_outcomes(
        one,
        1,
        {
            "": Outcomes(
                prompts=("x", "y", "x", "w", "d", "d"),
                scored=(2, 2, 0, 1, 1, 1),
                right=(2, 0, 0, 1, 1, 0),
                rewards=(1, 0, math.nan, 1, 1, 0),
            )
        },
    )
    write_outcomes(
        two,
        1,
        {
            "": Outcomes(
                prompts=("z", "d", "y", "x", "d"),
                scored=(2, 1, 2, 2, 1),
                right=(0, 1, 1, 2, 0),
                rewards=(0, 1, 0.5, 1, 0),
            )
        },
    )
    final, _ = paired_with_first(compare([one, two]).groups)
    assert final.prompts == 4, "x, y, and d twice: the first of equal ones with the first"
    assert final.accuracies == (0.5, 0.625)
    assert (final.better, final.worse) == (1, 0)
    assert final.over_seeds is None, "one run a side says nothing of seeds"


def test_best_is_the_evaluation_with_the_highest_accuracy_of_each_run(tiny_recipe: Any) -> None:
    one = made_run(
        tiny_recipe("name=a", "rl.steps=1"),
        curve(1.0, 1.0, accuracy={0: 0.0, 1: 1.0, 2: 0.5}),
        {0: "00", 1: "11", 2: "01"},
    )
    two = made_run(tiny_recipe("name=b", "rl.steps=2"), curve(1.0, accuracy={1: 0.5}), {1: "10"})
    final, best = paired_with_first(compare([one, two]).groups)
    assert (final.accuracies, best.accuracies) == ((0.5, 0.5), (1.0, 0.5))


def test_runs_without_outcomes_are_said_to_have_none(runs: list[Path], tiny_recipe: Any) -> None:
    old = made_run(tiny_recipe("name=old", "rl.steps=5"), curve(1.0, accuracy={0: 0.1}))
    comparison = compare([runs[0], old])
    assert paired_rows(comparison) == []
    assert all("no outcomes of single prompts are kept of old" in line for line in missing_lines(comparison))


def test_line_of_a_group_is_the_mean_and_its_band_goes_from_lowest_to_highest(runs: list[Path]) -> None:
    group = grouped([read_run(run) for run in runs])[0]
    line = group_line(group, "reward/mean")
    assert line is not None
    assert list(line.points) == [(1, 2.0), (2, 3.0)]
    assert list(line.band) == [(1, 1.0, 3.0), (2, 2.0, 4.0)]
    assert line.label == "optimizer.lr=0.1 (2 seeds)" or line.label.endswith("(2 seeds)")
    assert group_line(group, "policy/entropy") is None


def comparison_of(runs: list[Path]) -> Comparison:
    return compare(runs)


def test_page_holds_everything_and_asks_for_nothing_from_outside(runs: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "compare.html"
    write_comparison(comparison_of(runs), path)
    text = path.read_text()
    assert "optimizer.lr=0.2" in text
    assert text.count("data:image/svg+xml;base64,") == 3, "accuracy, reward, seconds"
    assert "share of scored held-out responses that are right" in text
    assert "http" not in text.replace("http-equiv", "")
    assert "<script" not in text


def test_text_of_a_recipe_is_data_on_the_page(tiny_recipe: Any, tmp_path: Path) -> None:
    one = made_run(tiny_recipe("name=a"), curve(1.0))
    two = made_run(tiny_recipe("name=b", "sampling.stop_strings=['<img src=x>']"), curve(1.0))
    write_comparison(compare([one, two]), tmp_path / "compare.html")
    text = (tmp_path / "compare.html").read_text()
    assert "<img src=x>" not in text
    assert "&lt;img src=x&gt;" in text


def called(*words: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.stdout


def test_command_prints_tables_or_json_and_writes_the_page_beside_the_runs(runs: list[Path], tmp_path: Path) -> None:
    shown = called("compare", *map(str, runs))
    assert "Settings that differ" in shown
    page = runs[0].parent / "compare.html"
    assert page.is_file()
    out = tmp_path / "other.html"
    read = json.loads(
        called("compare", *map(str, runs), "--json", "--out", str(out)),
        parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
    )
    assert out.is_file()
    assert [one["title"] for one in read["configurations"]] == ["optimizer.lr=0.1", "optimizer.lr=0.2"]
    assert read["configurations"][1]["settings"] == {"optimizer.lr": "0.2"}
    assert read["paired"][0]["over_prompts"]["mean"] == pytest.approx(0.2)
    assert read["runs"][0]["figures"]["entropy"] is None
    assert as_plain(compare(runs))["runs"] == read["runs"]


def test_run_that_is_not_finished_is_said_to_be_so_with_the_alerts_that_hold(tiny_recipe: Any) -> None:
    one = made_run(tiny_recipe("name=a", "rl.steps=5"), curve(1.0), phase="training", alerts={"no_spread": 3})
    two = made_run(tiny_recipe("name=b", "rl.steps=1"), curve(1.0))
    rows = run_rows(compare([one, two]))
    assert [(row["state"], row["done"], row["alerts"]) for row in rows] == [
        ("not finished (training)", "1", "no_spread"),
        ("finished", "1", "none"),
    ]
    read = json.loads(called("compare", str(one), str(two), "--json"))
    assert [(run["state"], run["alerts"]) for run in read["runs"]] == [("training", {"no_spread": 3}), ("finished", {})]


def test_command_refuses_one_run_and_what_is_no_run(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two runs or more"):
        called("compare", str(runs[0]), str(runs[0]))
    with pytest.raises(NoRunError, match="needs folders of runs"):
        called("compare", str(runs[0]), str(tmp_path))


def test_outcomes_come_back_as_they_were_written_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    one = Outcomes(prompts=("a", "b"), scored=(4, 0), right=(3, 0), rewards=(0.5, math.nan))
    write_outcomes(tmp_path, 7, {"aime": one})
    path = tmp_path / "evaluations" / "step-000007.json"
    read = read_outcomes(path)["aime"]
    assert (read.prompts, read.scored, read.right, read.rewards[0]) == (one.prompts, one.scored, one.right, 0.5)
    assert math.isnan(read.rewards[1])
    path.write_text(path.read_text()[:20])
    with pytest.raises(OutcomesError, match="step-000007"):
        read_outcomes(path)
    write_outcomes(tmp_path, 8, {"": Outcomes()})
    assert not (tmp_path / "evaluations" / "step-000008.json").exists()


@pytest.mark.parametrize(("place", "letter"), [(0, "A"), (25, "Z"), (26, "AA"), (52, "BA")])
def test_letters_of_configurations(place: int, letter: str) -> None:
    assert letter_of(place) == letter
