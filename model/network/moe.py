"""Mixture-of-experts feed-forward with routing replay, behind a sigmoid router with group limit and selection bias (arXiv:2412.19437 §2.1.2) or a
softmax router, with shared experts or without.

Axes: N tokens, D width, E experts, X experts chosen, G expert groups, F expert width.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from samepath.kernels.backend import Backend
from samepath.kernels.experts.expert_choice import ChoiceRule, choose_with_gates, gate_weights
from samepath.kernels.experts.expert_product import expert_product
from samepath.kernels.rows.dense_rows import feed_forward, float32_linear
from samepath.kernels.rows.gated_unit import sigmoid
from samepath.model.config import ModelConfig
from samepath.model.network.expert_exchange import ExpertExchange
from samepath.model.network.kernel_module import KernelModule
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
    """Each expert's own sigmoid, or the softmax over all experts."""
    return sigmoid(logits_NE) if config.router == "sigmoid" else logits_NE.softmax(-1)


def choice_rule(config: ModelConfig) -> ChoiceRule:
    """Groups and scale belong to the sigmoid router."""
    if config.router == "softmax":
        return ChoiceRule(num_chosen=config.num_experts_per_tok, normalised=config.norm_topk_prob)
    return ChoiceRule(
        num_chosen=config.num_experts_per_tok,
        num_groups=config.n_group,
        open_groups=config.topk_group,
        normalised=config.norm_topk_prob,
        scale=config.routed_scaling_factor,
    )


class MixtureOfExperts(nn.Module):
    """Router, routed experts and shared expert of the `place`-th mixture-of-experts layer."""

    def __init__(self, config: ModelConfig, backend: Backend, place: int) -> None:
        super().__init__()
        self.config, self.backend, self.place = config, backend, place
        self.rule = choice_rule(config)
        width, hidden, experts = config.hidden_size, config.moe_intermediate_size, config.n_routed_experts
        self.router = nn.Parameter(torch.empty(experts, width))
        self.register_buffer("selection_bias", torch.zeros(experts) if config.router == "sigmoid" else None)
        self.selection_bias: Tensor | None
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * hidden, width))
        self.down = nn.Parameter(torch.empty(experts, width, hidden))
        self._exchange: ExpertExchange | None = None
        self.shared = FeedForward(width, hidden * config.n_shared_experts, backend) if config.n_shared_experts else None

    def forward(self, x_ND: Tensor, trace: ForwardTrace, replayed_NX: Tensor | None) -> Tensor:
        """Run the replayed experts where recorded (id ≥ 0) and the live router's elsewhere; report both in `trace`."""
        scores_NE = router_scores(float32_linear(x_ND, self.router, self.backend), self.config)
        live_NX, gates_NX = choose_with_gates(scores_NE, self.selection_bias, self.rule, self.backend)
        ids_NX = live_NX
        if replayed_NX is not None:
            ids_NX = torch.where(replayed_NX[:, :1] >= 0, replayed_NX, live_NX)
            gates_NX = gate_weights(scores_NE, ids_NX, self.rule, self.backend)
        trace.record_routes(self.place, ids_NX, live_NX)
        product = expert_product if self._exchange is None else self._exchange.product
        routed_ND = product(x_ND, gates_NX, ids_NX, *self._held(), self.backend)
        return routed_ND if self.shared is None else routed_ND + self.shared(x_ND)

    def experts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each routed expert's stacked gate and up matrix, and its down matrix, without gradient; of spread ones see `ExpertExchange.experts`."""
        if self._exchange is None:
            return zip(self.gate_up.detach(), self.down.detach())
        return self._exchange.experts(*self._held())

    def spread(self, gate_up: nn.Parameter, down: nn.Parameter, exchange: ExpertExchange) -> None:
        """Hold a share of the routed experts from now on: parameters that are `DTensor`s in shards along the experts, of equal size."""
        self.gate_up, self.down, self._exchange = gate_up, down, exchange

    def _held(self) -> tuple[Tensor, Tensor]:
        """Both matrices of the experts that this process holds."""
        # Their type is not named: importing it takes a second, also where nothing is spread.
        weights: tuple[Any, Any] = self.gate_up, self.down
        return weights if self._exchange is None else (weights[0].to_local(), weights[1].to_local())
