"""Mixture of experts: replay of recorded routes, gates, the shared expert."""

import pytest
import torch

from samepath.kernels.experts.expert_choice import gate_weights
from samepath.kernels.rows.gated_unit import sigmoid
from samepath.model.network import moe
from samepath.model.network.moe import FeedForward, MixtureOfExperts
from samepath.model.trace import ForwardTrace
from tests.conftest import tiny_config


def make_layer(**changes: object) -> MixtureOfExperts:
    layer = MixtureOfExperts(tiny_config(**changes), "torch", 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return layer


def inputs() -> torch.Tensor:
    return torch.randn(16, 64, generator=torch.Generator().manual_seed(1))


def test_mixture_replaying_its_own_routes_changes_no_bit() -> None:
    layer, trace = make_layer(), ForwardTrace()
    live_ND = layer(inputs(), trace, None)
    replayed_ND = layer(inputs(), ForwardTrace(), trace.routes[0])
    assert torch.equal(live_ND, replayed_ND)


def test_mixture_follows_replayed_rows_and_routes_missing_rows_live() -> None:
    layer, live, mixed = make_layer(), ForwardTrace(), ForwardTrace()
    live_ND = layer(inputs(), live, None)
    replay_NX = (live.routes[0] + 3) % 8
    replay_NX[5:] = -1
    mixed_ND = layer(inputs(), mixed, replay_NX)
    assert torch.equal(mixed.routes[0][:5], replay_NX[:5])
    assert torch.equal(mixed.routes[0][5:], live.routes[0][5:])
    assert torch.equal(mixed.live_routes[0], live.routes[0])
    assert torch.equal(mixed_ND[5:], live_ND[5:])
    assert bool((mixed_ND[:5] != live_ND[:5]).any(1).all())


@pytest.mark.parametrize("normalised", [True, False])
def test_mixture_gates_are_unbiased_scores_renormalised_and_scaled_live_or_replayed(
    monkeypatch: pytest.MonkeyPatch, normalised: bool
) -> None:
    """A bias that decides every choice leaves the gates of the chosen experts alone."""
    layer = make_layer(norm_topk_prob=normalised, routed_scaling_factor=1.7, n_group=1, topk_group=1)
    assert layer.selection_bias is not None
    layer.selection_bias.copy_(torch.tensor([0.0, 5.0, 0.1, 0.0, 3.0, 0.2, 0.0, 0.3]))
    seen: list[torch.Tensor] = []

    def product(x_ND: torch.Tensor, gates_NX: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(gates_NX.detach())
        return torch.zeros_like(x_ND)

    monkeypatch.setattr(moe, "expert_product", product)
    x_ND, live = inputs(), ForwardTrace()
    layer(x_ND, live, None)
    layer(x_ND, ForwardTrace(), torch.tensor([[6, 1]] * 16))
    assert live.routes[0].tolist() == [[1, 4]] * 16
    scores = (1 / (1 + torch.exp(-(x_ND.double() @ layer.router.double().T)))).detach()
    for gates_NX, ids in zip(seen, ((1, 4), (6, 1)), strict=True):
        for row in range(16):
            total = sum(float(scores[row, expert]) for expert in ids) if normalised else 1.0
            wanted = [1.7 * float(scores[row, expert]) / total for expert in ids]
            assert gates_NX[row].tolist() == pytest.approx(wanted, rel=1e-5)


def test_mixture_replay_gates_come_from_live_scores_and_carry_gradient_to_the_router() -> None:
    layer = make_layer(n_shared_experts=0)
    x_ND = inputs()
    replay_NX = torch.tensor([[6, 1]] * 16)
    out_ND = layer(x_ND, ForwardTrace(), replay_NX)
    scores_NE = sigmoid(x_ND @ layer.router.T)
    gates_NX = gate_weights(scores_NE, replay_NX, layer.rule)
    by_hand = torch.zeros_like(out_ND)
    for slot, expert in enumerate((6, 1)):
        gate, up = (x_ND @ layer.gate_up[expert].T).chunk(2, -1)
        by_hand = by_hand + gates_NX[:, slot : slot + 1] * (
            (torch.nn.functional.silu(gate) * up) @ layer.down[expert].T
        )
    torch.testing.assert_close(out_ND, by_hand, rtol=1e-4, atol=1e-4)
    out_ND.square().sum().backward()
    assert layer.router.grad is not None
    assert (layer.router.grad.abs().sum(1) > 0).nonzero().flatten().tolist() == [1, 6]


def test_mixture_shared_expert_is_added_to_the_routed_ones() -> None:
    layer = make_layer()
    shared = layer.shared
    assert isinstance(shared, FeedForward)
    with_shared = layer(inputs(), ForwardTrace(), None)
    layer.shared = None
    assert torch.equal(with_shared, layer(inputs(), ForwardTrace(), None) + shared(inputs()))
