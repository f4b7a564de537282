"""Expert choice and gates by hand, and replay of recorded routes."""

import pytest
import torch

from samepath.kernels.expert_product import sigmoid
from samepath.model.moe import FeedForward, MixtureOfExperts, choose_experts, gate_weights
from samepath.model.trace import ForwardTrace
from tests.conftest import tiny_config


def no_groups(**changes: object) -> object:
    return tiny_config(**{"n_group": 1, "topk_group": 1, **changes})


def test_choose_experts_takes_the_best_first() -> None:
    scores_NE = torch.tensor([[0.1, 0.9, 0.3, 0.8, 0.2, 0.0, 0.7, 0.6]])
    assert choose_experts(scores_NE, torch.zeros(8), no_groups()).tolist() == [[1, 3]]


def test_choose_experts_ties_go_to_the_lower_id() -> None:
    scores_NE = torch.tensor([[0.5] * 8, [0.1, 0.5, 0.5, 0.5, 0.1, 0.5, 0.5, 0.5]])
    assert choose_experts(scores_NE, torch.zeros(8), no_groups(num_experts_per_tok=3)).tolist() == [
        [0, 1, 2],
        [1, 2, 3],
    ]
    grouped = choose_experts(scores_NE, torch.zeros(8), tiny_config(topk_group=1))
    assert grouped.tolist() == [[0, 1], [2, 3]]


def test_choose_experts_group_limit_shuts_out_the_best_expert_of_a_poor_group() -> None:
    """Groups of two: sums 0.95, 1.2, 1.0, 0.2; the two best groups are {2, 3} and {4, 5}; expert 0 (0.9) is shut out."""
    scores_NE = torch.tensor([[0.9, 0.05, 0.6, 0.6, 0.5, 0.5, 0.1, 0.1]])
    assert choose_experts(scores_NE, torch.zeros(8), tiny_config()).tolist() == [[2, 3]]
    assert choose_experts(scores_NE, torch.zeros(8), no_groups()).tolist() == [[0, 2]]


def test_choose_experts_shut_groups_stay_shut_when_all_biased_scores_are_negative() -> None:
    scores_NE = torch.tensor([[0.9, 0.05, 0.6, 0.6, 0.5, 0.5, 0.1, 0.1]])
    assert choose_experts(scores_NE, torch.full((8,), -5.0), tiny_config()).tolist() == [[2, 3]]


def test_choose_experts_bias_changes_the_choice_but_not_the_gates() -> None:
    config = no_groups()
    scores_NE = torch.tensor([[0.8, 0.4, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1]])
    bias_E = torch.zeros(8)
    bias_E[2] = 0.5
    ids_NX = choose_experts(scores_NE, bias_E, config)
    assert ids_NX.tolist() == [[0, 2]]
    gates_NX = gate_weights(scores_NE, ids_NX, config)
    assert gates_NX[0].tolist() == pytest.approx([0.8 * 2.5, 0.2 * 2.5])


def test_gate_weights_are_renormalised_only_if_asked() -> None:
    scores_NE, ids_NX = torch.tensor([[0.6, 0.2, 0.2]]), torch.tensor([[2, 0]])
    renormalised = gate_weights(scores_NE, ids_NX, tiny_config(routed_scaling_factor=2.0))
    assert renormalised[0].tolist() == pytest.approx([0.5, 1.5])
    plain = gate_weights(scores_NE, ids_NX, tiny_config(routed_scaling_factor=2.0, norm_topk_prob=False))
    assert plain[0].tolist() == pytest.approx([0.4, 1.2])


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


def test_mixture_replay_gates_come_from_live_scores_and_carry_gradient_to_the_router() -> None:
    layer = make_layer(n_shared_experts=0)
    x_ND = inputs()
    replay_NX = torch.tensor([[6, 1]] * 16)
    out_ND = layer(x_ND, ForwardTrace(), replay_NX)
    scores_NE = sigmoid(x_ND @ layer.router.T)
    gates_NX = gate_weights(scores_NE, replay_NX, layer.config)
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
