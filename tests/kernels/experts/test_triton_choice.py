"""The fused choice of experts gives the ids and the gates of the separate operations, bit for bit."""

import pytest
import torch

from tests.kernels.triton_here import require_triton
from tests.poison import poison_fresh_memory

DEVICE = require_triton()

from samepath.kernels.experts.expert_choice import ChoiceRule, choose_experts, choose_with_gates, gate_weights

RULES = {
    "published": (ChoiceRule(num_chosen=8, num_groups=8, open_groups=4, scale=2.5), 256),
    "small": (ChoiceRule(num_chosen=4, num_groups=4, open_groups=2, scale=2.5), 16),
    "groups of three": (ChoiceRule(num_chosen=5, num_groups=5, open_groups=3), 15),
    "softmax": (ChoiceRule(num_chosen=3, normalised=False), 8),
    "one": (ChoiceRule(num_chosen=1, scale=1.3), 7),
}


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_choose_fused_equals_the_separate_operations(name: str, has_bias: bool) -> None:
    rule, num_experts = RULES[name]
    generator = torch.Generator().manual_seed(1)
    scores_NE = torch.randn(19, num_experts, generator=generator).sigmoid()
    # Many ties, within and between groups.
    scores_NE[9:] = (scores_NE[9:] * 8).round() / 8
    bias_E = (torch.randn(num_experts, generator=generator) * 0.3).round(decimals=1) if has_bias else None
    wanted_NX = choose_experts(scores_NE, bias_E, rule, "torch")
    on_device = (scores_NE.to(DEVICE), None if bias_E is None else bias_E.to(DEVICE), rule)
    with torch.no_grad():
        ids_NX, gates_NX = choose_with_gates(*on_device, "triton")
    assert torch.equal(ids_NX.cpu(), wanted_NX)
    assert torch.equal(choose_experts(*on_device, "triton").cpu(), wanted_NX)
    assert torch.equal(gates_NX, gate_weights(on_device[0], ids_NX, rule))
    assert torch.equal(gates_NX.cpu(), gate_weights(scores_NE, wanted_NX, rule))


def test_choose_with_gradient_takes_the_same_ids_and_gates() -> None:
    rule, num_experts = RULES["small"]
    scores_NE = torch.rand(9, num_experts, generator=torch.Generator().manual_seed(2)).to(DEVICE).requires_grad_()
    ids_NX, gates_NX = choose_with_gates(scores_NE, None, rule, "triton")
    with torch.no_grad():
        fused = choose_with_gates(scores_NE, None, rule, "triton")
    assert torch.equal(ids_NX, fused[0])
    assert torch.equal(gates_NX, fused[1])
    gates_NX[:, 0].sum().backward()
    assert scores_NE.grad is not None
    assert bool((scores_NE.grad != 0).sum(1).eq(rule.num_chosen).all())


@pytest.mark.parametrize("name", RULES)
def test_gates_and_their_gradient_equal_float64(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Of the live choice, and of replayed ids, one of which stands twice in its row."""
    rule, num_experts = RULES[name]
    generator = torch.Generator().manual_seed(3)
    scores_NE = torch.rand(19, num_experts, generator=generator, dtype=torch.float64).to(DEVICE) + 0.01
    upstream_NX = torch.randn(19, rule.num_chosen, generator=generator, dtype=torch.float64).to(DEVICE)
    replayed_NX = torch.rand(19, num_experts, generator=generator).argsort(1)[:, : rule.num_chosen].to(DEVICE)
    replayed_NX[0] = replayed_NX[0, 0].clone()
    exact_NE, single_NE = scores_NE.requires_grad_(), scores_NE.detach().float().requires_grad_()
    poison_fresh_memory(monkeypatch)
    ids_NX, live_NX = choose_with_gates(single_NE, None, rule, "triton")
    for at_NX, gates_NX in ((ids_NX, live_NX), (replayed_NX, gate_weights(single_NE, replayed_NX, rule, "triton"))):
        truth_NX = gate_weights(exact_NE, at_NX, rule)
        assert torch.equal(gates_NX, gate_weights(single_NE, at_NX, rule))
        torch.testing.assert_close(gates_NX.double(), truth_NX, rtol=1e-5, atol=1e-6)
        (wanted_NE,) = torch.autograd.grad(truth_NX, exact_NE, upstream_NX)
        (got_NE,) = torch.autograd.grad(gates_NX, single_NE, upstream_NX.float())
        torch.testing.assert_close(
            got_NE.double(), wanted_NE, rtol=0, atol=1e-5 * max(1.0, float(wanted_NE.abs().max()))
        )


def test_gates_of_scores_in_another_type_are_refused() -> None:
    scores_NE = torch.ones(2, 4, dtype=torch.float64, device=DEVICE)
    ids_NX = torch.zeros(2, 1, dtype=torch.int64, device=DEVICE)
    with pytest.raises(ValueError, match="float32 scores"):
        gate_weights(scores_NE, ids_NX, ChoiceRule(num_chosen=1), "triton")
    with pytest.raises(ValueError, match="float32 scores"):
        choose_with_gates(scores_NE, None, ChoiceRule(num_chosen=1), "triton")


def test_choose_scores_that_are_no_numbers_still_give_experts_that_exist() -> None:
    rule, num_experts = RULES["small"]
    scores_NE = torch.full((3, num_experts), torch.nan, device=DEVICE)
    scores_NE[1, 3] = 0.5
    ids_NX = choose_experts(scores_NE, None, rule, "triton")
    assert bool(((ids_NX >= 0) & (ids_NX < num_experts)).all())
    assert all(len(set(row)) == rule.num_chosen for row in ids_NX.tolist())
