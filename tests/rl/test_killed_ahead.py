"""A run that samples while it learns, killed (SIGKILL) at any moment and resumed: every step once, with its own groups."""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from samepath.model.files.checkpoint import load_checkpoint, published_tensors
from samepath.rl.begun_journal import BegunJournal
from samepath.rl.group_journal import GroupJournal
from samepath.rl.history import History, record_digest
from samepath.rl.replay_run import ReplayError, replay_run
from samepath.rl.tracking.jsonl import read_rollouts
from samepath.rollout.weights.mark import header
from tests.rl.conftest import TINY
from tests.rl.killer import ROOT, Killer

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
    "checkpoint": {"every": 2, "keep": 1, "keep_sampled": True},
    "engine": {"max_sequences": 6},
}


class AheadKiller(Killer):
    """Talks to `tests/rl/killed_ahead.py`."""

    def __init__(self, folder: Path, rl: dict[str, Any] | None = None, **others: Any) -> None:
        (folder / "ahead.yaml").write_text(yaml.safe_dump({**AHEAD, **others, "rl": {**AHEAD["rl"], **(rl or {})}}))
        super().__init__("tests.rl.killed_ahead", folder / "ahead.yaml", folder / "runs")


def replayed(run_dir: Path, *, from_rollouts: bool = False) -> list[int]:
    """The steps that come out as they were."""
    steps: list[int] = []
    replay_run(run_dir, from_rollouts=from_rollouts, on_step=lambda line: steps.append(line.step))
    return steps


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


class Kept:
    """What stands on the disk after kills, and what is trained of it in the end."""

    def __init__(self) -> None:
        self.groups: dict[int, list[str]] = {}
        self.begun: dict[tuple[int, int], list[int]] = {}

    def look(self, run_dir: Path) -> None:
        """After a kill: records of groups that have ended, and the weights of each token of samples that have not."""
        self.begun.clear()
        for step in range(STEPS):
            groups = {entry.number: entry.group for entry in GroupJournal(run_dir).entries(step)}
            for number, group in groups.items():
                self.groups[number] = [record_digest(rollout) for rollout in group.rollouts]
            for number, told in BegunJournal(run_dir).entries(step).items():
                for one in [] if number in groups else told:
                    for drawn in one.drawn:
                        self.begun.setdefault((number, drawn.index), []).extend(drawn.versions.tolist())

    def check(self, run_dir: Path) -> None:
        """Groups were trained as they ended, samples went on behind their tokens; nothing was drawn twice."""
        history = History(run_dir)
        trained = {group.number: group for step in history.steps for group in history.line(step).groups}
        assert sorted(trained) == list(range(STEPS * PROMPTS))
        assert self.groups
        for number, records in self.groups.items():
            assert [one.record for one in trained[number].samples] == records
        for (number, sample), versions in self.begun.items():
            drawn = [version for version, count in trained[number].samples[sample].drawn for _ in range(count)]
            assert drawn[: len(versions)] == versions
        lost = [json.loads(line)["metrics"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        assert sum(one.get("rollout/tokens_lost", 0.0) for one in lost) == 0.0


def test_run_that_samples_ahead_killed_again_and_again_trains_every_group_once(killer: AheadKiller) -> None:
    rng = random.Random(5)
    moments = killer.attempt("whole")
    assert_every_step_once(killer.runs / "whole")
    kept = Kept()
    for _ in range(2):
        killer.attempt("often", rng.randint(moments // 4, moments // 2))
        kept.look(killer.runs / "often")
    killer.attempt("often")
    often = killer.runs / "often"
    assert_every_step_once(often)
    kept.check(often)
    # It is made again from its history, to the bit, and its last checkpoint has these weights.
    assert replayed(often) == replayed(often, from_rollouts=True) == list(range(STEPS))
    model = load_checkpoint(often / "checkpoints" / f"step-{STEPS:06d}", "torch")
    assert header(STEPS, published_tensors(model)).fingerprint == History(often).weights(STEPS)


def test_replay_of_a_run_that_comes_out_otherwise_names_step_and_group(killer: AheadKiller, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(killer.runs / "often", run_dir)
    text = (run_dir / "history.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]

    def changed(change: Callable[[list[Any]], None]) -> None:
        made = json.loads(json.dumps(lines))
        change(made)
        (run_dir / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made))

    def of_first(made: list[Any], **values: object) -> None:
        made[1]["groups"][1]["samples"][0].update(values)

    changed(lambda made: made[1].update(weights="0" * 32))
    with pytest.raises(
        ReplayError, match=r"step 2, groups s2-g0, s2-g1: the weights after it are not those of the run"
    ):
        replayed(run_dir)
    changed(lambda made: of_first(made, record="0" * 16))
    with pytest.raises(
        ReplayError, match=r"step 2, group s2-g1, sample 0: tokens, log-probabilities or choices are not"
    ):
        replayed(run_dir)
    changed(lambda made: of_first(made, reward=0.123))
    with pytest.raises(ReplayError, match=r"group s2-g1, sample 0: its reward must be 0\.123"):
        replayed(run_dir, from_rollouts=True)
    changed(lambda made: of_first(made, drawn=[[0, 41]]))
    with pytest.raises(ReplayError, match=r"step 2, group s2-g1, sample 0: it must have 41 tokens by the record"):
        replayed(run_dir)
    changed(lambda made: made.pop(0))
    with pytest.raises(ReplayError, match=r"must hold the history of every step from the first on"):
        replayed(run_dir)
    (run_dir / "history.jsonl").write_text(text)
    (run_dir / "sampled" / "step-000003.groups").unlink()
    with pytest.raises(
        ReplayError, match=r"step 4, group number 6: it is not kept any more\. Leave --from-rollouts out"
    ):
        replayed(run_dir, from_rollouts=True)


@pytest.mark.slow
def test_run_that_samples_ahead_killed_at_twenty_moments_trains_every_group_once(killer: AheadKiller) -> None:
    moments = killer.attempt("counted")
    begun = 0
    for moment in sorted(random.Random(7).sample(range(1, moments), 20)):
        killer.attempt(f"at-{moment}", moment)
        kept = Kept()
        kept.look(killer.runs / f"at-{moment}")
        begun += len(kept.begun)
        killer.attempt(f"at-{moment}")
        assert_every_step_once(killer.runs / f"at-{moment}")
        if kept.groups:
            kept.check(killer.runs / f"at-{moment}")
    assert begun > 5


@pytest.mark.slow
def test_run_that_leaves_groups_over_killed_twice_trains_each_once_and_is_made_again(tmp_path: Path) -> None:
    """Batches are what time made of them."""
    killer = AheadKiller(tmp_path, {"oversample": 1})
    try:
        moments, kept, run_dir = killer.attempt("whole"), Kept(), killer.runs / "left"
        for moment in (moments // 3, moments // 2):
            killer.attempt("left", moment)
            kept.look(run_dir)
        killer.attempt("left")
    finally:
        killer.close()
    kept.check(run_dir)
    assert replayed(run_dir) == replayed(run_dir, from_rollouts=True) == list(range(STEPS))


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
    for method, count, status in (("offer", 1, -9), ("pump", 9, -9), ("taken", 3, -9), ("offer", 0, 0)):
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
    # Made again in one process.
    assert replayed(run_dir) == list(range(STEPS))
