"""A rollout worker that never waits for its caller: a thread of its own steps the engine, and calls only hand over and fetch."""

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samepath.model.placement import ON_CPU, Placement
from samepath.rollout.engine_settings import EngineSettings
from samepath.rollout.environments.request import Request
from samepath.rollout.pool.settings import OnNewWeights
from samepath.rollout.pool.worker import RolloutWorker
from samepath.rollout.types import Group
from samepath.rollout.weights.publication import Arrived

LOOK_S = 0.5
"""How often who waits looks whether the thread has failed."""


class SteadyWorker(RolloutWorker):
    """The calls of a `RolloutWorker`, between which the engine goes on. What the thread raises, the next call raises."""

    def __init__(
        self, model_folder: Path, settings: EngineSettings, threads: int, placement: Placement = ON_CPU
    ) -> None:
        super().__init__(model_folder, settings, threads, placement)
        self._changed = threading.Condition()
        self._orders: list[Callable[[], list[Group]]] = []
        """What is to be done between two steps, in order."""
        self._finished: list[Group] = []
        self._idle = True
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="samepath-engine", daemon=True).start()

    def work(self, requests: Sequence[Request], slice_s: float) -> list[Group]:
        """Queue `requests`; returns what was finished since the last call, as soon as there is anything, nothing is left, or after `slice_s`."""
        if requests:
            self._order(lambda: self._submitted(requests))
        deadline = time.monotonic() + slice_s
        with self._changed:
            while not self._finished and not self._idle and time.monotonic() < deadline:
                self._check()
                self._wait(deadline - time.monotonic())
            self._check()
            finished, self._finished = self._finished, []
        return finished

    def load_weights(
        self,
        weights: Arrived | Mapping[str, NDArray[np.float32] | Tensor],
        version: int,
        on_new_weights: OnNewWeights = "continue",
    ) -> float:
        """See `RolloutWorker.load_weights`; returns once the weights are taken between two steps, or wait for what is under way to end."""
        taken: list[float] = []

        def load() -> list[Group]:
            taken.append(super(SteadyWorker, self).load_weights(weights, version, on_new_weights))
            return []

        self._order(load)
        with self._changed:
            while not taken:
                self._wait(LOOK_S)
                self._check()
        return taken[0]

    def _order(self, order: Callable[[], list[Group]]) -> None:
        with self._changed:
            self._check()
            self._orders.append(order)
            self._idle = False
            self._changed.notify_all()

    def _wait(self, limit_s: float) -> None:
        self._changed.wait(min(max(limit_s, 0.0), LOOK_S))

    def _check(self) -> None:
        """Raise what ended the thread."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        """Body of the thread."""
        try:
            self._steps()
        finally:
            self._error = sys.exception()

    def _steps(self) -> None:
        """Orders, then a step, again and again."""
        if self._threads:
            torch.set_num_threads(self._threads)
        while True:
            with self._changed:
                while not (self._orders or self._runner.busy):
                    self._idle = True
                    self._changed.notify_all()
                    self._changed.wait(LOOK_S)
                orders, self._orders = self._orders, []
            groups = [group for order in orders for group in order()]
            if self._runner.busy:
                groups += self._stepped()
            with self._changed:
                self._finished += groups
                self._changed.notify_all()
