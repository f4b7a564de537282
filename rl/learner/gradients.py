"""Gradients of a pass, and their sum."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def gradients_of(loss: Tensor, parameters: Sequence[torch.nn.Parameter]) -> list[Tensor | None]:
    """Gradient of each parameter, None where the loss does not depend on it; touches no `.grad`."""
    return list(torch.autograd.grad(loss, parameters, allow_unused=True))


def add_gradients(parameters: Sequence[torch.nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    """Add one pass's gradients to `.grad` in the parameter's type; the first pass's become it, without a copy if it has that type."""
    sums: list[Tensor] = []
    added: list[Tensor] = []
    for parameter, gradient in zip(parameters, gradients):
        if gradient is not None and parameter.grad is None:
            parameter.grad = gradient.to(parameter.dtype)
        elif gradient is not None and parameter.grad is not None:
            sums.append(parameter.grad)
            added.append(gradient)
    if any(isinstance(gradient, DTensor) for gradient in added):
        for total, gradient in zip(sums, added):
            total.add_(gradient)
    elif added:
        # Few launches for hundreds of parameters.
        torch._foreach_add_(tuple(sums), tuple(added))
