"""Whole runs that break as their recipes plan it: each fault comes once, is written down, and the run ends with the weights of one that met none."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from samepath.rl.faults.book import read_faults
from samepath.rl.tracking.jsonl import read_metrics
from tests.rl.attempts import Attempts
from tests.rl.test_killed_runs import SMALL

RUN: dict[str, Any] = {
    **SMALL,
    "reward": {"short": {"function": "samepath.rewards.length:brevity", "options": {"max_tokens": 16}}},
    "evaluation": {"every": 0},
    "checkpoint": {"every": 1, "keep": 2},
}
ON_RAY = ("runtime=ray", "ray.object_store_bytes=104857600", "rollout.num_workers=1", "rollout.stall_timeout_s=20")


class Runs:
    """Runs of one recipe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.attempt = Attempts()
        self.recipe = folder / "small.yaml"
        self.recipe.write_text(yaml.safe_dump(RUN))
        assert self.start("whole")["status"] == 0

    def start(self, name: str, *settings: str) -> dict[str, Any]:
        return self.attempt("run", str(self.recipe), f"runs_dir={self.folder}", f"name={name}", *settings)

    def to_its_end(self, name: str, plan: list[dict[str, Any]], *settings: str) -> list[dict[str, Any]]:
        """Start a run with this plan and resume it until it is finished; how each attempt ended."""
        ends = [self.start(name, f"faults.at={json.dumps(plan)}", *settings)]
        while ends[-1]["status"] and len(ends) <= len(plan):
            ends.append(self.attempt("resume", str(self.folder / name)))
        return ends

    def weights(self, name: str) -> bytes:
        return (self.folder / name / "checkpoints" / "step-000003" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    made = Runs(tmp_path_factory.mktemp("faults"))
    yield made
    made.attempt.close()


def met(runs: Runs, name: str) -> list[tuple[str, int, str]]:
    """What a run met, as its book has it."""
    return [(entry.fault, entry.step, entry.during) for entry in read_faults(runs.folder / name)]


def test_run_broken_as_planned_goes_on_to_the_weights_of_a_whole_one_and_meets_each_fault_once(runs: Runs) -> None:
    plan = [
        {"fault": "reward_child_killed", "step": 1},
        {"fault": "driver_killed", "step": 2, "during": "learning"},
        {"fault": "disk_full", "step": 3, "file": "metrics.jsonl"},
    ]
    ends = runs.to_its_end("broken", plan)
    assert [end["status"] for end in ends] == [-9, 2, 0]
    assert met(runs, "broken") == [
        ("reward_child_killed", 1, "begin"),
        ("driver_killed", 2, "learning"),
        ("disk_full", 3, "recording"),
    ]
    assert runs.weights("broken") == runs.weights("whole")
    first, full, last = (end["output"] for end in ends)
    assert (
        "FAULTS ON PURPOSE: this run is broken as its recipe plans it (3 at named steps: reward_child_killed" in first
    )
    assert "step 1/3  FAULTS ON PURPOSE  reward " in first
    assert f"error: {runs.folder / 'broken' / 'metrics.jsonl'}: No space left on device. Free space there" in full
    assert "go on with: samepath resume" in full
    assert "(0 at named steps" in last
    counters = json.loads((runs.folder / "broken" / "summary.json").read_text())["failures"]
    assert counters == {
        "faults/reward_child_killed": 1.0,
        "faults/driver_killed": 1.0,
        "faults/disk_full": 1.0,
    }
    metrics = read_metrics(runs.folder / "broken" / "metrics.jsonl")
    # A step is done again, behind more faults, where its checkpoint was not whole when the attempt ended.
    done = [max(met for met, end in enumerate(ends, 1) if f"step {step}/3" in end["output"]) for step in (1, 2, 3)]
    assert [metrics[step]["faults/injected"] for step in (1, 2, 3)] == done
    assert done[2] == 3
    assert not any("faults/injected" in of for of in read_metrics(runs.folder / "whole" / "metrics.jsonl").values())


@pytest.mark.slow
def test_run_killed_in_its_writes_and_broken_by_nans_goes_on_to_the_weights_of_a_whole_one(runs: Runs) -> None:
    plan = [
        {"fault": "driver_killed", "step": 1, "file": "rollouts/*"},
        {"fault": "driver_killed", "step": 2, "file": "checkpoints/step-000002/*"},
        {"fault": "nan_logprob", "step": 2},
        {"fault": "disk_full", "step": 3, "file": "run.json"},
        {"fault": "driver_killed", "step": 3, "file": "summary.json"},
    ]
    ends = runs.to_its_end("writes", plan)
    assert [end["status"] for end in ends] == [-9, 1, -9, 2, -9, 0]
    assert "log-probability of every trained token must be finite; got " in ends[1]["output"]
    assert runs.weights("writes") == runs.weights("whole")


@pytest.mark.slow
def test_run_with_a_reward_that_is_no_number_counts_it_and_goes_on(runs: Runs) -> None:
    (end,) = runs.to_its_end("nan", [{"fault": "nan_reward", "step": 2}], "reward.max_failed_share=1")
    assert end["status"] == 0
    assert json.loads((runs.folder / "nan" / "summary.json").read_text())["failures"] == {
        "reward/status.invalid": 1.0,
        "faults/nan_reward": 1.0,
    }
    counts = {
        step: of.get("reward/status.ok") for step, of in read_metrics(runs.folder / "nan" / "metrics.jsonl").items()
    }
    assert (counts[1], counts[2], counts[3]) == (6, 5, 6)


@pytest.mark.slow
def test_run_under_ray_loses_a_worker_and_a_rank_and_has_one_stopped_and_ends_with_the_weights_of_a_whole_one(
    runs: Runs,
) -> None:
    plan = [
        {"fault": "worker_killed", "step": 1},
        {"fault": "worker_stopped", "step": 2},
        {"fault": "rank_killed", "step": 3, "during": "learning"},
    ]
    end, *more = runs.to_its_end("ray", plan, *ON_RAY, "learner.restarts=1")
    assert (end["status"], more) == (0, []), end["output"]
    assert "restart 1 of learner.restarts=1" in end["output"]
    assert met(runs, "ray") == [(one["fault"], one["step"], one.get("during", "begin")) for one in plan]
    summary = json.loads((runs.folder / "ray" / "summary.json").read_text())
    assert summary["failures"]["faults/worker_stopped"] == 1.0
    assert runs.weights("ray") == runs.weights("whole")


@pytest.mark.slow
def test_run_whose_mlflow_is_away_for_a_while_sends_everything_afterwards(runs: Runs) -> None:
    store = f"sqlite:///{runs.folder / 'mlflow.db'}"
    # The outage is over long before the last step.
    settings = ("tracking.kind=mlflow", f"tracking.uri={store}", "tracking.close_timeout_s=60", "rl.steps=20")
    (end,) = runs.to_its_end("away", [{"fault": "store_gone", "step": 1, "for_s": 1}], *settings)
    assert end["status"] == 0
    # A busy machine may take longer to write the run's beginning than it waits for the store.
    said = ("does not answer; training goes on and tracking events wait", "takes long to answer; training starts")
    assert any(one in end["output"] for one in said)
    assert "it is away on purpose (faults of the recipe)" in end["output"]
    assert not (runs.folder / "away" / "tracking-queue.jsonl").exists(), end["output"]
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(tracking_uri=store)
    (run,) = client.search_runs([client.get_experiment_by_name("samepath").experiment_id])
    assert [point.step for point in client.get_metric_history(run.info.run_id, "reward/mean")] == list(range(1, 21))
    assert run.info.status == "FINISHED"
