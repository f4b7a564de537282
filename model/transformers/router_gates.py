"""Gate weights of the routers of transformers models, recomputed for any experts from live router logits.

Selection bias and group limits only select and play no part in a gate (arXiv:2412.19437 §2.1.2, arXiv:2405.04434).
Axes: N rows, E experts, X experts chosen.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Gates = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""`gates(router, logits_NE, ids_NX)`: gate weights [N, X] of the given experts, with gradient to the router."""


def softmax_gates(router: nn.Module, logits_NE: Tensor, ids_NX: Tensor) -> Tensor:
    """Softmax over all experts, renormalised over the chosen if configured."""
    gates_NX = logits_NE.softmax(-1, dtype=torch.float32).gather(1, ids_NX)
    if router.norm_topk_prob:
        gates_NX = gates_NX / gates_NX.sum(-1, keepdim=True)
    return gates_NX.to(logits_NE.dtype)


def normalised_softmax_gates(router: nn.Module, logits_NE: Tensor, ids_NX: Tensor) -> Tensor:
    """The same, always renormalised, and in float32."""
    gates_NX = logits_NE.float().softmax(-1).gather(1, ids_NX)
    return gates_NX / gates_NX.sum(-1, keepdim=True)


def scaled_softmax_gates(router: nn.Module, logits_NE: Tensor, ids_NX: Tensor) -> Tensor:
    """Never renormalised, times the routed scale."""
    gates_NX = logits_NE.softmax(-1, dtype=torch.float32).gather(1, ids_NX)
    scale: float = router.routed_scaling_factor  # type: ignore[assignment]
    return gates_NX * scale


def sigmoid_gates(router: nn.Module, logits_NE: Tensor, ids_NX: Tensor) -> Tensor:
    """Each expert's own sigmoid, renormalised over the chosen if configured, times the routed scale."""
    gates_NX = logits_NE.sigmoid().gather(1, ids_NX)
    if router.norm_topk_prob:
        gates_NX = gates_NX / (gates_NX.sum(-1, keepdim=True) + 1e-20)
    scale: float = router.routed_scaling_factor  # type: ignore[assignment]
    return gates_NX * scale


ROUTER_GATES: dict[str, Gates] = {
    "Qwen2MoeTopKRouter": softmax_gates,
    "Qwen3MoeTopKRouter": softmax_gates,
    "OlmoeTopKRouter": softmax_gates,
    "FlexOlmoTopKRouter": softmax_gates,
    "MixtralTopKRouter": normalised_softmax_gates,
    "DeepseekV2TopkRouter": scaled_softmax_gates,
    "DeepseekV3TopkRouter": sigmoid_gates,
    "Dots1TopkRouter": sigmoid_gates,
    "Glm4MoeTopkRouter": sigmoid_gates,
}
"""Router classes of transformers whose gates can be recomputed. All of them return (logits, gates, ids)."""
