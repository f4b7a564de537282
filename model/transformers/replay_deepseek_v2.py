"""Routers of DeepSeek-V2: softmax scores times the routed scale, never renormalised; group limits only select (arXiv:2405.04434).

Axes: N rows, E experts, X experts chosen.
"""

import torch
from torch import Tensor, nn

DEEPSEEK_V2_ROUTERS = ("DeepseekV2TopkRouter",)


def deepseek_v2_gates(router: nn.Module, logits_NE: Tensor, ids_NX: Tensor) -> Tensor:
    """Gate weights [N, X] of the given experts, with gradient to the router."""
    scores_NX = logits_NE.softmax(-1, dtype=torch.float32).gather(1, ids_NX)
    scale: float = router.routed_scaling_factor  # type: ignore[assignment]
    return scores_NX * scale
