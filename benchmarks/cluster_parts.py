"""Rollout workers and a learner that sleep, behind the interfaces of the real ones: what is left is the driver."""

import heapq
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.cluster_case import ClusterCase
from samepath.model.text.tokenizer import Tokenizer
from samepath.rewards.request import RewardRequest
from samepath.rewards.score import Score
from samepath.rl.batch.train_batch import TrainBatch, UpdateReport
from samepath.rollout.environments.request import Request
from samepath.rollout.pool.pool import Handover, PolledPool
from samepath.rollout.pool.settings import OnNewWeights
from samepath.rollout.record import SampledTokens, SegmentParts, groups_at_end, sampled_rollout
from samepath.rollout.request import GroupRequest, GroupState
from samepath.rollout.types import Group
from samepath.rollout.weights.publication import Publication, Weights

MOE_LAYERS, CHOSEN = 3, 2
"""Layers and experts of a token in the records: the quickstart's."""


@dataclass(order=True, slots=True)
class _Sample:
    """One sample under way, ordered by its end."""

    end_s: float
    number: int
    state: GroupState = field(compare=False)
    index: int = field(compare=False)
    length: int = field(compare=False)
    version: int = field(compare=False)


class SleepingPool(PolledPool):
    """Workers whose samples take their length times `token_s`, on W·S slots that are filled in the order of asking.

    `cpu_s` is what making the records took: an engine's work, not the driver's.
    """

    def __init__(self, case: ClusterCase, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._case, self._tokenizer = case, tokenizer
        self._free = case.workers * case.slots
        self._waiting = deque[tuple[GroupState, int]]()
        self._running: list[_Sample] = []
        self._started = 0
        self._version = 0
        self._idle_s, self._since = 0.0, time.monotonic()
        self.cpu_s = 0.0

    def submit(self, requests: Sequence[Request]) -> None:
        """See `RolloutPool.submit`."""
        now = time.monotonic()
        for request in requests:
            assert isinstance(request, GroupRequest)
            state = GroupState(request=request, submitted_s=now)
            self._waiting += [(state, index) for index in range(len(request.seeds))]
        self._fill(now)

    def _poll(self, wait_s: float) -> list[Group]:
        now = time.monotonic()
        if not (self._running and self._running[0].end_s <= now):
            until = min([now + wait_s, *(one.end_s for one in self._running[:1])])
            time.sleep(max(until - now, 0.0))
        groups: list[Group] = []
        now = time.monotonic()
        while self._running and self._running[0].end_s <= now:
            sample = heapq.heappop(self._running)
            # The slot was free at the sample's own end, however late the driver looks.
            self._fill(sample.end_s, freed=1)
            groups += self._ended(sample)
        return groups

    def load_weights(self, tensors: Weights, version: int) -> None:
        """See `RolloutPool.load_weights`."""
        self._version = version

    def offer_weights(self, tensors: Weights, version: int, on_new_weights: OnNewWeights) -> None:
        """See `RolloutPool.offer_weights`: samples that start later have them."""
        self._version = version

    def handover(self) -> Handover:
        """See `RolloutPool.handover`: nothing is handed over."""
        return Handover()

    def idle_s(self) -> float:
        """See `RolloutPool.idle_s`: seconds of empty slots, mean over the slots."""
        self._count(time.monotonic())
        return self._idle_s

    def statistics(self) -> dict[str, float]:
        """See `RolloutPool.statistics`."""
        return {"replaced_workers": 0.0}

    def close(self) -> None:
        """See `RolloutPool.close`."""

    def _fill(self, now: float, freed: int = 0) -> None:
        self._count(max(now, self._since))
        self._free += freed
        while self._free and self._waiting:
            state, index = self._waiting.popleft()
            length = self._case.length(state.request.seeds[index])
            self._started += 1
            end_s = now + length * self._case.token_s
            heapq.heappush(self._running, _Sample(end_s, self._started, state, index, length, self._version))
            self._free -= 1

    def _count(self, now: float) -> None:
        self._idle_s += (now - self._since) * self._free / (self._case.workers * self._case.slots)
        self._since = now

    def _ended(self, sample: _Sample) -> list[Group]:
        before = time.thread_time()
        prompt = len(sample.state.request.prompt.token_ids)
        total = prompt + sample.length
        drawn = SampledTokens(
            token_ids=np.full(sample.length, 4, np.int32),
            logprobs=np.full(sample.length, -0.5, np.float32),
            versions=np.full(sample.length, sample.version, np.int32),
        )
        parts = SegmentParts(
            routes_TLX=np.zeros((total, MOE_LAYERS, CHOSEN), np.int16),
            fingerprints_TL=None,
            support=None,
            finish_reason="stop",
        )
        rollout = sampled_rollout(sample.state, sample.index, drawn, [parts], self._tokenizer)
        sample.state.rollouts[sample.index] = rollout
        groups = groups_at_end(sample.state, sample.index)
        self.cpu_s += time.thread_time() - before
        return groups


class SleepingLearner:
    """Ranks that learn `rank_tokens_per_s` each."""

    def __init__(self, case: ClusterCase) -> None:
        self._case = case

    def update(self, batch: TrainBatch) -> UpdateReport:
        """Sleeps as long as the batch's tokens take."""
        tokens = sum(len(entry.segment.token_ids) for entry in batch.sequences)
        time.sleep(tokens / (self._case.ranks * self._case.rank_tokens_per_s))
        count = len(batch.names)
        zeros_B = np.zeros(count, np.float32)
        return UpdateReport(
            metrics={},
            kl_B=zeros_B,
            off_policy_B=zeros_B,
            masked_B=np.zeros(count, np.bool_),
            route_flips_B=zeros_B,
            weight_lag_B=np.zeros(count, np.int64),
            kl_tokens=tuple(np.zeros(0, np.float32) for _ in range(count)),
        )

    def advance(self) -> None:
        """Nothing to count."""

    def weights(self) -> Publication:
        """None are needed."""
        return Publication(version=0, header=None, tensors={})

    def save(self, step: int, best: int | None = None) -> Path:
        """Nothing is written."""
        return Path(f"step-{step}")

    def saved(self, step: int, *, wait: bool) -> bool:
        """At once."""
        return True


class CoinRunner:
    """Scores at once, half of the responses right, by their key."""

    def submit(self, request: RewardRequest) -> Future[Score]:
        """See `RewardRunner.submit`."""
        future: Future[Score] = Future()
        future.set_result(Score(total=float(len(request.rollout_key) + request.num_tokens & 1), parts={"coin": 1.0}))
        return future
