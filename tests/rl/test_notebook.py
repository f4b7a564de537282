"""Runs from Python: recipes from data and files, arrays and tables of a run, and the example notebook, which really runs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from samepath.rl.notebook import Run, recipe_from, train
from samepath.rl.recipe.node import RecipeError
from samepath.rl.run_state import RunStateError
from tests.rl.conftest import TINY

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "notebook" / "first_run.ipynb"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs")
    return train(recipe_from({**TINY, "runs_dir": str(folder), "tracking": {"kind": "jsonl"}}), folder)


def test_recipe_of_a_file_with_changes_is_that_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    changed = recipe_from(path, {"rl.steps": 7, "task.rewrite.remove": [" ", "\n"], "name": "tiny.2"})
    data: dict[str, Any] = {**TINY, "name": "tiny.2", "rl": {**TINY["rl"], "steps": 7}}
    data["task"] = {**TINY["task"], "rewrite": {**TINY["task"]["rewrite"], "remove": [" ", "\n"]}}
    assert changed == recipe_from(data)


def test_wrong_keys_are_named(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    with pytest.raises(RecipeError, match="rl.stepss.*steps"):
        recipe_from(path, {"rl.stepss": 1})
    with pytest.raises(ValidationError, match="stepss"):
        recipe_from({**TINY, "rl": {"stepss": 1}})
    with pytest.raises(ValueError, match="plain data takes no changes"):
        recipe_from(TINY, {"rl.steps": 1})


def test_run_has_its_recipe_metrics_and_rollouts(run: Run) -> None:
    assert run.recipe.name == "tiny"
    assert run.summary["accuracy_after"] >= 0
    metrics = run.metrics
    assert {len(values) for values in metrics.values()} == {len(metrics["step"])}
    trained = np.isin(metrics["step"], [1, 2, 3])
    assert np.isfinite(metrics["reward/mean"][trained]).all()
    assert (metrics["policy/gap_at_lag_0"][trained] == 0).all()
    assert np.isnan(metrics["cold_start/loss"][metrics["step"] == 6]).all(), "a step has what it has"
    assert run.steps == [1, 2, 3]
    assert len(run.rollouts()) == 3 * 4 * 4
    of_two = run.rollouts(2)
    assert {one.step for one in of_two} == {2}
    assert np.mean([one.reward for one in of_two]) == pytest.approx(metrics["reward/mean"][metrics["step"] == 2][0])
    with pytest.raises(FileNotFoundError, match=r"keeps no rollouts of step 9; it has those of \[1, 2, 3\]"):
        run.rollouts(9)


def test_tables_have_a_row_a_step_and_a_row_a_rollout(run: Run) -> None:
    pytest.importorskip("pandas")
    table = run.table()
    assert list(table.index) == list(run.metrics["step"])
    assert table.loc[2, "reward/mean"] == run.metrics["reward/mean"][run.metrics["step"] == 2][0]
    rows = run.rollout_table(3)
    assert list(rows["response_text"]) == [one.response_text for one in run.rollouts(3)]
    assert list(rows["reward_parts.short"]) == [one.reward_parts["short"] for one in run.rollouts(3)]
    assert not {"tokens", "segments", "reward_parts"} & set(rows.columns)


def test_missing_pandas_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match="pip install pandas"):
        run.table()


def test_answers_are_the_newest_checkpoints(run: Run) -> None:
    first, second = (run.sample("1+2=", 2, temperature=0, max_new_tokens=8) for _ in range(2))
    assert [one.text for one in first] == [one.text for one in second]
    assert len({one.text for one in first}) == 1


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunStateError, match="holds no run"):
        Run(tmp_path)


@pytest.mark.slow
def test_run_goes_on_for_more_steps(tmp_path: Path) -> None:
    short = train(
        recipe_from(
            {**TINY, "runs_dir": str(tmp_path), "tracking": {"kind": "jsonl"}, "rl": {**TINY["rl"], "steps": 1}}
        )
    )
    assert Run(short.folder).resume({"rl.steps": 2}).steps == [1, 2]


@pytest.mark.slow
def test_cells_of_the_example_run_in_order(tmp_path: Path) -> None:
    """In one interpreter whose `__main__` they are; their recipes write beside the test."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    code = "\n".join("".join(cell["source"]) for cell in cells).replace(
        '"runtime"', f'"runs_dir": {str(tmp_path)!r}, "runtime"'
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{code}\nprint('ANSWERS', len(other.metrics['step']), other.recipe.rl.objective.surrogate)",
        ],
        cwd=NOTEBOOK.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "__main__:unclipped" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notebook", "notebook-unclipped"]
