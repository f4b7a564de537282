"""Float32 masters of weights that the passes hold in bfloat16: gradients add up, and the optimiser steps, on the masters.

A step of the optimiser is far below one bfloat16 rounding, so without masters it would be lost. The bfloat16 weights are the
masters rounded once, and they alone are published: learner and sampler hold equal bits.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import Parameter


class MasterWeights:
    """One master a parameter; a parameter in float32 or wider is its own."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.parameters = list(parameters)
        self.masters = [
            parameter if torch.finfo(parameter.dtype).bits >= 32 else Parameter(parameter.detach().float())
            for parameter in self.parameters
        ]
        self._master_of = {id(parameter): master for parameter, master in zip(self.parameters, self.masters)}

    def of(self, parameters: Sequence[Parameter]) -> list[Parameter]:
        """The masters of these parameters."""
        return [self._master_of[id(parameter)] for parameter in parameters]

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the parameters that the passes use."""
        apart = self._apart()
        if any(isinstance(master, DTensor) for _, master in apart):
            for parameter, master in apart:
                parameter.copy_(master)
        elif apart:
            torch._foreach_copy_([parameter for parameter, _ in apart], [master for _, master in apart])

    def state(self) -> list[Tensor]:
        """The masters that are no parameter themselves, for a checkpoint."""
        return [master.detach() for _, master in self._apart()]

    @torch.no_grad()
    def restore(self, state: Sequence[Tensor]) -> None:
        """Take the masters of a checkpoint. Raises ValueError if there are more or fewer than here."""
        apart = self._apart()
        if not apart and any(isinstance(master, DTensor) for master in self.masters):
            # Shards are masters themselves, and one process that computed in bfloat16 has left its own beside its weights.
            apart = list(zip(self.parameters, self.masters)) if state else []
        if len(state) != len(apart):
            raise ValueError(
                f"the checkpoint must hold {len(apart)} float32 masters for this model.dtype; got {len(state)}. "
                "Resume with the recipe that wrote it."
            )
        for (_, master), saved in zip(apart, state):
            master.copy_(as_held(saved, master))
        self.publish()

    def _apart(self) -> list[tuple[Parameter, Parameter]]:
        return [pair for pair in zip(self.parameters, self.masters) if pair[0] is not pair[1]]


def as_held(whole: Tensor, like: Tensor) -> Tensor:
    """A tensor that every rank has, as ranks hold `like`: this rank's shard of it, or as it is."""
    if not isinstance(like, DTensor):
        return whole
    moved = whole.to(like.device_mesh.device_type)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)
