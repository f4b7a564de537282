"""A pool of one steady worker in this process: what a run under Ray has, without Ray, so that a test may start and kill many runs."""

import sys
from collections.abc import Sequence
from pathlib import Path

from samepath.model.placement import ON_CPU, Placement
from samepath.rollout.engine_settings import EngineSettings
from samepath.rollout.environments.request import Request
from samepath.rollout.pool.pool import Handover, PolledPool
from samepath.rollout.pool.settings import OnNewWeights
from samepath.rollout.pool.steady_worker import SteadyWorker
from samepath.rollout.types import Group
from samepath.rollout.weights.publication import Weights, here, publication


class SteadyPool(PolledPool):
    """The engine works in a thread of its own."""

    def __init__(self, folder: Path, engine: EngineSettings, placement: Placement = ON_CPU) -> None:
        super().__init__()
        self._worker = SteadyWorker(folder, engine, 1, placement)

    def submit(self, requests: Sequence[Request]) -> None:
        """At once."""
        self._others += self._looked(requests, 0.0)

    def _poll(self, wait_s: float) -> list[Group]:
        return self._looked([], wait_s)

    def _looked(self, requests: Sequence[Request], wait_s: float) -> list[Group]:
        worked = self._worker.look(requests, wait_s)
        self._fresh_progress += worked.progress
        return worked.groups

    def load_weights(self, weights: Weights, version: int) -> None:
        """As `offer_weights`; what is under way goes on."""
        self.offer_weights(weights, version, "continue")

    def offer_weights(self, weights: Weights, version: int, on_new_weights: OnNewWeights) -> None:
        """Copied, because the learner goes on with its own."""
        self._worker.load_weights(here(publication(weights, version)).kept(), version, on_new_weights)

    def handover(self) -> Handover:
        """Not measured."""
        return Handover(sent_bytes=0, load_s=0.0)

    def idle_s(self) -> float:
        """Not measured."""
        return 0.0

    def statistics(self) -> dict[str, float]:
        """The worker's totals."""
        return {**self._worker.statistics(), "replaced_workers": 0.0}

    def close(self) -> None:
        """End the thread before its next step."""
        self._worker._orders.append(sys.exit)
