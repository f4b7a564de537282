"""The pool of `runtime: inline` with several learner ranks: an engine in each, which samples from the rank's own tensors."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path

from samepath.model.placement import Placement
from samepath.rl.learner.rank_children import RankChildren
from samepath.rollout.engine_settings import EngineSettings
from samepath.rollout.environments.request import Request
from samepath.rollout.pool.pool import Handover, IdleClock, InlinePool, PolledPool
from samepath.rollout.pool.settings import OnNewWeights, RolloutSettings
from samepath.rollout.types import Group
from samepath.rollout.weights.publication import Weights

LOOK_EVERY_S = 0.1
"""Longest time that the engine of this process works before the others are heard."""
SLICE_S = 0.25
"""The same of another rank's call. The next call is asked ahead, so its engine does not wait for this process."""
CALLS_AHEAD = 2


class RankPool(PolledPool):
    """An engine in each rank: rank 0 works while it is polled, the others beside it. Equal seeds give equal samples in any of them.

    A rank that is lost ends the run (LearnerLostError), as it does while they learn.
    """

    def __init__(
        self,
        ranks: RankChildren,
        model_folder: Path,
        engine: EngineSettings,
        settings: RolloutSettings,
        placement: Placement,
    ) -> None:
        """`ranks`: those beside this process's own."""
        super().__init__()
        self._ranks, self._rows = ranks, 2 * engine.max_sequences
        ranks.begin("sampler.open", model_folder.resolve(), engine, settings.threads, placement)
        self._own = InlinePool(model_folder, engine, settings, placement)
        ranks.end("sampler.open")
        self._queue = deque[Request]()
        self._under_way: list[dict[str, Request]] = [{} for _ in range(1 + ranks.count)]
        """Groups of each rank."""
        self._calls = [0] * (1 + ranks.count)
        """Of each rank that have not been answered."""
        self._clocks = [IdleClock() for _ in range(ranks.count)]
        self._load_s = 0.0

    def submit(self, requests: Sequence[Request]) -> None:
        """See `RolloutPool.submit`: each group goes to the rank with the fewest samples, as far as it has room."""
        self._queue += requests
        self._deal()

    def _poll(self, wait_s: float) -> list[Group]:
        groups = self._own.poll(min(wait_s, LOOK_EVERY_S)) if self._under_way[0] else []
        waits = any(self._under_way) and not self._under_way[0]
        for rank, finished in self._ranks.heard(wait_s if waits else 0.0):
            self._calls[rank] -= 1
            groups += finished
        for group in groups:
            for under_way in self._under_way:
                under_way.pop(group.group_id, None)
        self._deal()
        return groups

    def load_weights(self, weights: Weights, version: int) -> None:
        """Let every engine share its learner's tensors, or copy them."""
        self._take(weights, version, None)

    def offer_weights(self, weights: Weights, version: int, on_new_weights: OnNewWeights) -> None:
        """See `RolloutPool.offer_weights`."""
        self._take(weights, version, on_new_weights)

    def _take(self, weights: Weights, version: int, on_new_weights: OnNewWeights | None) -> None:
        self._ranks.begin("sampler.take_weights", version, on_new_weights)
        if on_new_weights is None:
            self._own.load_weights(weights, version)
        else:
            self._own.offer_weights(weights, version, on_new_weights)
        self._load_s = max(self._own.handover().load_s, *self._ranks.end("sampler.take_weights"))

    def handover(self) -> Handover:
        """See `RolloutPool.handover`: no byte leaves a process."""
        return Handover(load_s=self._load_s)

    def idle_s(self) -> float:
        """See `RolloutPool.idle_s`."""
        return (self._own.idle_s() + sum(clock.seconds for clock in self._clocks)) / (1 + len(self._clocks))

    def statistics(self) -> dict[str, float]:
        """Sums over the ranks."""
        self._ranks.begin("sampler.statistics")
        total = self._own.statistics()
        for counters in self._ranks.end("sampler.statistics"):
            for name, value in counters.items():
                total[name] += value
        return total

    def close(self) -> None:
        """Drop unfinished work; that of other ranks ends with them."""
        self._queue.clear()
        self._own.close()

    def _deal(self) -> None:
        """Hand out groups, and let no rank that has some wait for its next call."""
        fresh: list[list[Request]] = [[] for _ in self._under_way]
        while self._queue:
            rows = [sum(len(request.seeds) for request in groups.values()) for groups in self._under_way]
            rank = rows.index(min(rows))
            if rows[rank] >= self._rows:
                break
            request = self._queue.popleft()
            self._under_way[rank][request.group_id] = request
            fresh[rank].append(request)
        self._own.submit(fresh[0])
        for rank in range(1, len(fresh)):
            if fresh[rank]:
                self._ask(rank, fresh[rank])
            while self._under_way[rank] and self._calls[rank] < CALLS_AHEAD:
                self._ask(rank, [])
            self._clocks[rank - 1].set(idle=not self._under_way[rank])

    def _ask(self, rank: int, requests: Sequence[Request]) -> None:
        self._ranks.ask(rank, "sampler.work", requests, SLICE_S)
        self._calls[rank] += 1
