import pytest
import torch
from torch import Tensor

from samepath.rl.objective.aggregation import rollout_mean, rollout_sum, token_weights, trained_lengths
from samepath.rl.recipe.objective import AggregationSettings

# Sequences 0 and 1 (group 4) with 3 and 1 trained tokens, sequence 2 (group 9) with 2; rows 0 and 4 are prompt rows.
ROLLOUT_M = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
TRAINED_M = torch.tensor([False, True, True, True, False, True, True, True])
GROUP_B = torch.tensor([4, 4, 9])


def weights(mode: str, fixed_length: int = 0, group_B: Tensor = GROUP_B) -> Tensor:
    chosen = AggregationSettings(mode=mode, fixed_length=fixed_length)
    return token_weights(ROLLOUT_M, TRAINED_M, group_B, chosen, torch.float64)


def test_token_weights_sequence_mean_hand_worked_over_groups_of_two_sizes() -> None:
    # 2 groups; group 4 has 2 sequences, group 9 one: 1/(2·2·3), 1/(2·2·1), 1/(2·1·2).
    expected_M = torch.tensor([0, 1 / 12, 1 / 12, 1 / 12, 0, 1 / 4, 1 / 4, 1 / 4], dtype=torch.float64)
    torch.testing.assert_close(weights("sequence_mean"), expected_M)


def test_token_weights_sequence_mean_with_equal_groups_is_one_over_batch_and_length() -> None:
    expected_M = torch.tensor([0, 1 / 9, 1 / 9, 1 / 9, 0, 1 / 3, 1 / 6, 1 / 6], dtype=torch.float64)
    torch.testing.assert_close(weights("sequence_mean", group_B=torch.tensor([5, 6, 7])), expected_M)


def test_token_weights_token_mean_hand_worked() -> None:
    torch.testing.assert_close(weights("token_mean"), TRAINED_M.double() / 6)


def test_token_weights_constant_hand_worked() -> None:
    torch.testing.assert_close(weights("constant", 10), TRAINED_M.double() / 30)


@pytest.mark.parametrize(("mode", "total"), [("sequence_mean", 1.0), ("token_mean", 1.0), ("constant", 6 / 30)])
def test_token_weights_add_up(mode: str, total: float) -> None:
    assert weights(mode, 10 if mode == "constant" else 0).sum().item() == pytest.approx(total, rel=1e-14)


def test_token_weights_sequence_without_trained_tokens_still_counts_in_its_group() -> None:
    counted_M = TRAINED_M & (ROLLOUT_M != 1)
    weights_M = token_weights(ROLLOUT_M, counted_M, GROUP_B, AggregationSettings(), torch.float64)
    torch.testing.assert_close(weights_M[ROLLOUT_M == 0], weights("sequence_mean")[ROLLOUT_M == 0])
    assert weights_M[ROLLOUT_M == 1].tolist() == [0.0, 0.0]


def test_token_weights_default_dtype_is_float32() -> None:
    assert token_weights(ROLLOUT_M, TRAINED_M, GROUP_B, AggregationSettings()).dtype == torch.float32


def test_token_weights_of_a_batch_without_trained_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one trained token; got 3 rollouts with none"):
        token_weights(ROLLOUT_M, torch.zeros_like(TRAINED_M), GROUP_B, AggregationSettings())


def test_rollout_sum_and_mean_leave_untrained_rows_out_even_if_nan() -> None:
    values_M = torch.tensor([float("nan"), 1.0, 2.0, 6.0, float("inf"), 5.0, -1.0, -2.0], requires_grad=True)
    assert trained_lengths(ROLLOUT_M, TRAINED_M, 4).tolist() == [3, 1, 2, 0]
    assert rollout_sum(values_M, ROLLOUT_M, TRAINED_M, 4).tolist() == [9.0, 5.0, -3.0, 0.0]
    means_B = rollout_mean(values_M, ROLLOUT_M, TRAINED_M, 4)
    assert means_B.tolist() == [3.0, 5.0, -1.5, 0.0]
    (gradient_M,) = torch.autograd.grad(means_B.sum(), values_M)
    torch.testing.assert_close(gradient_M, torch.tensor([0, 1 / 3, 1 / 3, 1 / 3, 0, 1, 0.5, 0.5]))
