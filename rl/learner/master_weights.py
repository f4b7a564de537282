"""Float32 masters of weights that the passes hold in bfloat16: gradients add up, and the optimiser steps, on the masters.

A step of the optimiser is far below one bfloat16 rounding, so without masters it would be lost. The bfloat16 weights are the
masters rounded once, and they alone are published: learner and sampler hold equal bits.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
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
        for parameter, master in self._apart():
            parameter.copy_(master)

    def state(self) -> list[Tensor]:
        """The masters that are no parameter themselves, for a checkpoint."""
        return [master.detach() for _, master in self._apart()]

    @torch.no_grad()
    def restore(self, state: Sequence[Tensor]) -> None:
        """Take the masters of a checkpoint. Raises ValueError if there are more or fewer than here."""
        apart = self._apart()
        if len(state) != len(apart):
            raise ValueError(
                f"the checkpoint must hold {len(apart)} float32 masters for this model.dtype; got {len(state)}. "
                "Resume with the recipe that wrote it."
            )
        for (_, master), saved in zip(apart, state):
            master.copy_(saved)
        self.publish()

    def _apart(self) -> list[tuple[Parameter, Parameter]]:
        return [pair for pair in zip(self.parameters, self.masters) if pair[0] is not pair[1]]
