"""Mixture-of-experts feed-forward with routing replay: DeepSeek's sigmoid router with group limit, selection bias and shared experts
(arXiv:2412.19437 §2.1.2), and Qwen's softmax router without them.

Axes: N tokens, D width, E experts, X experts chosen, G expert groups, F expert width.
"""

import torch
from torch import Tensor, nn

from samepath.kernels.backend import Backend
from samepath.kernels.dense_rows import feed_forward, float32_linear
from samepath.kernels.expert_product import expert_product, sigmoid
from samepath.model.config import ModelConfig
from samepath.model.kernel_module import KernelModule
from samepath.model.trace import ForwardTrace


class FeedForward(KernelModule):
    """Dense SwiGLU; gate and up weights stacked in one matrix."""

    def __init__(self, width: int, hidden: int, backend: Backend) -> None:
        super().__init__(backend)
        self.gate_up = nn.Parameter(torch.empty(2 * hidden, width))
        self.down = nn.Parameter(torch.empty(width, hidden))

    def forward(self, x_ND: Tensor) -> Tensor:
        """`[N, D]` to `[N, D]`."""
        return feed_forward(x_ND, self.gate_up, self.down, self.row_backend)


def router_scores(logits_NE: Tensor, config: ModelConfig) -> Tensor:
    """Each expert's own sigmoid with MLA's families, the softmax over all experts otherwise."""
    return sigmoid(logits_NE) if config.latent_attention else logits_NE.softmax(-1)


def choose_experts(scores_NE: Tensor, bias_E: Tensor | None, config: ModelConfig) -> Tensor:
    """Expert ids `[N, X]` by score + bias within the best `topk_group` groups, best first; ties go to the lower id.

    A group's score is the sum of its two best experts' (arXiv:2412.19437 §2.1.2). Without gradient.
    """
    choice_NE = scores_NE.detach() if bias_E is None else scores_NE.detach() + bias_E
    if config.n_group > 1:
        choice_NGE = choice_NE.view(choice_NE.shape[0], config.n_group, -1)
        group_scores_NG = choice_NGE.sort(dim=-1, descending=True).values[..., :2].sum(-1)
        kept_NG = group_scores_NG.sort(dim=-1, descending=True, stable=True).indices[:, : config.topk_group]
        open_NG = torch.zeros_like(group_scores_NG, dtype=torch.bool).scatter_(1, kept_NG, True)
        choice_NE = choice_NGE.masked_fill(~open_NG[..., None], -torch.inf).view_as(choice_NE)
    return choice_NE.sort(dim=-1, descending=True, stable=True).indices[:, : config.num_experts_per_tok]


def gate_weights(scores_NE: Tensor, ids_NX: Tensor, config: ModelConfig) -> Tensor:
    """Live scores at the given ids, renormalised over them if so configured, times the routed scale (sigmoid router only).

    Carries gradient to the router.
    """
    gates_NX = scores_NE.gather(1, ids_NX)
    if config.norm_topk_prob:
        total_N1 = gates_NX[:, :1]
        for slot in range(1, gates_NX.shape[1]):
            total_N1 = total_N1 + gates_NX[:, slot : slot + 1]
        gates_NX = gates_NX / (total_N1 + 1e-20)
    return gates_NX * config.routed_scaling_factor if config.latent_attention else gates_NX


class MixtureOfExperts(nn.Module):
    """Router, routed experts and shared expert of the `place`-th mixture-of-experts layer."""

    def __init__(self, config: ModelConfig, backend: Backend, place: int) -> None:
        super().__init__()
        self.config, self.backend, self.place = config, backend, place
        width, hidden, experts = config.hidden_size, config.moe_intermediate_size, config.n_routed_experts
        self.router = nn.Parameter(torch.empty(experts, width))
        self.register_buffer("selection_bias", torch.zeros(experts) if config.latent_attention else None)
        self.selection_bias: Tensor | None
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * hidden, width))
        self.down = nn.Parameter(torch.empty(experts, width, hidden))
        self.shared = FeedForward(width, hidden * config.n_shared_experts, backend) if config.n_shared_experts else None

    def forward(self, x_ND: Tensor, trace: ForwardTrace, replayed_NX: Tensor | None) -> Tensor:
        """Run the replayed experts where recorded (id ≥ 0) and the live router's elsewhere; report both in `trace`."""
        scores_NE = router_scores(float32_linear(x_ND, self.router, self.backend), self.config)
        live_NX = choose_experts(scores_NE, self.selection_bias, self.config)
        ids_NX = live_NX
        if replayed_NX is not None:
            ids_NX = torch.where(replayed_NX[:, :1] >= 0, replayed_NX, live_NX)
        trace.record_routes(self.place, ids_NX, live_NX)
        gates_NX = gate_weights(scores_NE, ids_NX, self.config)
        routed_ND = expert_product(x_ND, gates_NX, ids_NX, self.gate_up, self.down, self.backend)
        return routed_ND if self.shared is None else routed_ND + self.shared(x_ND)
