"""Routers of DeepSeek-V3 and its kin (GLM-4-MoE, Dots1): sigmoid scores, renormalised, times the routed scale.

Selection bias and group limits only select and play no part in a gate (arXiv:2412.19437 §2.1.2).
Axes: N rows, E experts, X experts chosen.
"""

from torch import Tensor, nn

SIGMOID_ROUTERS = (
    "DeepseekV3TopkRouter",
    "Dots1TopkRouter",
    "Glm4MoeTopkRouter",
)


def sigmoid_gates(router: nn.Module, logits_NE: Tensor, ids_NX: Tensor) -> Tensor:
    """Gate weights [N, X] of the given experts, with gradient to the router."""
    gates_NX = logits_NE.sigmoid().gather(1, ids_NX)
    if router.norm_topk_prob:
        gates_NX = gates_NX / (gates_NX.sum(-1, keepdim=True) + 1e-20)
    scale: float = router.routed_scaling_factor  # type: ignore[assignment]
    return gates_NX * scale
