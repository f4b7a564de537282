"""Runs whose Ray cluster is killed or stopped under them, for real: each ends in bounded time, says why, and goes on elsewhere."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("ray")

from samepath.rl.run import resume_run
from samepath.rl.run_folder import recipe_of_run
from tests.rl.conftest import TINY

pytestmark = pytest.mark.slow
LOSING = Path(__file__).with_name("losing_a_cluster.py")


def lose(tmp_path: Path, number: str, process: str, step: int) -> subprocess.CompletedProcess[str]:
    """`samepath run` with this signal to this process of its cluster at the beginning of a step."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    settings = [f"runs_dir={tmp_path / 'runs'}", "runtime=ray", "ray.object_store_bytes=104857600"]
    command = [sys.executable, str(LOSING), number, process, str(step), "run", str(tmp_path / "tiny.yaml"), *settings]
    return subprocess.run(
        [*command, "rollout.stall_timeout_s=20", "learner.update_timeout_s=60"],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=LOSING.parents[2],
    )


@pytest.mark.parametrize("process", ["raylet", "gcs_server"])
def test_run_whose_cluster_is_killed_says_so_and_goes_on_from_its_checkpoint(process: str, tmp_path: Path) -> None:
    done = lose(tmp_path, "SIGKILL", process, 2)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"error: Ray's {process} (process " in done.stderr
    assert "has ended (signal SIGKILL), while the run waited for" in done.stderr
    run_dir = tmp_path / "runs" / "tiny"
    assert f"go on with: samepath resume {run_dir}" in done.stdout
    assert (run_dir / "checkpoints" / "step-000001" / "manifest.json").is_file()
    summary = resume_run(recipe_of_run(run_dir), run_dir)
    assert summary["steps"] == 3


def test_run_whose_raylet_is_stopped_in_its_last_step_finishes(tmp_path: Path) -> None:
    done = lose(tmp_path, "SIGSTOP", "raylet", 3)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs" / "tiny" / "summary.json").is_file()


def test_run_whose_raylet_is_stopped_early_ends_in_bounded_time_with_a_sentence(tmp_path: Path) -> None:
    done = lose(tmp_path, "SIGSTOP", "raylet", 2)
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert "error: " in done.stderr
