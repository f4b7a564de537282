"""The part that engines share which are driven step by step: answering a list of requests."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from samepath.rollout.request import GroupRequest
from samepath.rollout.types import Group


class SteppedEngine(ABC):
    """An engine that works only while its one caller steps it."""

    @property
    @abstractmethod
    def busy(self) -> bool:
        """True while any submitted group is unfinished."""

    @abstractmethod
    def submit(self, request: GroupRequest) -> Group | None:
        """Queue a group. A request that can never run comes back at once as a group of failed rollouts."""

    @abstractmethod
    def step(self) -> list[Group]:
        """One forward pass; returns the groups it finished. Does nothing when idle."""

    def run(self, requests: Sequence[GroupRequest]) -> list[Group]:
        """Submit all, step until done, return the groups in request order."""
        done = {}
        for request in requests:
            failed = self.submit(request)
            if failed is not None:
                done[failed.group_id] = failed
        while self.busy:
            for group in self.step():
                done[group.group_id] = group
        return [done[request.group_id] for request in requests]
