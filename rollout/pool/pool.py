"""Where groups are sampled: the interface of a pool of rollout workers, and the pool of one worker in this process."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from samepath.model.placement import ON_CPU, Placement
from samepath.rollout.engine_settings import EngineSettings, describe
from samepath.rollout.environments.request import Request
from samepath.rollout.pool.settings import OnNewWeights, RolloutSettings
from samepath.rollout.pool.worker import RolloutWorker
from samepath.rollout.types import Group
from samepath.rollout.weights.publication import Weights, here, publication


def worker_environment(
    engine: EngineSettings, settings: RolloutSettings, environment: Mapping[str, str]
) -> dict[str, str]:
    """Variables of a worker's process: its threads, what its engine needs, and the caller's own on top."""
    threads = {"OMP_NUM_THREADS": str(settings.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    return {**threads, **describe(engine).environment(engine), **environment}


SLICE_S = 2.0
"""Longest time that one call works before it reports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """What it took to bring one version of the weights to the workers.

    Example:
        Handover(load_s=0.2, sent_bytes=538 << 20)
    """

    load_s: float = 0.0
    """Seconds of the slowest worker in putting them together and comparing them with what was published."""
    sent_bytes: int = 0
    """That left the process of the learner, once for all workers."""


class RolloutPool(Protocol):
    """Samples groups with the weights it was given last."""

    def submit(self, requests: Sequence[Request]) -> None:
        """Take requests to be sampled, in this order, and return at once."""
        ...

    def poll(self, wait_s: float) -> list[Group]:
        """Groups that were finished since the last call; without any, waits for the first, `wait_s` seconds at most."""
        ...

    def progress(self) -> list[tuple[str, bytes]]:
        """What samples under way were said to have drawn since the last call: (group id, a `Progress` as bytes), each group's in order.

        Nothing from a pool whose engine works only while it is polled, or cannot go on behind tokens drawn elsewhere.
        """
        ...

    def sample(self, requests: Sequence[Request], on_group: Callable[[Group], None]) -> list[Group]:
        """Answer all requests, in request order; `on_group` is called as each is finished."""
        ...

    def load_weights(self, weights: Weights, version: int) -> None:
        """Hand new weights to every worker before any further sampling. Raises WeightsError for one that has others then."""
        ...

    def offer_weights(self, weights: Weights, version: int, on_new_weights: OnNewWeights) -> None:
        """Hand new weights to every worker while samples are under way; whatever is submitted later is sampled with them."""
        ...

    def handover(self) -> Handover:
        """What the newest weights took, as far as workers have said so."""
        ...

    def idle_s(self) -> float:
        """Seconds since the pool was made in which a worker had nothing to sample, mean over the workers."""
        ...

    def statistics(self) -> dict[str, float]:
        """Totals over the workers, `replaced_workers` among them."""
        ...

    def close(self) -> None:
        """Give everything back; bounded."""
        ...


class IdleClock:
    """Seconds in which one worker had nothing to do."""

    def __init__(self) -> None:
        self._total_s, self._since = 0.0, time.monotonic()
        self._idle = True

    def set(self, *, idle: bool) -> None:
        """Say whether it has nothing to do from now on."""
        now = time.monotonic()
        self._total_s, self._since, self._idle = self._total_s + (now - self._since) * self._idle, now, idle

    @property
    def seconds(self) -> float:
        """So far."""
        return self._total_s + (time.monotonic() - self._since) * self._idle


class PolledPool(ABC):
    """What pools have in common: `sample` waits for its own groups and keeps others that end meanwhile for the next `poll`."""

    def __init__(self) -> None:
        self._others: list[Group] = []
        self._fresh_progress: list[tuple[str, bytes]] = []

    @abstractmethod
    def submit(self, requests: Sequence[Request]) -> None:
        """See `RolloutPool.submit`."""

    @abstractmethod
    def _poll(self, wait_s: float) -> list[Group]:
        """See `RolloutPool.poll`."""

    def poll(self, wait_s: float) -> list[Group]:
        """See `RolloutPool.poll`."""
        others, self._others = self._others, []
        return others or self._poll(wait_s)

    def progress(self) -> list[tuple[str, bytes]]:
        """See `RolloutPool.progress`."""
        progress, self._fresh_progress = self._fresh_progress, []
        return progress

    def sample(self, requests: Sequence[Request], on_group: Callable[[Group], None]) -> list[Group]:
        """Answer all requests, in request order. Groups that were finished before a worker failed are kept."""
        self.submit(requests)
        wanted, done = {request.group_id for request in requests}, dict[str, Group]()
        while len(done) < len(requests):
            groups = self._poll(SLICE_S)
            # Who waits for whole groups asks for nothing before: it would only pile up.
            self._fresh_progress = [one for one in self._fresh_progress if one[0] not in wanted]
            for group in groups:
                if group.group_id in wanted:
                    done[group.group_id] = group
                    on_group(group)
                else:
                    self._others.append(group)
        return [done[request.group_id] for request in requests]


class InlinePool(PolledPool):
    """One worker in this process: for debugging, notebooks and machines without Ray."""

    def __init__(
        self, model_folder: Path, engine: EngineSettings, settings: RolloutSettings, placement: Placement = ON_CPU
    ) -> None:
        if describe(engine).own_process:
            raise ValueError(
                f"engine.kind {engine.kind} changes the process it lives in, so not this one: use ProcessPool"
            )
        super().__init__()
        self._worker = RolloutWorker(model_folder, engine, settings.threads, placement)
        self._fresh: list[Request] = []
        self._clock = IdleClock()
        self._handover = Handover()

    def submit(self, requests: Sequence[Request]) -> None:
        """See `RolloutPool.submit`; they are worked on while somebody polls."""
        self._fresh += requests

    def _poll(self, wait_s: float) -> list[Group]:
        fresh, self._fresh = self._fresh, []
        self._clock.set(idle=False)
        groups = self._worker.work(fresh, wait_s)
        self._clock.set(idle=True)
        return groups

    def load_weights(self, weights: Weights, version: int) -> None:
        """Let the worker share the learner's tensors, or copy them."""
        given = publication(weights, version)
        if given.policy is not None and self._worker.share_weights(given.policy, version):
            self._handover = Handover()
            return
        self._handover = Handover(load_s=self._worker.load_weights(here(given), version))

    def offer_weights(self, weights: Weights, version: int, on_new_weights: OnNewWeights) -> None:
        """See `RolloutPool.offer_weights`."""
        # What was submitted before is sampled with the weights before.
        fresh, self._fresh = self._fresh, []
        self._others += self._worker.work(fresh, 0.0)
        load_s = self._worker.load_weights(here(publication(weights, version)), version, on_new_weights)
        self._handover = Handover(load_s=load_s)

    def handover(self) -> Handover:
        """See `RolloutPool.handover`: no byte leaves this process."""
        return self._handover

    def idle_s(self) -> float:
        """See `RolloutPool.idle_s`: whenever nobody polls."""
        return self._clock.seconds

    def statistics(self) -> dict[str, float]:
        """The worker's totals."""
        return {**self._worker.statistics(), "replaced_workers": 0.0}

    def close(self) -> None:
        """Drop unfinished work."""
        self._fresh = []
        self._worker.abort()
