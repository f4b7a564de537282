"""The step that is made ready beside the running update: begun while that runs, equal to one that is made afterwards, its errors in its turn."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.cluster import simulated
from benchmarks.cluster_case import ClusterCase
from benchmarks.cluster_parts import CoinRunner, SleepingLearner
from samepath.rewards.score import Score
from samepath.rl.batch.failed_share import TooManyFailuresError
from samepath.rl.batch.score_groups import GroupScorer
from samepath.rl.batch.train_batch import TrainBatch, UpdateReport
from samepath.rl.overlapped_loop import OverlappedLoop, _Ahead

CASE = ClusterCase(
    workers=2,
    slots=4,
    token_s=0.0001,
    groups=3,
    group_size=4,
    lag=1,
    ranks=1,
    rank_tokens_per_s=1e6,
    median=8,
    sigma=0.7,
)
STEPS = 4


class WaitingLearner(SleepingLearner):
    """Learns a batch until `ready` says so; keeps the batches."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        super().__init__(CASE)
        self.ready = ready
        self.batches: list[TrainBatch] = []

    def update(self, batch: TrainBatch) -> UpdateReport:
        self.batches.append(batch)
        deadline = time.monotonic() + 30.0
        while not self.ready():
            assert time.monotonic() < deadline, "the next step was not made ready beside the update"
            time.sleep(0.001)
        return super().update(batch)


class Failing(CoinRunner):
    """Fails from the third step on."""

    def submit(self, request: Any) -> Any:
        future = super().submit(request)
        if request.rollout_key.startswith(("s3-", "s4-")):
            future = type(future)()
            future.set_result(Score(total=0.0, parts={}, status="error", detail="no"))
        return future


def ran(folder: Path, ready: Callable[[OverlappedLoop], bool]) -> tuple[WaitingLearner, list[dict[str, float]]]:
    """The batches and metrics of a run whose updates wait for `ready`."""
    loop, _ = simulated(CASE, STEPS, folder)
    learner, seen = WaitingLearner(lambda: ready(loop)), list[dict[str, float]]()
    object.__setattr__(loop, "learner", learner)
    loop.run(0, lambda step, metrics: seen.append(metrics))
    return learner, seen


def made_ready(loop: OverlappedLoop) -> bool:
    """Whether the next step is, or there is none."""
    learner: Any = loop.learner
    return len(learner.batches) == STEPS or (loop._ahead.begun is not None and loop._ahead.begun.done)


def test_next_step_is_made_ready_beside_the_update_and_equals_one_made_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead, metrics = ran(tmp_path / "ahead", made_ready)
    monkeypatch.setattr(_Ahead, "begin", lambda *arguments: None)
    after, plain = ran(tmp_path / "after", lambda loop: True)
    assert len(ahead.batches) == len(after.batches) == STEPS
    for one, other in zip(ahead.batches, after.batches, strict=True):
        assert (one.names, one.datasets) == (other.names, other.datasets)
        for name in ("rollout_S", "advantages_B", "group_B", "in_loss_B"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
        for entry, same in zip(one.sequences, other.sequences, strict=True):
            assert np.array_equal(entry.segment.token_ids, same.segment.token_ids)
            assert entry.name == same.name
    kinds = ("reward/", "rollout/length", "rollout/count")
    for row, same_row in zip(metrics, plain, strict=True):
        assert {k: v for k, v in row.items() if k.startswith(kinds)} == {
            k: v for k, v in same_row.items() if k.startswith(kinds)
        }


def test_error_of_a_step_that_is_made_ready_comes_after_the_step_before_is_done(tmp_path: Path) -> None:
    seen: list[int] = []
    loop, _ = simulated(CASE, STEPS, tmp_path)
    learner = WaitingLearner(
        lambda: len(learner.batches) < 2 or (loop._ahead.begun is not None and loop._ahead.begun.done)
    )
    scorer = GroupScorer(Failing(), 0.5)  # type: ignore[arg-type]
    object.__setattr__(loop, "learner", learner)
    object.__setattr__(loop, "scorer", scorer)
    loop.stream.scorer = scorer
    with pytest.raises(TooManyFailuresError, match="error in rollout s3-"):
        loop.run(0, lambda step, metrics: seen.append(step))
    assert seen == [1, 2]
