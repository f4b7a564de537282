"""An engine in the process of a learner rank, which samples from that rank's own tensors: no weight is sent."""

import time
from collections.abc import Sequence
from pathlib import Path

from samepath.model.placement import Placement
from samepath.rl.learner.learner import Learner
from samepath.rollout.engine_settings import EngineSettings
from samepath.rollout.environments.request import Request
from samepath.rollout.pool.settings import OnNewWeights
from samepath.rollout.pool.worker import RolloutWorker
from samepath.rollout.types import Group
from samepath.rollout.weights.publication import here


class RankSampler:
    """One of the engines of a `RankPool`, in a process beside the driver's."""

    def __init__(
        self, learner: Learner, model_folder: Path, engine: EngineSettings, threads: int, placement: Placement
    ) -> None:
        self._learner = learner
        self._worker = RolloutWorker(model_folder, engine, threads, placement)

    def take_weights(self, version: int, on_new_weights: OnNewWeights | None) -> float:
        """Sample from the learner's weights from now on; None where nothing is under way. Returns the seconds that a copy took.

        Raises ValueError if the learner has another version.
        """
        given = self._learner.weights()
        if given.version != version:
            raise ValueError(f"a learner rank must hold weights of version {version}; it has {given.version}")
        if on_new_weights is None and given.policy is not None and self._worker.share_weights(given.policy, version):
            return 0.0
        return self._worker.load_weights(here(given), version, on_new_weights or "continue")

    def work(self, requests: Sequence[Request], slice_s: float) -> list[Group]:
        """Queue `requests`, then sample until nothing is left or `slice_s` seconds have passed; returns the groups that were finished."""
        deadline = time.monotonic() + slice_s
        finished = fresh = self._worker.work(requests, slice_s)
        while fresh and (left_s := deadline - time.monotonic()) > 0:
            fresh = self._worker.work([], left_s)
            finished += fresh
        return finished

    def statistics(self) -> dict[str, float]:
        """See `RolloutWorker.statistics`."""
        return self._worker.statistics()
