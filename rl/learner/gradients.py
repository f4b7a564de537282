"""Gradients of a pass, and their sum."""

from collections.abc import Sequence

import torch
from torch import Tensor


def gradients_of(loss: Tensor, parameters: Sequence[torch.nn.Parameter]) -> list[Tensor | None]:
    """Gradient of each parameter, None where the loss does not depend on it; touches no `.grad`."""
    return list(torch.autograd.grad(loss, parameters, allow_unused=True))


def add_gradients(parameters: Sequence[torch.nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    """Add one pass's gradients to `.grad` in the parameter's type; the first pass's become it, without a copy if it has that type."""
    for parameter, gradient in zip(parameters, gradients):
        if gradient is not None:
            grad = parameter.grad
            parameter.grad = gradient.to(parameter.dtype) if grad is None else grad.add_(gradient)
