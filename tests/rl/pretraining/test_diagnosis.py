"""`samepath doctor` of a run on text: each rule on curves that have it, none on healthy ones, and how the run ended."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from samepath.rl.cli import app
from samepath.rl.pretraining.diagnosis import diagnose_text
from samepath.rl.recipe.file import dump_recipe
from samepath.rl.run_state import RunState
from tests.rl.pretraining.texts import text_recipe

HEALTHY = {
    step: {
        "text/loss": 3 - 0.1 * step,
        "text/indexer_kl": 1 / (1 + step),
        "sparse/recall": 0.5 + 0.02 * step,
        "sparse/excess": 0.2,
    }
    for step in range(1, 13)
}


def run_with(
    folder: Path, steps: Mapping[int, Mapping[str, float]], kind: str = "sparse", phase: str = "finished"
) -> Path:
    """Folder of a run with these metrics."""
    recipe = text_recipe(folder, kind, steps=12)
    run_dir = recipe.run_dir
    run_dir.mkdir(parents=True)
    (run_dir / "text-recipe.yaml").write_text(dump_recipe(recipe))
    state = RunState(recipe_dir=str(folder), phase="training")
    state.phase = phase  # type: ignore[assignment]
    state.save(run_dir)
    lines = [json.dumps({"step": step, "metrics": metrics}) for step, metrics in steps.items()]
    (run_dir / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return run_dir


def test_healthy_run_has_no_finding(tmp_path: Path) -> None:
    found = diagnose_text(run_with(tmp_path, HEALTHY))
    assert (found.status, found.steps_done, found.steps_planned, found.findings) == ("finished", 12, 12, ())


@pytest.mark.parametrize(
    ("name", "wrong", "rule"),
    [
        ("text/loss", lambda step: 1 + 0.1 * step, "loss_rising"),
        ("text/indexer_kl", lambda step: 0.1 * step, "loss_rising"),
        ("sparse/recall", lambda step: 0.9 - 0.02 * step, "recall_falling"),
        ("sparse/excess", lambda step: 0.02 * step, "excess_rising"),
        ("text/loss", lambda step: math.nan if step == 4 else 1.0, "not_finite"),
    ],
)
def test_each_wrong_curve_is_found_alone(tmp_path: Path, name: str, wrong, rule: str) -> None:
    steps = {step: {**metrics, name: wrong(step)} for step, metrics in HEALTHY.items()}
    (found,) = diagnose_text(run_with(tmp_path, steps)).findings
    assert found.rule == rule
    assert name in found.seen
    if rule == "not_finite":
        assert found.step == 4


def test_the_next_tokens_loss_of_a_warm_up_is_not_looked_at(tmp_path: Path) -> None:
    steps = {step: {**metrics, "text/loss": float(step)} for step, metrics in HEALTHY.items()}
    assert diagnose_text(run_with(tmp_path, steps, "warmup")).healthy


def test_killed_run_died_and_the_command_ends_with_status_1(tmp_path: Path) -> None:
    run_dir = run_with(tmp_path, HEALTHY, phase="training")
    (run_dir / "tracking.json").write_text(json.dumps({"attempts": [{"status": "RUNNING"}]}))
    found = CliRunner().invoke(app, ["doctor", str(run_dir), "--json"], standalone_mode=False)
    plain = json.loads(found.stdout)
    assert (plain["status"], [one["rule"] for one in plain["findings"]], found.return_value) == ("died", ["died"], 1)
