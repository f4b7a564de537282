"""Weights that come while samples are under way, in a worker that waits for its caller and in one that does not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from samepath.model.files.checkpoint import published_tensors
from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.learner.model_source import save_model
from samepath.rollout.begun import Progress, going_on
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.pool import steady_worker
from samepath.rollout.pool.pool import InlinePool
from samepath.rollout.pool.settings import OnNewWeights, RolloutSettings
from samepath.rollout.pool.steady_worker import SteadyWorker
from samepath.rollout.pool.worker import RolloutWorker
from samepath.rollout.record_bytes import from_bytes
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Group
from tests.conftest import tiny_model
from tests.engine_runs import assert_same_samples
from tests.steady_pool import SteadyPool
from tests.tiny_runs import request

FREE = SamplingSettings(max_new_tokens=20, ignore_stop=True)
WEIGHTS = {name: tensor.detach().numpy().copy() for name, tensor in published_tensors(tiny_model(7)).items()}
Made = Callable[[Path, BuiltinSettings, int], RolloutWorker]


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A checkpoint for the workers."""
    save_model(tiny_model(), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def drawn_by(group: Group) -> list[list[int]]:
    """Versions that drew each sample's tokens, each once, in order."""
    return [
        list(dict.fromkeys(int(v) for one in rollout.segments for v in one.weight_version[one.trained]))
        for rollout in group.rollouts
    ]


def finished(worker: RolloutWorker, count: int) -> dict[str, Group]:
    """The next groups, by id."""
    groups: dict[str, Group] = {}
    while len(groups) < count:
        groups |= {group.group_id: group for group in worker.work([], 5.0)}
    return groups


@pytest.mark.parametrize("mode", ["finish", "continue", "recompute"])
def test_load_weights_under_way_does_what_the_mode_says(folder: Path, mode: OnNewWeights) -> None:
    worker = RolloutWorker(folder, BuiltinSettings(), 1)
    worker.work([request("old", (2, 3, 4), FREE)], 0.0)
    for _ in range(4):
        worker._runner.step()
    weights = {name: array.copy() for name, array in WEIGHTS.items()}
    worker.load_weights(weights, 1, mode)
    for array in weights.values():
        # Whoever hands weights over may change them afterwards.
        array.fill(float("nan"))
    assert worker.work([request("new", (2, 3, 4), FREE)], 0.0) == []
    groups = finished(worker, 2)
    assert drawn_by(groups["old"]) == [[0] if mode == "finish" else [0, 1]] * 2
    assert len(groups["old"].rollouts[0].segments) == (2 if mode == "recompute" else 1)
    fresh = RolloutWorker(folder, BuiltinSettings(), 1)
    fresh.load_weights(WEIGHTS, 1)
    fresh.work([request("new", (2, 3, 4), FREE)], 0.0)
    assert_same_samples(groups["new"], finished(fresh, 1)["new"])


def test_finish_takes_the_newest_of_the_weights_that_waited(folder: Path) -> None:
    worker = RolloutWorker(folder, BuiltinSettings(), 1)
    worker.work([request("a", (2, 3), FREE)], 0.0)
    worker._runner.step()
    for version in (1, 2):
        worker.load_weights(WEIGHTS, version, "finish")
    worker.work([request("b", (2, 3), FREE)], 0.0)
    groups = finished(worker, 2)
    assert [drawn_by(groups[name])[0] for name in "ab"] == [[0], [2]]
    worker.work([request("c", (2, 3), FREE)], 0.0)
    worker.load_weights(WEIGHTS, 3, "finish")
    worker.work([request("d", (2, 3), FREE)], 0.0)
    assert len(worker.abort()) == 1
    assert not finished(worker, 0)


def test_steady_worker_samples_what_a_waiting_one_samples(folder: Path) -> None:
    asked = [request(f"g{n}", (2, 3, 4 + n), FREE, range(n, n + 3)) for n in range(6)]
    steady, waiting = SteadyWorker(folder, BuiltinSettings(), 1), RolloutWorker(folder, BuiltinSettings(), 1)
    for worker in (steady, waiting):
        worker.load_weights(WEIGHTS, 4)
    steady.work(asked[:3], 0.0)
    steady.work(asked[3:], 0.0)
    waiting.work(asked, 0.0)
    wanted = finished(waiting, 6)
    for name, group in finished(steady, 6).items():
        assert_same_samples(group, wanted[name])
    assert steady.work([], 60.0) == [], "who has nothing to do says so at once"


def test_steady_worker_goes_on_while_nobody_asks_and_takes_weights_meanwhile(folder: Path) -> None:
    worker = SteadyWorker(folder, BuiltinSettings(), 1)
    long = SamplingSettings(max_new_tokens=60, ignore_stop=True)
    worker.work([request("g", (2, 3), long)], 0.0)
    worker.load_weights(WEIGHTS, 1, "recompute")
    with worker._changed:
        assert worker._changed.wait_for(lambda: bool(worker._finished), timeout=60)
    (group,) = worker.work([], 0.0)
    assert {version for versions in drawn_by(group) for version in versions} <= {0, 1}


def test_look_tells_what_is_under_way_so_that_another_worker_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steady_worker, "TELL_S", 0.0)
    long = request("g", (2, 3), SamplingSettings(max_new_tokens=40, ignore_stop=True))
    first, told = SteadyWorker(folder, BuiltinSettings(), 1), list[Progress]()
    worked = first.look([long], 0.0)
    while not worked.progress and not worked.groups:
        worked = first.look([], 0.05)
    told = [from_bytes(content) for group_id, content in worked.progress if group_id == "g"]
    asked = going_on(long, told)
    assert all(one.num_trained for one in asked.begun)
    other, whole = SteadyWorker(folder, BuiltinSettings(), 1), RolloutWorker(folder, BuiltinSettings(), 1)
    other.look([asked], 0.0)
    whole.work([long], 0.0)
    assert_same_samples(finished(other, 1)["g"], finished(whole, 1)["g"])
    drawn = other.statistics()["sampled_tokens"]
    assert drawn == 80 - sum(one.num_trained for one in asked.begun), "none is drawn again"


