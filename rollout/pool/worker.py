"""A rollout worker: one engine and the calls that the driver makes on it, in its own process under Ray or in the driver's."""

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from samepath.model.placement import ON_CPU, DeviceName, Placement
from samepath.rollout.capabilities import refusal
from samepath.rollout.engine import build_engine
from samepath.rollout.engine_description import Capability
from samepath.rollout.engine_settings import EngineSettings, describe
from samepath.rollout.environments.episode_runner import EpisodeRunner
from samepath.rollout.environments.request import Request
from samepath.rollout.pool.settings import OnNewWeights
from samepath.rollout.types import Group


class RolloutWorker:
    """Owns an engine, and leads the conversations whose messages it draws. Requests go in with `work`, finished groups come out of it."""

    def __init__(
        self, model_folder: Path, settings: EngineSettings, threads: int, placement: Placement = ON_CPU
    ) -> None:
        # An engine that owns its process takes its threads from OMP_NUM_THREADS; vLLM even makes the call below do nothing.
        self._threads = 0 if describe(settings).own_process else threads
        if self._threads:
            torch.set_num_threads(threads)
        self._placement = placement
        self.engine = build_engine(model_folder, settings, placement)
        exact = placement.batch_invariant and not refusal(Capability.BATCH_INVARIANT, settings)
        self._runner = EpisodeRunner(self.engine, exact=exact)
        self._next: tuple[dict[str, Tensor], int] | None = None
        """Weights that wait until nothing is under way."""
        self._held: list[Request] = []
        """What is to be sampled with them."""

    def load_weights(
        self,
        tensors: Mapping[str, NDArray[np.float32] | Tensor],
        version: int,
        on_new_weights: OnNewWeights = "continue",
    ) -> int:
        """Take weights (published names; tensors only from the same process) and return their version.

        Whatever is asked for later is sampled with them. `finish` lets what is under way end first.
        """
        if on_new_weights == "finish" and self._runner.busy:
            self._next = (_kept(tensors), version)
            return version
        self._next = None
        self.engine.load_weights(_views(tensors), version, recompute=on_new_weights == "recompute")
        return version

    def work(self, requests: Sequence[Request], slice_s: float) -> list[Group]:
        """Queue `requests`, then step until a group is finished, nothing is left, or `slice_s` seconds have passed."""
        if self._threads:
            torch.set_num_threads(self._threads)
        finished = self._submitted(requests)
        deadline = time.monotonic() + slice_s
        while self._runner.busy and not finished and time.monotonic() < deadline:
            finished += self._stepped()
        return finished

    def _submitted(self, requests: Sequence[Request]) -> list[Group]:
        """Queue requests, behind the weights that wait if there are any; returns groups that can never run."""
        if self._next is not None:
            self._held += requests
            return []
        return [group for group in map(self._runner.submit, requests) if group is not None]

    def _stepped(self) -> list[Group]:
        """One step; where it ends what was under way, weights that waited are taken, and what waited for them is queued."""
        finished = self._runner.step()
        if self._next is not None and not self._runner.busy:
            (weights, version), self._next = self._next, None
            self.engine.load_weights(weights, version)
            held, self._held = self._held, []
            finished += self._submitted(held)
        return finished

    def abort(self) -> list[Group]:
        """Drop unfinished work; partial groups come back, of those that waited for weights nothing."""
        self._held = []
        return self._runner.abort()

    def statistics(self) -> dict[str, float]:
        """Engine totals, and `peak_bytes` of this process."""
        return {
            **asdict(self.engine.counters),
            "peak_bytes": float(peak_memory_bytes()),
            **gpu_statistics(self._placement.device),
        }

    def process_id(self) -> int:
        """Operating-system process, for people and fault tests."""
        return os.getpid()


def _views(tensors: Mapping[str, NDArray[np.float32] | Tensor]) -> dict[str, Tensor]:
    """The arrays as tensors that share their memory."""
    with warnings.catch_warnings():
        # Ray's arrays are read-only views of shared memory. The engine only reads them, so they need no copy.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return {
            name: array if isinstance(array, Tensor) else torch.from_numpy(array) for name, array in tensors.items()
        }


def _kept(tensors: Mapping[str, NDArray[np.float32] | Tensor]) -> dict[str, Tensor]:
    """The same, copied where their owner may change them later."""
    shared = {name for name, array in tensors.items() if isinstance(array, np.ndarray) and not array.flags.writeable}
    return {name: view if name in shared else view.clone() for name, view in _views(tensors).items()}


def gpu_statistics(device: DeviceName) -> dict[str, float]:
    """`gpu_peak_bytes`: most memory that this process's tensors held on its GPU at one time; nothing on the CPU."""
    return {"gpu_peak_bytes": float(torch.cuda.max_memory_allocated())} if device == "cuda" else {}


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far, bytes (current size where the system keeps no peak)."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)
