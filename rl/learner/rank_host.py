"""One rank of the learner in a process that it has to itself: a Ray actor, or a child of the driver."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch._C._distributed_c10d import TCPStore

from samepath.model.placement import DeviceName
from samepath.rl.learner.learner import Learner
from samepath.rl.learner.rank_sampler import RankSampler
from samepath.rl.learner.ranks import ALONE, Meeting, Ranks, joined, opened
from samepath.rl.machine import keep_to_loopback
from samepath.rl.recipe.cluster import LOOPBACK
from samepath.rl.recipe.recipe import Recipe
from samepath.rollout.weights.bucket import Bucket
from samepath.rollout.weights.mark import Header

Trained = TypeVar("Trained")


class RankOf(Generic[Trained]):
    """Meets the other ranks, builds what trains, and makes the calls that all ranks make."""

    def __init__(self, device: DeviceName, build: Callable[[Ranks], Trained]) -> None:
        """`build` makes what trains, once the ranks have met."""
        self._device, self._build = device, build
        self._store: TCPStore | None = None
        self._ranks: Ranks = ALONE
        self._learner: Trained | None = None

    def start(self, rank: int, meeting: Meeting | None) -> int:
        """Meet the others, unless there are none, and build the learner; returns this process's number."""
        if meeting is not None:
            if meeting.host == LOOPBACK:
                keep_to_loopback()
            self._ranks = joined(meeting, rank, self._device, self._store)
        with ExitStack() as failed:
            failed.callback(self._ranks.leave)
            self._learner = self._build(self._ranks)
            failed.pop_all()
        return os.getpid()

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """A call of the learner; only rank 0 says what it gave. A rank that fails leaves the others, so that none waits for it."""
        assert self._learner is not None
        with ExitStack() as failed:
            failed.callback(self._ranks.leave)
            result = getattr(self._learner, method)(*arguments, **named)
            failed.pop_all()
        return result if self._ranks.rank == 0 or method == "statistics" else None


class RankHost(RankOf[Learner]):
    """A rank of RL's learner, and of the engine beside it."""

    def __init__(self, recipe: Recipe, recipe_dir: Path, run_dir: Path, resume_from: Path | None) -> None:
        super().__init__(recipe.model.device, partial(Learner, recipe, recipe_dir, run_dir, resume_from))
        self._settings = recipe.learner
        self._sampler: RankSampler | None = None

    def open(self) -> Meeting:
        """On rank 0, in a Ray actor: a meeting of all ranks at a free port of the address that Ray knows this machine by."""
        # Late: `runtime: inline` must work without Ray.
        from ray.util import get_node_ip_address

        meeting, self._store = opened(get_node_ip_address(), self._settings.ranks, self._settings.update_timeout_s)
        return meeting

    def sample(self, method: str, *arguments: Any) -> Any:
        """A call of the engine beside this rank's learner; `open` builds it. If it fails, this rank leaves the others."""
        assert self._learner is not None
        with ExitStack() as failed:
            failed.callback(self._ranks.leave)
            result = None
            if method == "open":
                self._sampler = RankSampler(self._learner, *arguments)
            else:
                result = getattr(self._sampler, method)(*arguments)
            failed.pop_all()
        return result

    def published(self) -> Iterator[Bucket | Header]:
        """See `Learner.published`: the caller stores each as it comes."""
        assert self._learner is not None
        with ExitStack() as failed:
            failed.callback(self._ranks.leave)
            yield from self._learner.published()
            failed.pop_all()


def summed(ranks: Sequence[dict[str, float]]) -> dict[str, float]:
    """The statistics of all ranks as one: memory added up, anything else as rank 0 has it."""
    return {
        name: sum(rank[name] for rank in ranks) if name.endswith("bytes") else value for name, value in ranks[0].items()
    }
