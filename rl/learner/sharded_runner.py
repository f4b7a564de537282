"""The passes of a policy whose weights are spread over the ranks: all ranks run one pass at a time, side by side.

Before a layer computes, its weights are gathered from all ranks; after its backward, gradients go to the ranks that hold the weights. So every
rank takes part in every pass: one that has none runs a blank pass, whose loss is 0.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from samepath.kernels.backend import ROW_MULTIPLE
from samepath.model.key_store import PackedKeys
from samepath.model.model_input import ModelInput
from samepath.model.plan import Span, plan_spans
from samepath.model.policy import Policy
from samepath.model.shape import ModelShape
from samepath.model.trace import ForwardTrace
from samepath.rl.learner.lost import GO_ON, LearnerLostError
from samepath.rl.learner.optimizer import GradientStep
from samepath.rl.learner.pass_runner import PassRunner, WholeRunner
from samepath.rl.learner.ranks import TOLD, Ranks
from samepath.rl.recipe.learner import LearnerSettings

Result = TypeVar("Result")


class ShardedRunner:
    """Runs passes in rounds, one of each rank at a time; the optimiser finds the sum of all gradients, in shards, in its parameters."""

    def __init__(self, ranks: Ranks, policy: Policy, reference: Policy | None, *, train_indexer: bool) -> None:
        """A training pass runs the reference first, if there is one; `train_indexer` says whether it computes the indexer's loss."""
        self.ranks = ranks
        self._policy, self._reference, self._train_indexer = policy, reference, train_indexer
        self._inputs = blank_input(policy.shape)
        self._inside = False
        models: tuple[Policy | None, ...] = (policy, reference)
        for model in models:
            if model is not None:
                # Between these two the other ranks wait for this one at every layer.
                model.register_forward_pre_hook(lambda *_: self._enter(inside=True), prepend=True)
                model.register_forward_hook(lambda *_: self._enter(inside=False))

    def owners(self, costs: Sequence[int]) -> list[int]:
        """The costliest first, in turn to all ranks: passes of one round cost about the same, for each waits for the others.

        Example: with two ranks, passes that cost 5, 5, 1, 9 and 3 go to ranks 1, 0, 0, 0 and 1, in the rounds (9, 5), (5, 3) and (1, blank).
        """
        owners = [0] * len(costs)
        for turn, place in enumerate(sorted(range(len(costs)), key=lambda place: (-costs[place], place))):
            owners[place] = turn % self.ranks.size
        return owners

    def run(self, owners: Sequence[int], compute: Callable[[int], Result]) -> dict[int, Result]:
        """See `PassRunner.run`."""
        found: dict[int, Result] = {}
        for place in self._rounds(owners):

            def own_part(place: int | None = place) -> None:
                if place is not None:
                    found[place] = compute(place)
                    return
                with torch.no_grad():
                    self._policy(self._inputs, PackedKeys(), ForwardTrace())

            self.ranks.together(lambda part=own_part: self._whole(part))  # type: ignore[misc]
            self._settle()
        return found

    def train(
        self, owners: Sequence[int], compute: Callable[[int], tuple[Result, Tensor]], optimizer: GradientStep
    ) -> list[Result]:
        """See `PassRunner.train`. An error after a pass's forward is told to all before any rank goes on to the backward."""
        found: dict[int, Result] = {}
        for place in self._rounds(owners):
            losses: list[Tensor] = []

            def own_part(place: int | None = place, losses: list[Tensor] = losses) -> dict[int, Result]:
                if place is None:
                    losses.append(self._blank_loss())
                    return {}
                report, loss = compute(place)
                losses.append(loss)
                return {place: report}

            for told in self.ranks.together(lambda part=own_part: self._whole(part)):  # type: ignore[misc]
                found |= told
            with self.ranks.heard("gradients"):
                losses.pop().backward()  # type: ignore[no-untyped-call]
            self._settle()
        return [found[place] for place in range(len(owners))]

    def _enter(self, *, inside: bool) -> None:
        self._inside = inside

    def _whole(self, part: Callable[[], Result]) -> Result:
        """What a part gives. Raises LearnerLostError for an error inside a network, which cannot be told: the others stand at another layer."""
        self._inside = False
        try:
            return part()
        except TOLD as error:
            if self._inside and self.ranks.size > 1:
                raise LearnerLostError(
                    f"learner rank {self.ranks.rank} of {self.ranks.size} failed in the middle of a pass, where the others wait for it: "
                    f"{type(error).__name__}: {error}. {GO_ON}"
                ) from error
            raise

    def _rounds(self, owners: Sequence[int]) -> Iterator[int | None]:
        """This rank's pass of each round, or None: the rank that has most passes says how many rounds there are."""
        own = [place for place, owner in enumerate(owners) if owner == self.ranks.rank]
        most = max((list(owners).count(rank) for rank in set(owners)), default=0)
        yield from [*own, *[None] * (most - len(own))]

    def _blank_loss(self) -> Tensor:
        """0, through every parameter that a training pass differentiates: all ranks must send the same gradients."""
        if self._reference is not None:
            with torch.no_grad():
                self._reference(self._inputs, PackedKeys(), ForwardTrace())
        trace = ForwardTrace(train_indexer=self._train_indexer)
        hidden_ND = self._policy(self._inputs, PackedKeys(), trace)
        loss: Tensor = (hidden_ND @ self._policy.head_weight.T).float().sum()
        if trace.indexer_losses:
            loss = loss + torch.stack(trace.indexer_losses).sum()
        return loss * 0

    def _settle(self) -> None:
        """Let go of what stays gathered after a pass: what stands outside the layers, the head among it."""
        models: tuple[object, ...] = (self._policy, self._reference)
        for model in models:
            if isinstance(model, FSDPModule):
                model.reshard()


def runner_of(
    ranks: Ranks, policy: Policy, reference: Policy | None, learner: LearnerSettings, *, train_indexer: bool
) -> PassRunner:
    """What runs the passes of a policy as `learner.shard` says."""
    if learner.shard == "full":
        return ShardedRunner(ranks, policy, reference, train_indexer=train_indexer)
    return WholeRunner.of(ranks, policy)


def blank_input(shape: ModelShape) -> ModelInput:
    """The fewest rows that a network runs, of one sequence."""
    span = Span(row=0, first=0, count=ROW_MULTIPLE, keys=torch.arange(ROW_MULTIPLE))
    return ModelInput(
        token_ids_N=torch.arange(ROW_MULTIPLE) % shape.vocab_size,
        positions_N=torch.arange(ROW_MULTIPLE),
        plan=plan_spans([span], ROW_MULTIPLE, shape.window_heads),
        replay_LNX=None,
    )
