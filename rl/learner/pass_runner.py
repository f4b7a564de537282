"""Who runs which pass of an update, and whose gradients come together how: asked by everything that runs passes, alike for all ways to spread them."""

from collections.abc import Callable, Sequence
from typing import Protocol, Self, TypeVar

from torch import Tensor

from samepath.model.policy import Policy
from samepath.rl.learner.gradients import gradients_of
from samepath.rl.learner.optimizer import GradientStep
from samepath.rl.learner.ranks import ALONE, Ranks
from samepath.rl.learner.shares import Shares
from samepath.rl.learner.trained_passes import Gradients, trained

Result = TypeVar("Result")


class PassRunner(Protocol):
    """All ranks make the same calls in the same order; what `compute` raises on one is raised on all."""

    ranks: Ranks

    def owners(self, costs: Sequence[int]) -> list[int]:
        """The rank of each pass, from the passes' costs alone."""
        ...

    def run(self, owners: Sequence[int], compute: Callable[[int], Result]) -> dict[int, Result]:
        """What passes of the policy alone, without gradient, give: those that `owners` gives this rank, by their places."""
        ...

    def train(
        self, owners: Sequence[int], compute: Callable[[int], tuple[Result, Tensor]], optimizer: GradientStep
    ) -> list[Result]:
        """What each pass reports, in order, on every rank; `compute` gives it with the loss, whose gradients the optimiser gets."""
        ...


class WholeRunner:
    """Every rank holds the whole policy; gradients are added in the order of the passes (`samepath.rl.learner.trained_passes`)."""

    def __init__(self, ranks: Ranks, shares: Shares) -> None:
        self.ranks, self._shares = ranks, shares

    @classmethod
    def of(cls, ranks: Ranks, policy: Policy) -> Self:
        """With as many gradients held as there is room for."""
        return cls(ranks, Shares.of(ranks.size, policy))

    def owners(self, costs: Sequence[int]) -> list[int]:
        """See `Shares.owners`."""
        return self._shares.owners(costs)

    def run(self, owners: Sequence[int], compute: Callable[[int], Result]) -> dict[int, Result]:
        """See `PassRunner.run`."""
        found: dict[int, Result] = {}

        def own_part() -> None:
            for place, owner in enumerate(owners):
                if owner == self.ranks.rank:
                    found[place] = compute(place)

        self.ranks.together(own_part)
        return found

    def train(
        self, owners: Sequence[int], compute: Callable[[int], tuple[Result, Tensor]], optimizer: GradientStep
    ) -> list[Result]:
        """See `PassRunner.train`."""

        def differentiated(place: int) -> tuple[Result, Gradients]:
            report, loss = compute(place)
            return report, gradients_of(loss, optimizer.parameters)

        return trained(self.ranks, self._shares, owners, differentiated, optimizer)


BY_ITSELF = WholeRunner(ALONE, Shares(ranks=1, window=1))
"""One process, which runs every pass."""
