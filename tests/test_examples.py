"""The example of a reward function of one's own really runs, and its documentation covers what the run writes."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run import start_run
from samepath.rl.tracking.jsonl import read_metrics, read_rollouts
from samepath.rl.tracking.tracked_rollout import TrackedRollout

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "own_reward"
SMALL = (
    "runtime=inline",
    "tracking.kind=jsonl",
    "cold_start.steps=5",
    "cold_start.dense_warmup_steps=2",
    "cold_start.batch_size=16",
    "rl.steps=2",
    "rl.prompts_per_step=4",
    "rl.group_size=4",
    "task.num_held_out=16",
    "evaluation.every=1",
    # So that every metric of the learner is reported.
    "learner.indexer=trained",
    "sampling.max_new_tokens=24",
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's recipe, started in its own folder as its README says, shortened."""
    runs_dir = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(EXAMPLE)
        recipe = load_recipe("recipe.yaml", [f"runs_dir={runs_dir}", *SMALL], Recipe)
        start_run(recipe, Path())
    return recipe.run_dir


@pytest.fixture(scope="module")
def rollouts(run_dir: Path) -> list[TrackedRollout]:
    """Every rollout of both steps."""
    return [rollout for path in sorted((run_dir / "rollouts").iterdir()) for rollout in read_rollouts(path)]


def test_own_reward_recipe_keeps_what_it_does_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLE)
    recipe = load_recipe("recipe.yaml", [], Recipe)
    base = load_recipe(ROOT / "recipes" / "quickstart.yaml", [], Recipe)
    assert recipe.model == base.model
    assert recipe.task == base.task
    assert list(recipe.reward.parts) == ["answer", "shown_work"], "evaluation looks at the first part"
    assert recipe.reward.parts["answer"].options == {"marker": "#"}


def test_own_reward_part_stands_in_every_kept_rollout(rollouts: list[TrackedRollout]) -> None:
    assert len(rollouts) == 2 * 4 * 4
    assert {rollout.reward_status for rollout in rollouts} == {"ok"}
    for rollout in rollouts:
        assert set(rollout.reward_parts) == {"answer", "shown_work"}
        steps = rollout.response_text.count("=")
        assert rollout.reward_parts["shown_work"] == pytest.approx(min(1.0, steps / 3))


def test_own_reward_total_is_the_weighted_sum(rollouts: list[TrackedRollout]) -> None:
    for rollout in rollouts:
        parts = rollout.reward_parts
        assert rollout.reward == pytest.approx(1.0 * parts["answer"] + 0.1 * parts["shown_work"])


def test_own_reward_run_reports_the_part_and_an_exact_path(run_dir: Path, rollouts: list[TrackedRollout]) -> None:
    steps = read_metrics(run_dir / "metrics.jsonl")
    mean = sum(rollout.reward_parts["shown_work"] for rollout in rollouts if rollout.step == 2) / 16
    assert steps[2]["reward/part.shown_work"] == pytest.approx(mean)
    assert json.loads((run_dir / "summary.json").read_text())["gap_at_lag_0"] == 0.0


def test_own_reward_script_scores_its_two_answers(capfd: pytest.CaptureFixture[str]) -> None:
    """`python examples/own_reward/own_reward.py`: full marks with the work shown, none for a wrong answer without it."""
    runpy.run_path(str(EXAMPLE / "own_reward.py"), run_name="__main__")
    right, wrong = capfd.readouterr().out.splitlines()
    assert "total=1.1" in right
    assert "total=0.0" in wrong


def test_algorithm_page_explains_every_metric_of_the_run(run_dir: Path) -> None:
    """Layer numbers and the user's own names are written as `NN` and `<…>` there."""
    page = (ROOT / "docs" / "algorithm.md").read_text(encoding="utf-8")
    documented = documented_metrics(page)
    seen = {name for values in read_metrics(run_dir / "metrics.jsonl").values() for name in values}
    assert len(seen) > 60
    assert "rollout/cache_share" in seen
    assert {"indexer/kl", "indexer/grad_norm", "cold_start/indexer_grad_norm"} <= seen
    assert sorted(name for name in seen if generic(name) not in documented) == []


def documented_metrics(page: str) -> set[str]:
    """Names in the first column of the page's metric tables, with endings such as `_p50 _p90` written out."""
    names: set[str] = set()
    for line in page.splitlines():
        if re.match(r"\| `[a-z_]+/", line):
            first, *endings = re.findall(r"`([^`]+)`", line.split("|")[1])
            names |= {first, *(ending if "/" in ending else first + ending for ending in endings)}
    return names


def generic(name: str) -> str:
    """A metric's name with its variable part as the page writes it."""
    name = re.sub(r"layer_\d+$", "layer_NN", name)
    name = re.sub(r"(?<=^conversation/problem\.).+$", "<problem>", name)
    return re.sub(r"(?<=^reward/part\.).+$", "<name>", name)


def test_documented_metrics_endings_are_added_to_the_first_name() -> None:
    page = "| `a/size` `_p50` `_max` `b/other` | x |\n| key | y |\n"
    found: Any = documented_metrics(page)
    assert found == {"a/size", "a/size_p50", "a/size_max", "b/other"}
