"""The runs of a sweep: each in its process, one that fails stops no other, what is finished stays, what was cut goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from samepath.rl.cli import app
from samepath.rl.run_state import RunState
from samepath.rl.sweep import runner as sweeping
from samepath.rl.sweep.plan import SweepError, plan_sweep
from samepath.rl.sweep.runner import Runner, check_room
from tests.rl.conftest import TINY

ROOT = Path(__file__).resolve().parents[3]
STAND_IN = (sys.executable, "-W", "ignore", str(ROOT / "tests" / "rl" / "sweep" / "stand_in.py"))


def calls(runs: Path) -> list[str]:
    return [line.strip() for line in (runs / "calls.txt").read_text().splitlines()]


def test_sweep_runs_in_turn_reports_failures_goes_on_and_leaves_finished_runs(
    tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_recipe()
    runs = tmp_path / "runs"
    runs.mkdir()
    sweep = plan_sweep(tmp_path / "tiny.yaml", [f"runs_dir={runs}", "optimizer.lr=0.1,0.5,0.2"])
    (runs / "cut").touch()
    said: list[str] = []
    ended = Runner(sweep, said.append, STAND_IN).run(1)
    assert [one.ending for one in ended] == ["interrupted", "failed", "finished"]
    assert "this rate is too high" in ended[1].detail
    assert any("failed with status 1" in line and "too high" in line for line in said)
    assert ended[1].log is not None
    assert "too high" in ended[1].log.read_text()
    again = Runner(sweep, said.append, STAND_IN).run(1)
    assert [one.ending for one in again] == ["finished", "failed", "was finished"]
    assert calls(runs) == [
        "run tiny-lr_0.1",
        "run tiny-lr_0.5",
        "run tiny-lr_0.2",
        "resume tiny-lr_0.1",
        "run tiny-lr_0.5",
    ]


def test_sweep_asked_for_more_steps_resumes_with_what_is_asked_for(tiny_recipe: Any, tmp_path: Path) -> None:
    tiny_recipe()
    words = [f"runs_dir={tmp_path / 'runs'}", "optimizer.lr=0.1"]
    (tmp_path / "runs").mkdir()
    Runner(plan_sweep(tmp_path / "tiny.yaml", words), print, STAND_IN).run(1)
    longer = plan_sweep(tmp_path / "tiny.yaml", [*words, "rl.steps=9"])
    (ended,) = Runner(longer, print, STAND_IN).run(1)
    assert ended.ending == "finished"
    assert calls(tmp_path / "runs")[-1] == "resume tiny optimizer.lr=0.1 rl.steps=9"


def test_command_ends_in_the_comparison_with_status_one_if_a_run_has_failed(
    tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_recipe()
    (tmp_path / "runs").mkdir()
    original = Runner.__init__
    monkeypatch.setattr(sweeping.Runner, "__init__", lambda self, sweep, say: original(self, sweep, say, STAND_IN))
    words = ["sweep", str(tmp_path / "tiny.yaml"), f"runs_dir={tmp_path / 'runs'}", "--json"]
    result = CliRunner().invoke(
        app, [*words, "optimizer.lr=0.1,0.5", "seeds=2"], catch_exceptions=False, standalone_mode=False
    )
    assert result.return_value == 1
    read = json.loads(result.stdout)
    assert [one["title"] for one in read["configurations"]] == ["tiny-lr_0.1"]
    assert "failed: tiny-lr_0.5-seed_0, see" in result.stderr
    assert (tmp_path / "runs" / "tiny-sweep" / "compare.html").is_file()
    result = CliRunner().invoke(app, [*words, "optimizer.lr=0.1,0.2"], catch_exceptions=False, standalone_mode=False)
    assert result.return_value == 0


def test_jobs_are_refused_where_they_would_share_cores_gpus_or_a_cluster(
    tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_recipe()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    monkeypatch.delattr(os, "process_cpu_count", raising=False)

    def checked(jobs: int, *words: str) -> None:
        check_room(plan_sweep(tmp_path / "tiny.yaml", [*words, "seeds=2"]), jobs)

    checked(4)
    checked(2, "learner.ranks=2")
    checked(1, "learner.ranks=8")
    with pytest.raises(SweepError, match="5 computing processes on 4 cores"):
        checked(5)
    with pytest.raises(SweepError, match="6 computing processes"):
        checked(3, "learner.ranks=2")
    checked(2, "runtime=ray")
    with pytest.raises(SweepError, match="6 computing processes"):
        checked(2, "runtime=ray", "rl.max_weight_lag=1")
    with pytest.raises(SweepError, match="joins a cluster"):
        checked(2, "runtime=ray", "ray.address=auto")
    with pytest.raises(SweepError, match="share GPUs"):
        checked(2, "model.device=cuda", "rl.max_gap_at_lag_0=0.01")


@pytest.mark.slow
def test_real_sweep_that_is_interrupted_goes_on_when_it_is_called_again(tmp_path: Path) -> None:
    recipe = {**TINY, "runs_dir": str(tmp_path / "runs"), "cold_start": {"steps": 1}, "evaluation": {"every": 2}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    samepath = str(Path(sys.executable).with_name("samepath"))
    command = [samepath, "sweep", str(tmp_path / "tiny.yaml"), "optimizer.lr=1e-3,1e-4", "seeds=2", "rl.steps=12"]
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = tmp_path / "runs" / "tiny-lr_1e-3-seed_1" / "metrics.jsonl"
    until = time.monotonic() + 120
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) > 3) and time.monotonic() < until:
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 130, output
    assert "The same command goes on with them" in output
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "1/4 tiny-lr_1e-3-seed_0: was finished" in second.stderr
    assert "2/4 tiny-lr_1e-3-seed_1: goes on" in second.stderr
    assert "The same held-out prompts" in second.stdout
    for lr in ("1e-3", "1e-4"):
        for seed in (0, 1):
            assert RunState.load(tmp_path / "runs" / f"tiny-lr_{lr}-seed_{seed}").phase == "finished"


@pytest.mark.slow
def test_sweep_under_ray_runs_side_by_side_each_on_a_cluster_of_its_own(tmp_path: Path) -> None:
    recipe = {
        **TINY,
        "runtime": "ray",
        "runs_dir": str(tmp_path / "runs"),
        "cold_start": {"steps": 1},
        "rollout": {"num_workers": 1},
        "rl": {**TINY["rl"], "steps": 2},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    samepath = str(Path(sys.executable).with_name("samepath"))
    command = [samepath, "sweep", str(tmp_path / "tiny.yaml"), "optimizer.lr=1e-3,1e-4", "--jobs=2", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    assert {one["title"] for one in json.loads(done.stdout)["configurations"]} == {
        "optimizer.lr=0.001",
        "optimizer.lr=0.0001",
    }
    first, second = (steps_of(tmp_path / "runs" / f"tiny-lr_{lr}") for lr in ("1e-3", "1e-4"))
    assert first[0]["reward/mean"] == second[0]["reward/mean"], "one seed and one cold start give the first answers"
    assert first[1]["kl/reference_full"] > second[1]["kl/reference_full"], "each had its own rate"
    begun = [RunState.load(tmp_path / "runs" / f"tiny-lr_{lr}").phase for lr in ("1e-3", "1e-4")]
    assert begun == ["finished", "finished"]


def steps_of(run_dir: Path) -> list[dict[str, float]]:
    """Metrics of the steps that trained."""
    assert json.loads((run_dir / "summary.json").read_text())["runtime"] == "ray"
    records = [json.loads(line)["metrics"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [metrics for metrics in records if "reward/mean" in metrics]
