"""Routers of Mixtral: softmax over all experts, always renormalised over the chosen, gates in float32.

Axes: N rows, E experts, X experts chosen.
"""

from torch import Tensor, nn

MIXTRAL_ROUTERS = ("MixtralTopKRouter",)


def mixtral_gates(router: nn.Module, logits_NE: Tensor, ids_NX: Tensor) -> Tensor:
    """Gate weights [N, X] of the given experts, with gradient to the router."""
    gates_NX = logits_NE.float().softmax(-1).gather(1, ids_NX)
    return gates_NX / gates_NX.sum(-1, keepdim=True)
