"""The optimiser step, the cold start's and RL's alike: clip, set the rate, step on the masters, round them into the weights.

The indexer learns from a loss of its own, so its gradients are clipped by a norm of their own: neither loss can shrink the other's step.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from samepath.model.collectives import timed
from samepath.model.policy import Policy
from samepath.rl.learner.gradients import add_gradients
from samepath.rl.learner.master_weights import MasterWeights, as_held
from samepath.rl.learner.schedule import learning_rate
from samepath.rl.objective.objective import NonFiniteError
from samepath.rl.recipe.optimizer import OptimizerSettings

NEAR = 0.999
"""Share of the largest norm below which clipping multiplies by exactly 1, and so is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientNorms:
    """What a step was taken with: the gradients' norms before clipping, and the learning rate."""

    policy: float
    """Of all parameters but the indexer's."""
    indexer: float | None
    """Of the indexer's; None if it is not trained."""
    lr: float
    """Learning rate of the step; the indexer's is scaled."""


class GradientStep(Protocol):
    """What takes the gradients of an update's passes and moves the weights."""

    parameters: list[Parameter]
    """What the passes differentiate."""

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Take one pass's gradients, one for each of `parameters`."""
        ...

    def step(self) -> GradientNorms:
        """Move the weights by the gradients taken, and forget these."""
        ...

    def forget(self) -> None:
        """Drop the gradients taken, and leave the weights as they are."""
        ...


class Optimizer:
    """AdamW (arXiv:1711.05101) over everything of a policy that requires a gradient, in float32. `updates` counts its steps."""

    def __init__(
        self,
        model: Policy,
        settings: OptimizerSettings,
        *,
        total_updates: int,
        indexer_lr_scale: float = 1.0,
    ) -> None:
        """`total_updates` is how many are planned: the schedule of the learning rate ends there."""
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.parameters, self._names = list(trained.values()), list(trained)
        self.updates = 0
        self._max_norm = settings.max_grad_norm
        self._settings, self._total_updates = settings, total_updates
        self._weights = MasterWeights(self.parameters)
        of_indexer = {id(parameter) for parameter in model.indexer_parameters()}
        self._policy = self._weights.of([one for one in self.parameters if id(one) not in of_indexer])
        self._indexer = self._weights.of([one for one in self.parameters if id(one) in of_indexer])
        groups = [{"params": self._policy, "scale": 1.0}, {"params": self._indexer, "scale": indexer_lr_scale}]
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """See `GradientStep`."""
        add_gradients(self._weights.masters, gradients)

    def step(self) -> GradientNorms:
        """See `GradientStep`. Raises NonFiniteError if a gradient is not finite."""
        rate = learning_rate(self._settings, self.updates, self._total_updates)
        found = self._clipped({"policy": self._policy, "indexer": self._indexer})
        norms = GradientNorms(policy=found.get("policy", 0.0), indexer=found.get("indexer"), lr=rate)
        for group in self._adamw.param_groups:
            group["lr"] = rate * group["scale"]
        self.updates += 1
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        self._weights.publish()
        return norms

    def forget(self) -> None:
        """See `GradientStep`."""
        self._adamw.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """Everything that a checkpoint needs beside the weights themselves."""
        return {"optimizer": self._adamw.state_dict(), "updates": self.updates, "masters": self._weights.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's `state`. Raises ValueError if it is of other weights."""
        self._weights.restore(state["masters"])
        moments, stepped = state["optimizer"], [one for group in self._adamw.param_groups for one in group["params"]]
        placed = {
            index: {name: as_held(value, stepped[index]) if value.ndim else value for name, value in values.items()}
            for index, values in moments["state"].items()
        }
        self._adamw.load_state_dict({**moments, "state": placed})
        self.updates = int(state["updates"])

    def named_masters(self) -> dict[str, Parameter]:
        """What is stepped on, by the names of the parameters."""
        return dict(zip(self._names, self._weights.masters, strict=True))

    def named_moments(self) -> dict[str, dict[str, Tensor]]:
        """Both moments and the count of steps of each parameter that was stepped on, by its name."""
        state = self._adamw.state
        return {name: dict(state[master]) for name, master in self.named_masters().items() if state.get(master)}

    @torch.no_grad()
    def take_moments(self, moments: Mapping[str, Mapping[str, Tensor]], updates: int) -> None:
        """Go on from these `named_moments`, and from masters that were changed in place."""
        masters = self.named_masters()
        for name, values in moments.items():
            self._adamw.state[masters[name]] = dict(values)
        self.updates = updates
        self._weights.publish()

    def _clipped(self, groups: Mapping[str, list[Parameter]]) -> dict[str, float]:
        """Clip the gradients of each group that has any parameter by a norm of its own; the norms before, for which a GPU is waited for once."""
        norms: dict[str, Tensor] = {}
        for name, masters in groups.items():
            if masters:
                gradients = [one.grad for one in masters if one.grad is not None]
                norms[name] = _total_norm(gradients) if gradients else masters[0].new_zeros(())
        if not norms:
            return {}
        # Of shards each rank knows its part of the sum alone.
        whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms.values()]
        found = dict(zip(norms, torch.stack(whole).tolist(), strict=True))
        for name, norm in found.items():
            if not math.isfinite(norm):
                raise NonFiniteError(
                    f"the norm of the {name}'s gradient must be finite; got {norm}. No weight was changed. Look at the rewards and at learner/grad_norm, "
                    "or set rl.nonfinite=skip to leave such a mini-batch out."
                )
        for name, norm in norms.items():
            if found[name] > NEAR * self._max_norm:
                torch.nn.utils.clip_grads_with_norm_(groups[name], self._max_norm, norm)
        return found


def _total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Of all of them as one vector. Of shards every rank gives the norm of its part, which is the one exchange here."""
    if not any(isinstance(gradient, DTensor) for gradient in gradients):
        return torch.nn.utils.get_total_norm(gradients)
    norms_G = torch.stack(torch._foreach_norm(tuple(gradients)))
    with timed(norms_G.device):
        total: Tensor = torch.linalg.vector_norm(norms_G)
    return total
