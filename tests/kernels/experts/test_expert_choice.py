"""Expert choice and gates by hand; the fused kernel gives the same ids and the same bits."""

import pytest
import torch
from torch import Tensor

from samepath.kernels.experts.expert_choice import ChoiceRule, choose_experts, choose_with_gates, gate_weights

PLAIN = ChoiceRule(num_chosen=2, normalised=False)
GROUPED = ChoiceRule(num_chosen=2, num_groups=4, open_groups=2)


def chosen(scores_NE: Tensor, rule: ChoiceRule, bias_E: Tensor | None = None) -> list[list[int]]:
    ids: list[list[int]] = choose_experts(scores_NE, bias_E, rule, "torch").tolist()
    return ids


def test_choose_experts_takes_the_best_first() -> None:
    assert chosen(torch.tensor([[0.1, 0.9, 0.3, 0.8, 0.2, 0.0, 0.7, 0.6]]), PLAIN) == [[1, 3]]


def test_choose_experts_ties_go_to_the_lower_id() -> None:
    scores_NE = torch.tensor([[0.5] * 8, [0.1, 0.5, 0.5, 0.5, 0.1, 0.5, 0.5, 0.5]])
    assert chosen(scores_NE, ChoiceRule(num_chosen=3)) == [[0, 1, 2], [1, 2, 3]]
    assert chosen(scores_NE, ChoiceRule(num_chosen=2, num_groups=4, open_groups=1)) == [[0, 1], [2, 3]]


def test_choose_experts_group_limit_shuts_out_the_best_expert_of_a_poor_group() -> None:
    """Groups of two: sums 0.95, 1.2, 1.0, 0.2; the two best groups are {2, 3} and {4, 5}; expert 0 (0.9) is shut out."""
    scores_NE = torch.tensor([[0.9, 0.05, 0.6, 0.6, 0.5, 0.5, 0.1, 0.1]])
    assert chosen(scores_NE, GROUPED) == [[2, 3]]
    assert chosen(scores_NE, PLAIN) == [[0, 2]]


def test_choose_experts_shut_groups_stay_shut_when_all_biased_scores_are_negative() -> None:
    scores_NE = torch.tensor([[0.9, 0.05, 0.6, 0.6, 0.5, 0.5, 0.1, 0.1]])
    assert chosen(scores_NE, GROUPED, torch.full((8,), -5.0)) == [[2, 3]]


def test_choose_experts_bias_changes_the_choice_but_not_the_gates() -> None:
    scores_NE = torch.tensor([[0.8, 0.4, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1]])
    bias_E = torch.zeros(8)
    bias_E[2] = 0.5
    rule = ChoiceRule(num_chosen=2, scale=2.5)
    ids_NX, gates_NX = choose_with_gates(scores_NE, bias_E, rule, "torch")
    assert ids_NX.tolist() == [[0, 2]]
    assert gates_NX[0].tolist() == pytest.approx([0.8 * 2.5, 0.2 * 2.5])


def test_gate_weights_are_renormalised_only_if_asked() -> None:
    scores_NE, ids_NX = torch.tensor([[0.6, 0.2, 0.2]]), torch.tensor([[2, 0]])
    renormalised = gate_weights(scores_NE, ids_NX, ChoiceRule(num_chosen=2, scale=2.0))
    assert renormalised[0].tolist() == pytest.approx([0.5, 1.5])
    plain = gate_weights(scores_NE, ids_NX, ChoiceRule(num_chosen=2, scale=2.0, normalised=False))
    assert plain[0].tolist() == pytest.approx([0.4, 1.2])


def test_gate_weights_carry_gradient_to_the_scores() -> None:
    """Of a/(a+b): b/(a+b)² and −a/(a+b)²."""
    scores_NE = torch.tensor([[0.6, 0.2, 0.2]], requires_grad=True)
    ids_NX, gates_NX = choose_with_gates(scores_NE, None, ChoiceRule(num_chosen=2), "torch")
    gates_NX[0, 0].backward()
    assert ids_NX.tolist() == [[0, 1]]
    assert scores_NE.grad is not None
    assert scores_NE.grad[0].tolist() == pytest.approx([0.2 / 0.64, -0.6 / 0.64, 0.0])
