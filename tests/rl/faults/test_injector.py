"""Each planned fault comes when its plan says, once, after it was written down; drawn ones follow from their seed."""

import errno
import os
import re
import signal
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from samepath.model.durable_file import append_lines, at_writes, replace_file
from samepath.rl.faults import injector as injector_module
from samepath.rl.faults.book import read_faults
from samepath.rl.faults.injector import FaultInjector
from samepath.rl.faults.parts import learner_with, runner_with
from samepath.rl.recipe.faults import FaultName, FaultSettings
from samepath.rl.tracking.events import Event, StoreUnavailableError
from samepath.rl.tracking.outage import Outage
from tests.conftest import character_tokenizer
from tests.update_runs import rollout_batch

Plan = dict[str, Any]


def settings(*at: Plan, **drawn: Any) -> FaultSettings:
    return FaultSettings.model_validate({"at": at, **drawn})


class Struck(list[tuple[str, int]]):
    """What was killed or stopped, instead of doing it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        monkeypatch.setattr(injector_module, "hit", lambda name, rng: SimpleNamespace(pid=rng.randint(1, 9)))
        monkeypatch.setattr(injector_module, "strike", lambda name, process: self.append((name, process.pid)))
        monkeypatch.setattr(os, "kill", lambda pid, number: self.append(("driver", int(number))))


@pytest.fixture
def struck(monkeypatch: pytest.MonkeyPatch) -> Struck:
    return Struck(monkeypatch)


def steps(faults: FaultInjector, first: int, last: int, phases: tuple[str, ...] = ("sampling", "learning")) -> None:
    """The phases of steps `first … last`, as the loop and the display tell them."""
    for step in range(first, last + 1):
        for phase in phases:
            faults.phase(phase)
        faults.done(step)


def came(folder: Path) -> list[tuple[str, int, str]]:
    return [(entry.fault, entry.step, entry.during) for entry in read_faults(folder)]


def test_injector_without_a_plan_watches_nothing_and_says_nothing(tmp_path: Path) -> None:
    faults = FaultInjector(FaultSettings(), tmp_path)
    with faults.injecting(0):
        assert at_writes == []
        steps(faults, 1, 3)
    assert (faults.mark, faults.warning, faults.metrics, faults.counters) == ("", [], {}, {})
    assert not list(tmp_path.iterdir())
    learner, runner = object(), object()
    assert learner_with(faults, learner) is learner  # type: ignore[arg-type]
    assert runner_with(faults, runner) is runner  # type: ignore[arg-type]


def test_fault_comes_at_its_step_and_phase_and_not_again_after_a_resume(tmp_path: Path, struck: Struck) -> None:
    plan = settings(
        {"fault": "worker_killed", "step": 2},
        {"fault": "rank_killed", "step": 2, "during": "learning"},
        {"fault": "driver_killed", "step": 3, "during": "sampling"},
    )
    faults = FaultInjector(plan, tmp_path)
    said: list[str] = []
    faults.say = said.append
    with faults.injecting(0):
        steps(faults, 1, 2)
        assert [name for name, _ in struck] == ["worker_killed", "rank_killed"]
        assert (faults.metrics, faults.mark) == ({"faults/injected": 2.0}, "FAULTS ON PURPOSE")
        steps(faults, 3, 3)
    assert struck[-1] == ("driver", signal.SIGKILL)
    assert came(tmp_path) == [
        ("worker_killed", 2, "begin"),
        ("rank_killed", 2, "learning"),
        ("driver_killed", 3, "sampling"),
    ]
    assert re.fullmatch(r"fault on purpose: worker_killed \(process \d\) in step 2, begin", said[0])
    again = FaultInjector(plan, tmp_path)
    with again.injecting(1):
        steps(again, 2, 3)
    assert len(struck) == len(came(tmp_path)) == 3
    assert again.counters == {"faults/worker_killed": 1.0, "faults/rank_killed": 1.0, "faults/driver_killed": 1.0}


def test_fault_is_on_disk_before_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(pid: int, number: int) -> None:
        assert came(tmp_path) == [("driver_killed", 1, "begin")]
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "kill", kill)
    faults = FaultInjector(settings({"fault": "driver_killed", "step": 1}), tmp_path)
    with faults.injecting(0), pytest.raises(KeyboardInterrupt):
        faults.phase("sampling")


def test_fault_that_finds_nothing_to_hit_waits_and_is_named_at_the_end(tmp_path: Path) -> None:
    faults = FaultInjector(settings({"fault": "worker_killed", "step": 1}), tmp_path)
    said: list[str] = []
    faults.say = said.append
    with faults.injecting(0):
        steps(faults, 1, 1)
    assert said == ["warning: planned faults that have not come: worker_killed in step 1"]
    assert came(tmp_path) == []


def test_disk_is_full_from_the_named_write_on(tmp_path: Path) -> None:
    plan = settings({"fault": "disk_full", "step": 2, "file": "checkpoints/step-*/manifest.json"})
    faults = FaultInjector(plan, tmp_path)
    manifest = tmp_path / "checkpoints" / ".step-000001.partial" / "manifest.json"
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    with faults.injecting(0):
        faults.phase("sampling")
        replace_file(manifest, "of step 1")
        faults.done(1)
        faults.phase("sampling")
        append_lines(tmp_path / "metrics.jsonl", "whole\n")
        for write in (lambda: replace_file(manifest, "2"), lambda: append_lines(tmp_path / "metrics.jsonl", "lost\n")):
            with pytest.raises(OSError) as caught:
                write()
            assert caught.value.errno == errno.ENOSPC
            assert str(caught.value.filename).startswith(str(tmp_path))
        replace_file(outside, "of another run")
    assert manifest.read_text() == "of step 1"
    assert (tmp_path / "metrics.jsonl").read_text() == "whole\n"
    assert sorted(path.name for path in manifest.parent.iterdir()) == ["manifest.json"]
    assert [entry.detail for entry in read_faults(tmp_path)] == ["checkpoints/step-000001/manifest.json"]
    append_lines(tmp_path / "metrics.jsonl", "after the run\n")


def test_driver_is_killed_in_the_middle_of_a_named_write(tmp_path: Path, struck: Struck) -> None:
    faults = FaultInjector(settings({"fault": "driver_killed", "step": 1, "file": "run.json"}), tmp_path)
    with faults.injecting(0):
        faults.phase("sampling")
        replace_file(tmp_path / "tracking.json", "another")
        assert struck == []
        replace_file(tmp_path / "run.json", "{}")
    assert struck == [("driver", signal.SIGKILL)]


def test_update_gets_one_logprob_that_is_nan_and_the_engines_record_stays(tmp_path: Path) -> None:
    faults = FaultInjector(settings({"fault": "nan_logprob", "step": 1}), tmp_path)
    seen: list[Any] = []
    learner: Any = learner_with(faults, SimpleNamespace(update=seen.append, version=7))  # type: ignore[arg-type]
    batch = rollout_batch(character_tokenizer("0123456789+-=#; "))
    with faults.injecting(0):
        faults.phase("sampling")
        for _ in range(2):
            learner.update(batch)
    nans = [[bool(np.isnan(one.segment.sampler_logprobs).any()) for one in got.sequences] for got in seen]
    assert nans == [[True] + [False] * (len(batch.sequences) - 1), [False] * len(batch.sequences)]
    assert replace(seen[0], sequences=batch.sequences) == batch
    assert np.isfinite(batch.sequences[0].segment.sampler_logprobs).all()
    assert learner.version == 7


def test_reward_of_one_rollout_is_no_number(tmp_path: Path) -> None:
    faults = FaultInjector(settings({"fault": "nan_reward", "step": 1}), tmp_path)
    given: Future[Any] = Future()
    runner: Any = runner_with(faults, SimpleNamespace(submit=lambda request: given, isolation="none"))  # type: ignore[arg-type]
    with faults.injecting(0):
        faults.phase("sampling")
        first, second = (runner.submit(SimpleNamespace(rollout_key=key)) for key in ("s1-g0/0", "s1-g0/1"))
    assert first.result(0).status == "invalid"
    assert second is given
    assert [entry.detail for entry in read_faults(tmp_path)] == ["rollout s1-g0/0"]
    assert runner.isolation == "none"


def test_store_is_away_for_as_long_as_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = FaultInjector(settings({"fault": "store_gone", "step": 1, "for_s": 30}), tmp_path)
    sent: list[Event] = []
    store: Any = SimpleNamespace(send=sent.append, state=lambda: {"run_id": "7"})
    outage, event = Outage(store, faults.store_away), Event(kind="metrics", time_ms=0, payload={})
    outage.send(event)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with faults.injecting(0):
        faults.phase("sampling")
    now += 29
    with pytest.raises(StoreUnavailableError, match="on purpose"):
        outage.send(event)
    assert outage.state() == {"run_id": "7"}
    now += 2
    outage.send(event)
    assert len(sent) == 2


def drawn(folder: Path, seed: int, count: int, every_s: float = 0.01) -> list[str]:
    """Names of the first faults that a clock draws, each in an attempt of its own."""
    kinds: tuple[FaultName, ...] = ("worker_killed", "worker_stopped", "rank_killed", "reward_child_killed")
    for _ in range(count):
        faults = FaultInjector(settings(every_s=every_s, kinds=kinds, seed=seed), folder)
        before = len(read_faults(folder))
        with faults.injecting(0):
            faults.phase("sampling")
            deadline = time.monotonic() + 20
            while len(read_faults(folder)) == before:
                assert time.monotonic() < deadline
                time.sleep(0.002)
    return [entry.fault for entry in read_faults(folder)][:count]


def test_drawn_faults_follow_from_their_seed_over_all_attempts(tmp_path: Path, struck: Struck) -> None:
    folders = [tmp_path / name for name in "abc"]
    first, same, other = (drawn(folder, seed, 8) for folder, seed in zip(folders, (1, 1, 2), strict=True))
    assert first == same != other
    assert len(set(first)) > 1


def test_drawn_faults_wait_for_the_first_step_and_for_their_time(tmp_path: Path, struck: Struck) -> None:
    faults = FaultInjector(settings(every_s=3600, kinds=["worker_killed"]), tmp_path)
    quick = FaultInjector(settings(every_s=1e-4, kinds=["worker_killed"]), tmp_path)
    with faults.injecting(0), quick.injecting(0):
        faults.phase("sampling")
        quick.phase("evaluating")
        assert not quick._over.wait(0.05)
    assert struck == []
