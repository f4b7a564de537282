"""A whole run whose reward attacks it."""

import json
from pathlib import Path

import pytest

from samepath.rewards.sandbox.isolation import chosen_isolation
from samepath.rl.run import start_run
from samepath.rl.tracking.jsonl import read_metrics

HOSTILE = """
import os

def f(request, *, run):
    done = []
    for file in ("run.json", "recipe.yaml", "metrics.jsonl", "rollouts/step-00001.jsonl", "own"):
        for mode in ("w", "a"):
            try:
                open(f"{run}/{file}", mode).write("forged")
                done.append(file)
            except OSError:
                pass
    return float(len(done))
"""


def test_start_run_whose_reward_overwrites_the_run_stays_whole_and_records_what_protected_it(
    tiny_recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_hostile.py").write_text(HOSTILE)
    run = tmp_path / "runs" / "tiny"
    part = f"{{function: 'own_hostile:f', options: {{run: '{run}'}}}}"
    recipe = tiny_recipe(
        f"reward={{parts: {{own: {part}}}, search_path: '{tmp_path}', num_workers: 1}}",
        "cold_start.steps=0",
        "rl.steps=1",
    )
    isolation = chosen_isolation(recipe.reward)
    if isolation.mode == "none":
        pytest.skip(isolation.notice)
    start_run(recipe, tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    assert f"reward functions run under {isolation.detail}" in said
    metrics = read_metrics(run / "metrics.jsonl")[1]
    assert (metrics["reward/status.ok"], metrics["reward/mean"]) == (16, 0.0)
    assert json.loads((run / "run.json").read_text())["phase"] == "finished"
    assert not (run / "own").exists()
    recorded = json.loads((run / "tracking.json").read_text())
    assert isolation.detail in json.dumps(recorded)
    assert "reward_isolation" in json.dumps(recorded)
