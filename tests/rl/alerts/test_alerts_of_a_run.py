"""Alerts of a whole run: told while it goes on, once, also over an interruption, and where they stand at its end."""

import json
from pathlib import Path

import pytest

from samepath.rl.alerts.book import read_alerts
from samepath.rl.loop import Loop
from samepath.rl.run import resume_run, start_run
from samepath.rl.run_state import RunState
from samepath.rl.tracking.jsonl import read_metrics

SHORT = (
    "cold_start={steps: 1, batch_size: 4}",
    "task.num_held_out=2",
    "rl.prompts_per_step=2",
    "alerts.truncated_share=0.01",
)
"""An untrained model runs into its limit now and then in each of the first steps."""


def lines(run_dir: Path) -> list[tuple[int, str, str]]:
    return [(one.step, one.rule, one.event) for one in read_alerts(run_dir)]


def test_run_that_is_interrupted_says_each_alert_once_and_ends_with_what_holds(
    tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = Loop.one_step

    def interrupted(self: Loop, step: int) -> dict[str, float]:
        if step == 1:
            raise KeyboardInterrupt
        return {**original(self, step), "rollout/truncated": 0.5}

    monkeypatch.setattr(Loop, "one_step", interrupted)
    recipe = tiny_recipe(*SHORT, "rl.steps=2")
    with pytest.raises(KeyboardInterrupt):
        start_run(recipe, tmp_path)
    run_dir = recipe.run_dir
    assert lines(run_dir) == [(1, "truncated", "begins")]
    assert RunState.load(run_dir).alerts == {"truncated": 1}
    monkeypatch.setattr(Loop, "one_step", lambda self, step: {**original(self, step), "rollout/truncated": 0.5})
    summary = resume_run(recipe, run_dir)
    assert lines(run_dir) == [(1, "truncated", "begins"), (1, "resumed", "note")]
    assert summary["alerts"] == json.loads((run_dir / "summary.json").read_text())["alerts"] == {"truncated": 1}
    assert capsys.readouterr().out.count("warning: truncated: 50% of the responses") == 1
    assert read_metrics(run_dir / "metrics.jsonl")[2]["memory/driver_gib"] > 0.05
    # From an earlier checkpoint: what its later steps said is theirs, and goes with them.
    resume_run(recipe, run_dir, 0)
    assert lines(run_dir) == [(0, "resumed", "note"), (1, "truncated", "begins")]
    assert (run_dir / "set-aside-1" / "alerts.jsonl").read_text().count("resumed") == 1
