"""A rollout worker that never waits for its caller: a thread of its own steps the engine, and calls only hand over and fetch."""

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samepath.model.placement import ON_CPU, Placement
from samepath.rollout.capabilities import refusal
from samepath.rollout.engine_description import Capability
from samepath.rollout.engine_settings import EngineSettings
from samepath.rollout.environments.request import Request
from samepath.rollout.pool.settings import OnNewWeights
from samepath.rollout.pool.worker import RolloutWorker
from samepath.rollout.record_bytes import as_bytes
from samepath.rollout.types import Group
from samepath.rollout.weights.publication import Arrived

LOOK_S = 0.5
"""How often who waits looks whether the thread has failed."""


TELL_S = 0.2
"""How often what samples under way have drawn is told: what a worker that is lost had drawn since is drawn again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worked:
    """What a steady worker has done since the last look.

    Example:
        Worked(groups=[group], progress=[("s3-g1", as_bytes(progress))])
    """

    groups: list[Group]
    """Groups that have ended."""
    progress: list[tuple[str, bytes]]
    """Of groups under way, by id: a `Progress` each, in order."""


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
        self._progress: list[tuple[str, bytes]] = []
        self._tells = not refusal(Capability.GO_ON, settings)
        self._told_s = time.monotonic()
        self._idle = True
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="samepath-engine", daemon=True).start()

    def work(self, requests: Sequence[Request], slice_s: float) -> list[Group]:
        """As `look`; returns the groups alone."""
        return self.look(requests, slice_s).groups

    def look(self, requests: Sequence[Request], slice_s: float) -> Worked:
        """Queue `requests`; returns what was done since the last call, as soon as a group is finished, nothing is left, or after `slice_s`."""
        if requests:
            self._order(lambda: self._submitted(requests))
        deadline = time.monotonic() + slice_s
        with self._changed:
            while not self._finished and not self._idle and time.monotonic() < deadline:
                self._check()
                self._wait(deadline - time.monotonic())
            self._check()
            worked = Worked(groups=self._finished, progress=self._progress)
            self._finished, self._progress = [], []
        return worked

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
            told = self._told()
            with self._changed:
                self._progress += told
                self._finished += groups
                self._changed.notify_all()

    def _told(self) -> list[tuple[str, bytes]]:
        """What samples under way drew, every TELL_S."""
        now = time.monotonic()
        if not self._tells or now < self._told_s + TELL_S:
            return []
        self._told_s = now
        return [(one.group_id, as_bytes(one)) for one in self.engine.progress()]
