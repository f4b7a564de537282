"""Which rank runs which pass: known to all ranks beforehand, from the passes' costs alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from samepath.model.policy import Policy

HELD_BYTES = 256 << 20
"""Gradients that a rank may hold before they are added up, bytes; those of one pass it holds whatever their size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """How the passes of an update are dealt out: window after window, whose gradients are added up before the next begins.

    Example: with two ranks and `window=2`, passes that cost 5, 5, 1, 9 and 3 go to ranks 1, 1, 0, 0 and 0: of the first four the last goes first.
    """

    ranks: int
    """How many there are."""
    window: int
    """Passes of a rank in a window, on average."""

    @classmethod
    def of(cls, ranks: int, policy: Policy) -> Self:
        """As many passes a window as HELD_BYTES have room for gradients of this policy's trained parameters."""
        size = sum(4 * parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
        return cls(ranks=ranks, window=max(1, HELD_BYTES // max(size, 1)))

    def windows(self, passes: int) -> Iterator[range]:
        """The passes of each window, consecutive."""
        step = self.window * self.ranks
        return (range(first, min(first + step, passes)) for first in range(0, passes, step))

    def owners(self, costs: Sequence[int]) -> list[int]:
        """The rank of each pass. In each window the costliest go first, each to the rank that has least to do so far."""
        owners = [0] * len(costs)
        for window in self.windows(len(costs)):
            loads = [0] * self.ranks
            for place in sorted(window, key=lambda place: (-costs[place], place)):
                rank = min(range(self.ranks), key=lambda rank: (loads[rank], rank))
                owners[place] = rank
                # A pass without cost is one all the same.
                loads[rank] += max(costs[place], 1)
        return owners
