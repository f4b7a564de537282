"""The training passes of one update, run where they belong, and the sum of their gradients in the order of the passes.

A sum of floating-point numbers depends on its order, so the order is that of the passes, whoever ran them and whenever they ended. Each rank adds up
one slice of all gradients: it gets that slice of every pass, and gives the sum to all.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from samepath.rl.learner.optimizer import GradientStep
from samepath.rl.learner.ranks import Ranks
from samepath.rl.learner.shares import Shares

Report = TypeVar("Report")
Gradients = list[Tensor | None]
"""One for each parameter, None where the loss does not depend on it; empty if the pass gives none."""


def trained(
    ranks: Ranks,
    shares: Shares,
    owners: Sequence[int],
    compute: Callable[[int], tuple[Report, Gradients]],
    optimizer: GradientStep,
) -> list[Report]:
    """What each pass reports, in order, on every rank; their gradients are added up in the optimiser.

    `compute` runs one pass, of those that `owners` gives this rank, and returns its report and gradients. What it raises is raised on all ranks.
    """
    if ranks.size == 1:
        reports = []
        for place in range(len(owners)):
            report, gradients = compute(place)
            optimizer.add(gradients)
            reports.append(report)
            # As large as the model: they go as soon as they are added.
            del gradients
        return reports
    total = GradientSum(ranks, optimizer.parameters)
    found: dict[int, Report] = {}
    for window in shares.windows(len(owners)):
        held: dict[int, Gradients] = {}

        def own_part(window: range = window, held: dict[int, Gradients] = held) -> dict[int, tuple[Report, list[bool]]]:
            part = {}
            for place in window:
                if owners[place] == ranks.rank:
                    report, held[place] = compute(place)
                    part[place] = report, [gradient is not None for gradient in held[place]]
            return part

        told = {place: one for part in ranks.together(own_part) for place, one in part.items()}
        total.add(window, owners, held, [told[place][1] for place in window])
        found |= {place: report for place, (report, _) in told.items()}
    optimizer.add(total.finish())
    return [found[place] for place in range(len(owners))]


ALIGNED = 16
"""Numbers at whose multiples a parameter's gradients begin, 64 bytes of float32: the widest load of a GPU takes 16."""


class GradientSum:
    """Adds up the gradients of passes that different ranks ran, in the order of the passes. Float32, or float64 for such parameters."""

    def __init__(self, ranks: Ranks, parameters: Sequence[Parameter]) -> None:
        self._ranks, self._parameters = ranks, parameters
        # Each begins where a tensor of its own could: a GPU's sums take their numbers in another order where these lie between two loads.
        self._sizes = [-(-parameter.numel() // ALIGNED) * ALIGNED for parameter in parameters]
        # Slices of one size each, the last filled up with zeros.
        self._slice = -(-sum(self._sizes) // ranks.size)
        dtype = torch.float32
        for parameter in parameters:
            dtype = torch.promote_types(dtype, parameter.dtype)
        self._sum = torch.zeros(self._slice, dtype=dtype, device=parameters[0].device)
        self._empty = True
        self._there = [False] * len(parameters)

    def add(
        self,
        window: Sequence[int],
        owners: Sequence[int],
        held: Mapping[int, Gradients],
        there: Sequence[Sequence[bool]],
    ) -> None:
        """Take the passes of a window. `held` are this rank's own, `there` says of each pass which gradients it has."""
        ranks, own = self._ranks, sorted(held)
        laid = []
        for place in own:
            laid.append(self._flat(held[place]).view(ranks.size, self._slice))
            held[place].clear()
        # To each rank its slice of every pass; those of a single pass lie in this order already.
        parts = laid[0] if len(laid) == 1 else torch.stack(laid, 1) if laid else self._sum.new_zeros(0)
        passes = [[place for place in window if owners[place] == rank] for rank in range(ranks.size)]
        arrived = ranks.exchange(
            parts.reshape(-1),
            [len(own) * self._slice] * ranks.size,
            [len(places) * self._slice for places in passes],
        ).view(-1, self._slice)
        row = {place: number for number, place in enumerate(place for places in passes for place in places)}
        for place, present in zip(window, there, strict=True):
            if any(present):
                self._sum = arrived[row[place]].clone() if self._empty else self._sum.add_(arrived[row[place]])
                self._empty = False
                self._there = [one or other for one, other in zip(self._there, present, strict=True)]

    def finish(self) -> Gradients:
        """The sums, the same on all ranks; None where no pass had a gradient."""
        whole = torch.cat(self._ranks.gathered(self._sum))
        parts = torch.split(whole[: sum(self._sizes)], self._sizes)
        return [
            part[: parameter.numel()].view_as(parameter) if there else None
            for part, parameter, there in zip(parts, self._parameters, self._there, strict=True)
        ]

    def _flat(self, gradients: Gradients) -> Tensor:
        """All of one pass end to end, filled up to whole slices."""
        flat = self._sum.new_empty(self._ranks.size * self._slice)
        total = sum(self._sizes) if gradients else 0
        flat[total:] = 0
        for part, parameter, gradient in zip(
            torch.split(flat[:total], self._sizes if total else 0), self._parameters, gradients
        ):
            count = parameter.numel()
            part[:count].view_as(parameter).copy_(gradient if gradient is not None else torch.zeros(()))
            part[count:] = 0
        return flat
