"""The gated unit of feed-forward layers and experts, SiLU(gate) · up, in operations whose bits do not depend on an element's place.

Axes: N rows, F feed-forward width.
"""

import torch
from torch import Tensor

from samepath.kernels.backend import Backend
from samepath.kernels.gpu.loading import fused_kernels


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^−x) from operations whose bits do not depend on an element's place (torch.sigmoid's do, on CPU)."""
    return (1 + (-x).exp()).reciprocal()


def swiglu(gate_up: Tensor, backend: Backend = "torch") -> Tensor:
    """SiLU(gate) · up of a `[…, 2F]` product (gate first), in position-independent operations.

    A fused backend takes one kernel for a product `[N, 2F]`, with the bits of these operations on a GPU, and one for its gradient.
    """
    fused = fused_kernels(backend, "swiglu", gate_up)
    if fused is not None:
        return fused.swiglu(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    if torch.is_grad_enabled() and gate_up.requires_grad:
        return gate * sigmoid(gate) * up
    # The same operations in one piece of memory.
    return gate.neg().exp_().add_(1).reciprocal_().mul_(gate).mul_(up)
