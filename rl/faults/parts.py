"""The parts of a run that a plan of faults stands between: the learner's updates, the rewards, and MLflow."""

import math
from concurrent.futures import Future
from typing import Any, cast

from samepath.rewards.request import RewardRequest
from samepath.rewards.runner import RewardRunner
from samepath.rewards.score import Score, bounded_score
from samepath.rl.batch.train_batch import TrainBatch, UpdateReport
from samepath.rl.faults.injector import FaultInjector
from samepath.rl.learner.handle import LearnerHandle


def learner_with(faults: FaultInjector, learner: LearnerHandle) -> LearnerHandle:
    """The learner, behind the plan if there is one."""
    return cast(LearnerHandle, _Learner(learner, faults)) if faults.planned else learner


def runner_with(faults: FaultInjector, runner: RewardRunner) -> RewardRunner:
    """The reward children, behind the plan if there is one."""
    return cast(RewardRunner, _Runner(runner, faults)) if faults.planned else runner


class _Learner:
    """The learner, whose updates may get a log-probability that is NaN; everything else is the learner's own."""

    def __init__(self, learner: LearnerHandle, faults: FaultInjector) -> None:
        self._learner, self._faults = learner, faults

    def update(self, batch: TrainBatch) -> UpdateReport:
        """See `LearnerHandle.update`."""
        return self._learner.update(self._faults.spoiled(batch))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._learner, name)


class _Runner:
    """Reward children, of which one may give NaN; everything else is the runner's own."""

    def __init__(self, runner: RewardRunner, faults: FaultInjector) -> None:
        self._runner, self._faults = runner, faults

    def submit(self, request: RewardRequest) -> "Future[Score]":
        """See `RewardRunner.submit`."""
        if not self._faults.spoils(request.rollout_key):
            return self._runner.submit(request)
        future: Future[Score] = Future()
        future.set_result(bounded_score(math.nan, {}, math.inf))
        return future

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)
