"""What a soak reports: tokens that are lost, growth over time, and processes that stay."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from benchmarks import soak
from benchmarks.soak import KINDS, RECIPE, SMALL, counted, newest
from benchmarks.soak_watch import Look, Watch, Watched
from samepath.rl.recipe.faults import FaultSettings
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.tracking.jsonl import JsonlSink
from tests.rl.tracking.test_torn_files import rollout


def test_counted_finds_tokens_that_no_update_and_no_failure_explains(tmp_path: Path) -> None:
    sink, one = JsonlSink(tmp_path), rollout("a")
    trained = replace(one, num_tokens=3, reward_status="ok", kl_tokens=(0.0, 0.0, 0.0))
    failed = replace(one, num_tokens=4, reward_status="died", kl_tokens=())
    lost = replace(one, num_tokens=5, reward_status="ok", kl_tokens=())
    sink.log_rollouts(1, [trained, failed])
    sink.log_metrics(1, {"reward/mean": 0.5})
    assert counted(tmp_path, 1) == {
        "sampled tokens": 7,
        "trained tokens": 3,
        "tokens left out and counted": 4,
        "lost tokens": 0,
        "steps in metrics.jsonl": 1,
    }
    sink.log_rollouts(2, [lost])
    assert counted(tmp_path, 2)["lost tokens"] == 5


def test_watch_reports_growth_of_the_longest_attempt_and_processes_that_stay() -> None:
    watch = Watch()
    stays = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    long, short = Watched(1), Watched(2)
    long.below[stays.pid] = psutil.Process(stays.pid)
    for second in range(120):
        long.looks.append(
            Look(time_s=second, step=second // 2, memory_mib=100 + second / 30, files=20 + second % 2, threads=9)
        )
    watch.ended(short, 0.0)
    watch.ended(long, 0.05)
    assert stays.wait(20) < 0
    report = watch.report()
    assert report["processes left"] == 1
    slopes = report["longest attempt"]
    assert slopes["looks"] == 106
    assert slopes["memory_mib"]["a minute"] == pytest.approx(2.0)
    assert slopes["threads"] == {"first": 9.0, "last": 9.0, "a minute": 0.0}
    assert abs(slopes["files"]["a minute"]) < 0.05


def test_watch_looks_at_a_process_that_lives_and_at_none_that_has_ended() -> None:
    program = [sys.executable, "-c", "print('up', flush=True); input()"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        # Before it is up there is hardly a process to look at.
        assert process.stdout.readline() == b"up\n"
        watch, attempt = Watch(), Watched(process.pid)
        watch.look(attempt, 3)
    watch.look(attempt, 4)
    (look,) = attempt.looks
    assert (look.step, look.memory_mib > 1, look.files >= 3, look.threads >= 1) == (3, True, True, True)


def test_recipes_of_the_soak_load_and_differ_in_what_changes_no_weight(tmp_path: Path) -> None:
    plan = json.dumps({"every_s": 60, "kinds": list(KINDS)})
    broken = load_recipe(RECIPE, [f"runs_dir={tmp_path}", *SMALL, *soak.BROKEN, f"faults={plan}"], Recipe)
    peace = load_recipe(RECIPE, [f"runs_dir={tmp_path}", *SMALL, *soak.PEACE], Recipe)
    alike = {"runtime", "tracking", "faults", "rollout", "ray", "learner"}
    assert broken.model_dump(exclude=alike) == peace.model_dump(exclude=alike)
    assert peace.faults == FaultSettings()


def test_newest_is_the_step_of_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    assert newest(tmp_path) == 0
    for name in ("step-000002", "step-000010", ".step-000012.partial"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert newest(tmp_path) == 10
