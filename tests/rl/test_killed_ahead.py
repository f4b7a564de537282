"""A run that samples while it learns, killed (SIGKILL) at any moment and resumed: every step once, with its own groups."""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from samepath.rl.tracking.jsonl import read_rollouts
from tests.rl.conftest import TINY
from tests.rl.test_killed_runs import ROOT

STEPS, PROMPTS, SAMPLES = 5, 2, 3
AHEAD: dict[str, Any] = {
    **TINY,
    "runtime": "ray",
    "task": {**TINY["task"], "num_train": 16, "num_held_out": 3},
    "sampling": {"top_p": 0.95, "max_new_tokens": 40},
    "reward": {"short": {"function": "samepath.rewards.length:brevity", "options": {"max_tokens": 40}}},
    "cold_start": {"steps": 1, "batch_size": 2},
    "rl": {
        "steps": STEPS,
        "prompts_per_step": PROMPTS,
        "group_size": SAMPLES,
        "updates_per_rollout": 1,
        "max_weight_lag": 2,
        "on_new_weights": "recompute",
    },
    "evaluation": {"every": 0},
    "checkpoint": {"every": 2, "keep": 1},
    "engine": {"max_sequences": 6},
}


class AheadKiller:
    """Talks to `tests/rl/killed_ahead.py`."""

    def __init__(self, folder: Path) -> None:
        (folder / "ahead.yaml").write_text(yaml.safe_dump(AHEAD))
        self.runs = folder / "runs"
        self._program = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.rl.killed_ahead", folder / "ahead.yaml", self.runs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def attempt(self, name: str, moment: int = 0) -> int:
        """Start or resume a run until a moment (0: to its end; a run may have fewer); returns how many went by."""
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(f"{name} {moment}\n")
        self._program.stdin.flush()
        status, seen = map(int, self._program.stdout.readline().split())
        assert status == (-9 if moment and seen == moment else 0), (
            f"attempt of {name} ended with {status} at moment {seen}"
        )
        return seen

    def close(self) -> None:
        self._program.communicate(timeout=60)


@pytest.fixture(scope="module")
def killer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AheadKiller]:
    made = AheadKiller(tmp_path_factory.mktemp("ahead"))
    yield made
    made.close()


def assert_every_step_once(run_dir: Path) -> None:
    """Metrics and rollouts of each step, once, of the groups that the feed gives it."""
    entries = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [entry["step"] for entry in entries if "rollout/count" in entry["metrics"]]
    assert steps == list(range(1, STEPS + 1))
    for step in steps:
        rollouts = read_rollouts(run_dir / "rollouts" / f"step-{step:05d}.jsonl")
        assert [(one.group_id, one.sample_index) for one in rollouts] == [
            (f"s{step}-g{index}", sample) for index in range(PROMPTS) for sample in range(SAMPLES)
        ]
    assert json.loads((run_dir / "run.json").read_text())["phase"] == "finished"
    assert json.loads((run_dir / "summary.json").read_text())["gap_at_lag_0"] == 0.0


def test_run_that_samples_ahead_killed_again_and_again_trains_every_group_once(killer: AheadKiller) -> None:
    rng = random.Random(5)
    moments = killer.attempt("whole")
    assert_every_step_once(killer.runs / "whole")
    for _ in range(2):
        killer.attempt("often", rng.randint(moments // 4, moments // 2))
    killer.attempt("often")
    assert_every_step_once(killer.runs / "often")


@pytest.mark.slow
def test_run_that_samples_ahead_killed_at_twenty_moments_trains_every_group_once(killer: AheadKiller) -> None:
    moments = killer.attempt("counted")
    for moment in sorted(random.Random(7).sample(range(1, moments), 20)):
        killer.attempt(f"at-{moment}", moment)
        killer.attempt(f"at-{moment}")
        assert_every_step_once(killer.runs / f"at-{moment}")


@pytest.mark.slow
def test_command_under_ray_killed_in_three_steps_and_resumed_trains_every_group_once(tmp_path: Path) -> None:
    """The real thing: `samepath run` and `samepath resume`, a cluster and actors of their own each time."""
    pytest.importorskip("ray")
    recipe = tmp_path / "ahead.yaml"
    recipe.write_text(
        yaml.safe_dump({**AHEAD, "rollout": {"num_workers": 1}, "ray": {"object_store_bytes": 100 << 20}})
    )
    run_dir = tmp_path / "runs" / "tiny"
    command = ["run", str(recipe), f"runs_dir={tmp_path / 'runs'}"]
    for method, count, status in (("offer", 1, -9), ("pump", 9, -9), ("batch", 3, -9), ("offer", 0, 0)):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "tests.rl.killed_command", method, str(count), *command],
            capture_output=True,
            text=True,
            timeout=240,
            cwd=ROOT,
        )
        assert done.returncode == status, done.stdout + done.stderr
        command = ["resume", str(run_dir)]
    assert_every_step_once(run_dir)
