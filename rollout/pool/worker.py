"""A rollout worker: one engine and the calls that the driver makes on it, in its own process under Ray or in the driver's."""

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from samepath.model.placement import ON_CPU, DeviceName, Placement
from samepath.rollout.capabilities import refusal
from samepath.rollout.engine import build_engine
from samepath.rollout.engine_description import Capability
from samepath.rollout.engine_settings import EngineSettings, describe
from samepath.rollout.environments.episode_runner import EpisodeRunner
from samepath.rollout.environments.request import Request
from samepath.rollout.pool.settings import OnNewWeights
from samepath.rollout.types import Group
from samepath.rollout.weights.bucket import Bucket
from samepath.rollout.weights.mark import Header, WeightsError, require_equal
from samepath.rollout.weights.publication import Arrived, arrived, here, publication
from samepath.rollout.weights.shared_memory import Held


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
        self._waiting: list[Arrived] = []
        """Weights that wait until nothing is under way: one version, or one and the changes of it that came since."""
        self._fingerprint = ""
        """Of the weights that the engine holds, as far as they were published."""
        self._held: list[Request] = []
        """What is to be sampled with them."""

    def load_weights(
        self,
        weights: Arrived | Mapping[str, NDArray[np.float32] | Tensor],
        version: int,
        on_new_weights: OnNewWeights = "continue",
    ) -> float:
        """Take weights, tensors alone only from the same process; returns the seconds that took, 0 where they wait.

        Whatever is asked for later is sampled with them. `finish` lets what is under way end first. Raises WeightsError if the engine does not
        hold what was published.
        """
        arrival = weights if isinstance(weights, Arrived) else here(publication(weights, version))
        before = self._waiting if arrival.header.base else []
        if on_new_weights == "finish" and self._runner.busy:
            self._waiting = [*before, arrival.kept()]
            return 0.0
        self._waiting = [*before, arrival]
        return self._take_waiting(recompute=on_new_weights == "recompute")

    def take_buckets(self, version: int, on_new_weights: OnNewWeights, head: Header, *buckets: Bucket) -> float:
        """See `load_weights`: weights from an object store."""
        return self.load_weights(arrived(head, buckets, stays=True), version, on_new_weights)

    def take_shared(self, version: int, on_new_weights: OnNewWeights, head: Header, held: Sequence[Held]) -> float:
        """See `load_weights`: weights from memory that the caller writes again."""
        return self.load_weights(arrived(head, (one.bucket() for one in held), stays=False), version, on_new_weights)

    def share_weights(self, policy: nn.Module, version: int) -> bool:
        """Let the engine sample from the tensors of the learner's policy themselves, in the same process; False where it has to copy."""
        return not self._runner.busy and self.engine.share_weights(policy, version)

    def _take_waiting(self, *, recompute: bool = False) -> float:
        """Take what waits, in order; returns the seconds."""
        waiting, self._waiting = self._waiting, []
        return sum(self._take(arrival, recompute=recompute) for arrival in waiting)

    def _take(self, arrival: Arrived, *, recompute: bool = False) -> float:
        """Put weights together in the engine, and hold them against what the learner knows of them."""
        started = time.perf_counter()
        head, who = arrival.header, f"rollout worker (process {self.process_id()} on {socket.gethostname()})"
        at_first = self.engine.held_weights()
        tensors = self._completed(arrival, at_first, who) if head.base else arrival.tensors
        if at_first is None:
            require_equal(head, tensors, who)
        self.engine.load_weights(tensors, head.version, recompute=recompute)
        if at_first is not None:
            require_equal(head, _comparable(tensors, self.engine.held_weights() or {}), who)
        self._fingerprint = head.fingerprint
        return time.perf_counter() - started

    def _completed(self, arrival: Arrived, held: Mapping[str, Tensor] | None, who: str) -> Mapping[str, Tensor]:
        """All tensors of a version that is told as changes, which are written into the engine's own."""
        head = arrival.header
        if held is None or self._fingerprint != head.base:
            raise WeightsError(
                f"{who} must hold the weights with fingerprint {head.base}, whose changes version {head.version} is told as; it holds "
                f"{self._fingerprint or 'others'}. Set learner.weight_deltas=false."
            )
        for name, change in arrival.changes.items():
            change.write(held[name])
        return {name: arrival.tensors[name] if name in arrival.tensors else held[name] for name in head.marks}

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
        if self._waiting:
            self._held += requests
            return []
        return [group for group in map(self._runner.submit, requests) if group is not None]

    def _stepped(self) -> list[Group]:
        """One step; where it ends what was under way, weights that waited are taken, and what waited for them is queued."""
        finished = self._runner.step()
        if self._waiting and not self._runner.busy:
            self._take_waiting()
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


def _comparable(tensors: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What an engine holds of the published tensors; in place of those that it rounds or lays out otherwise, what arrived."""
    return {
        name: held[name]
        if name in held and (held[name].dtype, held[name].shape) == (tensor.dtype, tensor.shape)
        else tensor
        for name, tensor in tensors.items()
    }


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
