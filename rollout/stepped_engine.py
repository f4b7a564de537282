"""The part that engines share which are driven step by step: answering a list of requests."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from samepath.rollout.record import joined_group
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
        """One forward pass; returns the groups it finished, of samples that come apart each by itself. Does nothing when idle."""

    def held_weights(self) -> Mapping[str, Tensor] | None:
        """See `Engine.held_weights`: in a form of its own, unless an engine says otherwise."""
        return None

    def share_weights(self, policy: nn.Module, version: int) -> bool:
        """See `Engine.share_weights`: not possible, unless an engine says otherwise."""
        return False

    def run(self, requests: Sequence[GroupRequest]) -> list[Group]:
        """Submit all, step until done, return the groups whole and in request order."""
        parts: dict[str, list[Group]] = {request.group_id: [] for request in requests}
        for request in requests:
            failed = self.submit(request)
            if failed is not None:
                parts[failed.group_id].append(failed)
        while self.busy:
            for group in self.step():
                parts[group.group_id].append(group)
        return [joined_group(parts[request.group_id]) for request in requests]
