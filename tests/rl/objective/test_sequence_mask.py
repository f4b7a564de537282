import torch

from samepath.rl.objective.sequence_mask import kept_sequences, off_policy_statistic
from samepath.rl.recipe.objective import SequenceMaskSettings

# Three sequences of 2, 1 and 1 trained tokens; row 1 is a prompt row that must not count.
SEQUENCE_M = torch.tensor([0, 0, 0, 1, 2])
TRAINED_M = torch.tensor([True, False, True, True, True])
SAMPLER_M = torch.tensor([-1.0, float("nan"), -2.0, -0.5, -1.0], dtype=torch.float64)
LEARNER_M = torch.tensor([-1.5, 7.0, -2.1, -0.3, -1.25], dtype=torch.float64)


def test_off_policy_statistic_hand_worked_is_mean_of_sampler_minus_learner() -> None:
    statistic_B = off_policy_statistic(LEARNER_M, SAMPLER_M, SEQUENCE_M, TRAINED_M, 3)
    # (0.5 + 0.1)/2, −0.2, 0.25.
    torch.testing.assert_close(statistic_B, torch.tensor([0.3, -0.2, 0.25], dtype=torch.float64))


def test_off_policy_statistic_carries_no_gradient() -> None:
    learner_M = LEARNER_M.clone().requires_grad_()
    assert not off_policy_statistic(learner_M, SAMPLER_M, SEQUENCE_M, TRAINED_M, 3).requires_grad


def test_off_policy_statistic_of_a_sequence_without_trained_tokens_is_zero() -> None:
    statistic_B = off_policy_statistic(LEARNER_M, SAMPLER_M, SEQUENCE_M, TRAINED_M, 4)
    assert statistic_B[3].item() == 0.0


def test_kept_sequences_masks_only_negative_advantage_above_delta() -> None:
    advantages_B = torch.tensor([-1.0, -1.0, 1.0, 0.0, -1.0])
    statistic_B = torch.tensor([0.3, 0.1, 0.3, 0.3, 0.2])
    kept_B = kept_sequences(advantages_B, statistic_B, SequenceMaskSettings(delta=0.2))
    # Above δ; below δ; above δ but good; above δ but neutral; exactly δ (0.2 in float32 on both sides).
    assert kept_B.tolist() == [False, True, True, True, True]


def test_kept_sequences_far_in_the_other_direction_is_kept() -> None:
    kept_B = kept_sequences(torch.tensor([-1.0]), torch.tensor([-50.0]), SequenceMaskSettings(delta=1e-4))
    assert kept_B.tolist() == [True]


def test_kept_sequences_disabled_keeps_all() -> None:
    kept_B = kept_sequences(torch.tensor([-1.0]), torch.tensor([9.0]), SequenceMaskSettings(enabled=False))
    assert kept_B.tolist() == [True]
