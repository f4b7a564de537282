"""Routers of Qwen2-MoE, Qwen3-MoE, OLMoE and FlexOlmo: softmax over all experts, renormalised over the chosen if configured.

Axes: N rows, E experts, X experts chosen.
"""

import torch
from torch import Tensor, nn

SOFTMAX_ROUTERS = ("Qwen2MoeTopKRouter", "Qwen3MoeTopKRouter", "OlmoeTopKRouter", "FlexOlmoTopKRouter")


def softmax_gates(router: nn.Module, logits_NE: Tensor, ids_NX: Tensor) -> Tensor:
    """Gate weights [N, X] of the given experts, with gradient to the router."""
    gates_NX = logits_NE.softmax(-1, dtype=torch.float32).gather(1, ids_NX)
    if router.norm_topk_prob:
        gates_NX = gates_NX / gates_NX.sum(-1, keepdim=True)
    return gates_NX.to(logits_NE.dtype)
