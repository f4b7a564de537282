"""A worker in a child process, here with the built-in engine: equal samples, and every way of losing it is bounded and said."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from samepath.model.files.checkpoint import published_tensors
from samepath.rl.learner.model_source import save_model
from samepath.rl.machine import child_environment, import_path
from samepath.rollout.bounded_call import overdue
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.engine_errors import RolloutPoolError
from samepath.rollout.pool.pool import InlinePool, worker_environment
from samepath.rollout.pool.process_pool import ProcessPool
from samepath.rollout.pool.settings import RolloutSettings
from samepath.rollout.request import GroupRequest
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Group
from tests.conftest import tiny_model
from tests.engine_runs import TOKENIZER, assert_same_samples
from tests.tiny_runs import random_prompt, request

ENGINE = BuiltinSettings(max_sequences=6)
WEIGHTS = {name: tensor.detach().numpy() for name, tensor in published_tensors(tiny_model(5)).items()}


def asked(count: int) -> list[GroupRequest]:
    rng = np.random.default_rng(4)
    sampling = SamplingSettings(max_new_tokens=60, ignore_stop=True)
    return [request(f"g{index}", random_prompt(rng, 18, 8), sampling, (index, index + 50)) for index in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    save_model(tiny_model(), TOKENIZER, made)
    return made


def start(folder: Path, **changes: object) -> ProcessPool:
    settings = RolloutSettings.model_validate({"max_replacements": 1, **changes})
    variables = worker_environment(ENGINE, settings, import_path(folder))
    return ProcessPool(folder, ENGINE, settings, child_environment(variables))


def test_sample_equals_the_pool_in_this_process_although_the_worker_is_killed(folder: Path) -> None:
    inline = InlinePool(folder, ENGINE, RolloutSettings())
    inline.load_weights(WEIGHTS, 3)
    requests = asked(8)
    wanted = inline.sample(requests, lambda group: None)
    pool = start(folder)
    try:
        pool.load_weights(WEIGHTS, 3)
        first, finished = pool.process_ids()[0], []

        def on_group(group: Group) -> None:
            finished.append(group.group_id)
            if len(finished) == 1:
                os.kill(first, signal.SIGKILL)

        for group, other in zip(pool.sample(requests, on_group), wanted, strict=True):
            assert_same_samples(group, other)
        assert sorted(finished) == sorted(entry.group_id for entry in requests)
        assert pool.statistics()["replaced_workers"] == 1
        os.kill(pool.process_ids()[0], signal.SIGKILL)
        with pytest.raises(
            RolloutPoolError, match=r"max_replacements=1 times; the last one ended during work \(exit status -9\)"
        ):
            pool.sample(requests, lambda group: None)
    finally:
        pool.close()


def test_silent_workers_are_replaced_and_weights_that_do_not_fit_end_the_pool_with_the_reason(folder: Path) -> None:
    """One stopped while it samples, and one that is to take more than the socket holds: to send hangs, not only to receive."""
    pool = start(folder, stall_timeout_s=3.0, max_replacements=2)
    try:
        first = pool.process_ids()[0]
        os.kill(first, signal.SIGSTOP)
        groups = pool.sample(asked(1), lambda group: None)
        assert groups[0].rollouts[0].segments
        second = pool.process_ids()[0]
        os.kill(second, signal.SIGSTOP)
        pool.load_weights(WEIGHTS, 1)
        assert len({first, second, pool.process_ids()[0]}) == 3
        assert pool.statistics()["replaced_workers"] == 2
        with pytest.raises(RolloutPoolError, match=r"stopped in take_shared: ValueError: .*missing"):
            pool.load_weights({name: WEIGHTS[name] for name in list(WEIGHTS)[1:]}, 2)
    finally:
        pool.close()
    assert not overdue(), "a call that hung ends with its worker"


def test_statistics_of_a_silent_worker_are_those_of_the_pool_alone(folder: Path) -> None:
    pool = start(folder, stall_timeout_s=1.0)
    try:
        os.kill(pool.process_ids()[0], signal.SIGSTOP)
        assert pool.statistics() == {"replaced_workers": 0.0}
    finally:
        pool.close()
    assert not overdue(), "a call that hung ends with its worker"


def test_pool_on_a_folder_without_a_model_says_so_and_leaves_no_process(tmp_path: Path) -> None:
    with pytest.raises(RolloutPoolError, match=r"stopped in start: FileNotFoundError: .*config\.json"):
        start(tmp_path)


def test_pool_whose_worker_ends_at_once_shows_what_it_printed(folder: Path) -> None:
    settings = RolloutSettings()
    with pytest.raises(RolloutPoolError, match=r"ended during start \(exit status 1\); it printed: (.|\n)*nonsense"):
        ProcessPool(folder, ENGINE, settings, child_environment({"PYTHONPATH": "", "PYTHONHOME": "/nonsense"}))


def test_poll_with_nothing_to_sample_leaves_the_worker_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = start(folder)
    try:
        calls: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(pool._child, "call", lambda method, *arguments, timeout_s: calls.append(method))
            assert pool.poll(0.01) == []
        assert calls == []
    finally:
        pool.close()
