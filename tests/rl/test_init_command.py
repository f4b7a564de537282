"""`samepath init` writes what runs, in a fresh folder and as a user would, and overwrites nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from samepath.rl.init_command import NUM_PROBLEMS, init


def samepath(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(Path(sys.executable).with_name("samepath")), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_starter_runs_in_a_folder_of_its_own(tmp_path: Path) -> None:
    """Modules beside the recipe are found by the command, which does not stand in the folder's Python path."""
    made = samepath(tmp_path, "init", "mine")
    assert made.returncode == 0, made.stderr
    assert "try it:   cd mine && samepath run recipe.yaml" in made.stdout
    rows = [json.loads(line) for line in (tmp_path / "mine" / "problems.jsonl").read_text().splitlines()]
    assert len({row["question"] for row in rows}) == NUM_PROBLEMS
    assert all(row["question"] == row["answer"][::-1] + ">" for row in rows)
    short = ("cold_start.steps=3", "rl.steps=1", "evaluation.every=0", "task.max_held_out=8")
    ran = samepath(tmp_path / "mine", "run", "recipe.yaml", *short)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (tmp_path / "mine" / "runs" / "first" / "summary.json").is_file()
    # As long as an answer may be by default.
    answered = samepath(tmp_path / "mine", "sample", "runs/first", "abcd>", "--count", "1")
    assert answered.returncode == 0, answered.stderr


@pytest.mark.slow
def test_starter_learns(tmp_path: Path) -> None:
    init(tmp_path)
    checked = samepath(tmp_path, "validate", "recipe.yaml", "--strict")
    assert checked.returncode == 0, checked.stdout
    assert samepath(tmp_path, "run", "recipe.yaml").returncode == 0
    summary = json.loads((tmp_path / "runs" / "first" / "summary.json").read_text())
    assert summary["accuracy_before"] < 0.4
    assert summary["accuracy_after"] > 0.8


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "my_rewards.py").write_text("mine")
    with pytest.raises(ValueError, match="already has my_rewards.py; nothing was written"):
        init(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["my_rewards.py"]
