"""Where groups are sampled: the interface of a pool of rollout workers, and the pool of one worker in this process."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from samepath.model.placement import ON_CPU, Placement
from samepath.rollout.engine_settings import EngineSettings, describe
from samepath.rollout.environments.request import Request
from samepath.rollout.pool.settings import RolloutSettings
from samepath.rollout.pool.worker import RolloutWorker
from samepath.rollout.types import Group

Weights = Mapping[str, NDArray[np.float32] | Tensor] | Any
"""Weights under their published names (tensors for a pool in the same process, which copies them on the device), or a Ray reference to them,
which `RayPool` passes on as it is."""


def worker_environment(
    engine: EngineSettings, settings: RolloutSettings, environment: Mapping[str, str]
) -> dict[str, str]:
    """Variables of a worker's process: its threads, what its engine needs, and the caller's own on top."""
    threads = {"OMP_NUM_THREADS": str(settings.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    return {**threads, **describe(engine).environment(engine), **environment}


class RolloutPool(Protocol):
    """Samples groups with the weights it was given last."""

    def sample(self, requests: Sequence[Request], on_group: Callable[[Group], None]) -> list[Group]:
        """Answer all requests, in request order; `on_group` is called as each is finished."""
        ...

    def load_weights(self, tensors: Weights, version: int) -> None:
        """Hand new weights to every worker before any further sampling."""
        ...

    def statistics(self) -> dict[str, float]:
        """Totals over the workers, `replaced_workers` among them."""
        ...

    def close(self) -> None:
        """Give everything back; bounded."""
        ...


class InlinePool:
    """One worker in this process: for debugging, notebooks and machines without Ray."""

    def __init__(
        self, model_folder: Path, engine: EngineSettings, settings: RolloutSettings, placement: Placement = ON_CPU
    ) -> None:
        if describe(engine).own_process:
            raise ValueError(
                f"engine.kind {engine.kind} changes the process it lives in, so not this one: use ProcessPool"
            )
        self._worker = RolloutWorker(model_folder, engine, settings.threads, placement)

    def sample(self, requests: Sequence[Request], on_group: Callable[[Group], None]) -> list[Group]:
        """Answer all requests, in request order."""
        done: dict[str, Group] = {}
        pending: Sequence[Request] = requests
        while len(done) < len(requests):
            for group in self._worker.work(pending, slice_s=1.0):
                done[group.group_id] = group
                on_group(group)
            pending = ()
        return [done[request.group_id] for request in requests]

    def load_weights(self, tensors: Weights, version: int) -> None:
        """Copy the weights into the worker's model."""
        self._worker.load_weights(tensors, version)

    def statistics(self) -> dict[str, float]:
        """The worker's totals."""
        return {**self._worker.statistics(), "replaced_workers": 0.0}

    def close(self) -> None:
        """Drop unfinished work."""
        self._worker.abort()
