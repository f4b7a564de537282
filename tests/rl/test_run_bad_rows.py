"""A row that cannot be asked costs its samples, not the run: neither where it is drawn, nor in the cold start, nor held out."""

import json
from pathlib import Path

import pytest

from samepath.rl.run import start_run
from samepath.rl.tasks.row import TaskError
from samepath.rl.tracking.jsonl import read_metrics, read_rollouts


def write(path: Path, questions: list[str]) -> None:
    path.write_text("".join(json.dumps({"question": text, "answer": "1"}) + "\n" for text in questions))


def overrides(folder: Path) -> list[str]:
    task = {"kind": "file", "path": str(folder / "rows.jsonl"), "held_out_path": str(folder / "held.jsonl")}
    return ["~task", *(f"task.{key}={value}" for key, value in task.items()), "rl.steps=1"]


def test_start_run_counts_a_row_that_cannot_be_encoded_as_failed_samples(
    tiny_recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four rows, all drawn in the one step; 4 samples of each; of two held-out rows one is bad too."""
    write(tmp_path / "rows.jsonl", ["1+2=", "7×3=", "3+4=", "5-4="])
    write(tmp_path / "held.jsonl", ["9+9=", "8×8="])
    start_run(tiny_recipe(*overrides(tmp_path)), tmp_path)
    run_dir = tmp_path / "runs" / "tiny"
    metrics = read_metrics(run_dir / "metrics.jsonl")
    assert metrics[1]["rollout/failure.prompt_not_encodable"] == 4
    assert metrics[1]["reward/status.ok"] == 12
    assert metrics[1]["learner/updates"] == 2
    assert metrics[1]["eval/failed"] == 1
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["failures"]["rollout/failure.prompt_not_encodable"] == 4
    failed = [one for one in read_rollouts(run_dir / "rollouts" / "step-00001.jsonl") if one.prompt_text == "7×3="]
    assert len(failed) == 4
    assert all("rows.jsonl:2: every character must be" in one.reward_detail for one in failed)
    assert "2 of 6 rows cannot be asked: prompt_not_encodable 2" in capsys.readouterr().out


def test_start_run_without_a_row_to_ask_is_refused(tiny_recipe, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", ["7×3="])
    write(tmp_path / "held.jsonl", ["9+9="])
    with pytest.raises(TaskError, match="no training row that was looked at can be asked; 1 of 2 rows"):
        start_run(tiny_recipe("cold_start.steps=0", *overrides(tmp_path)), tmp_path)