def test_sample_leaves_no_progress_of_its_own_groups_and_that_of_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steady_worker, "TELL_S", 0.0)
    pool = SteadyPool(folder, BuiltinSettings())
    long = SamplingSettings(max_new_tokens=60, ignore_stop=True)
    pool.submit([request("theirs", (2, 3), long)])
    pool.sample([request("own", (2, 3), FREE)], lambda group: None)
    assert {group_id for group_id, _ in pool.progress()} == {"theirs"}
    assert pool.progress() == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_ends_the_engine_of_a_steady_worker_is_raised_by_its_next_calls(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = SteadyWorker(folder, BuiltinSettings(), 1)
    with pytest.raises(ValueError, match="missing"):
        worker.load_weights({}, 1)
    with pytest.raises(ValueError, match="missing"):
        worker.work([request("g", (2, 3), FREE)], 5.0)
    other = SteadyWorker(folder, BuiltinSettings(), 1)

    def broken(engine: BuiltinEngine) -> list[Group]:
        raise RuntimeError("the cache is gone")

    monkeypatch.setattr(BuiltinEngine, "step", broken)
    with pytest.raises(RuntimeError, match="the cache is gone"):
        other.work([request("g", (2, 3), FREE)], 60.0)


def test_sample_keeps_groups_that_somebody_else_asked_for(folder: Path) -> None:
    pool = InlinePool(folder, BuiltinSettings(), RolloutSettings())
    short = SamplingSettings(max_new_tokens=2, ignore_stop=True)
    pool.submit([request("theirs", (2, 3), short)])
    seen: list[str] = []
    (own,) = pool.sample([request("own", (2, 3), FREE)], lambda group: seen.append(group.group_id))
    assert (own.group_id, seen) == ("own", ["own"])
    assert [group.group_id for group in pool.poll(0.0)] == ["theirs"]
    assert pool.poll(0.0) == []
    assert pool.idle_s() >= 0


def test_offered_weights_are_for_what_is_submitted_later(folder: Path) -> None:
    pool = InlinePool(folder, BuiltinSettings(), RolloutSettings())
    pool.submit([request("old", (2, 3), FREE)])
    pool.offer_weights(WEIGHTS, 1, "finish")
    pool.submit([request("new", (2, 3), FREE)])
    groups: dict[str, Group] = {}
    while len(groups) < 2:
        groups |= {group.group_id: group for group in pool.poll(5.0)}
    assert (drawn_by(groups["old"]), drawn_by(groups["new"])) == ([[0]] * 2, [[1]] * 2)
