import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samepath.rl.objective.advantage import advantages, apply_truncation, informative_groups
from samepath.rl.recipe.advantage import AdvantageSettings, TruncationSettings

NAN = float("nan")
# Group 7: 1, 0, 0, 1. Group 3, interleaved with it: 3, 0.
REWARDS_B = torch.tensor([1.0, 3.0, 0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
GROUP_B = torch.tensor([7, 3, 7, 3, 7, 7])
SCORED_B = torch.ones(6, dtype=torch.bool)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_advantages_default_is_reward_minus_group_mean_without_scaling() -> None:
    result_B = advantages(REWARDS_B, GROUP_B, SCORED_B, AdvantageSettings())
    torch.testing.assert_close(result_B, doubles(0.5, 1.5, -0.5, -1.5, -0.5, 0.5))


def test_advantages_leave_one_out_compares_with_the_others() -> None:
    result_B = advantages(REWARDS_B, GROUP_B, SCORED_B, AdvantageSettings(baseline="leave_one_out"))
    # Group 7: 1 − 1/3 and 0 − 2/3; group 3: 3 − 0 and 0 − 3.
    torch.testing.assert_close(result_B, doubles(2 / 3, 3.0, -2 / 3, -3.0, -2 / 3, 2 / 3))


def test_advantages_group_std_divides_by_each_groups_sample_deviation() -> None:
    result_B = advantages(REWARDS_B, GROUP_B, SCORED_B, AdvantageSettings(scale="group_std"))
    first, second = math.sqrt(4 * 0.25 / 3) + 1e-6, math.sqrt(2 * 2.25) + 1e-6
    expected_B = doubles(0.5 / first, 1.5 / second, -0.5 / first, -1.5 / second, -0.5 / first, 0.5 / first)
    torch.testing.assert_close(result_B, expected_B)


def test_advantages_batch_std_divides_by_one_deviation_of_all_scored_rewards() -> None:
    rewards_B = torch.cat([REWARDS_B, doubles(NAN)])
    group_B, scored_B = torch.cat([GROUP_B, torch.tensor([3])]), torch.cat([SCORED_B, torch.tensor([False])])
    result_B = advantages(rewards_B, group_B, scored_B, AdvantageSettings(scale="batch_std"))
    # Mean 5/6; squares sum to 11 − 25/6.
    deviation = math.sqrt((11 - 25 / 6) / 5) + 1e-6
    torch.testing.assert_close(result_B, doubles(0.5, 1.5, -0.5, -1.5, -0.5, 0.5, 0.0) / deviation)


@pytest.mark.parametrize("scale", ["none", "group_std", "batch_std"])
@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
def test_advantages_failed_reward_is_as_if_it_were_not_there(scale, baseline) -> None:
    chosen = AdvantageSettings(scale=scale, baseline=baseline)
    without_B = advantages(doubles(1, 0, 0), torch.zeros(3, dtype=torch.int64), SCORED_B[:3], chosen)
    scored_B = torch.tensor([True, False, True, True])
    with_B = advantages(doubles(1, NAN, 0, 0), torch.zeros(4, dtype=torch.int64), scored_B, chosen)
    assert with_B[1].item() == 0.0
    torch.testing.assert_close(with_B[scored_B], without_B)
    assert without_B[0] > 0.5


@pytest.mark.parametrize("scale", ["none", "group_std", "batch_std"])
@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reward", [0.1, 0.7, -3.3, 1e6 + 0.1])
def test_advantages_of_a_constant_group_are_exactly_zero(scale, baseline, dtype, reward) -> None:
    rewards_B = torch.tensor([reward] * 7 + [1.0, 2.0], dtype=dtype)
    group_B = torch.tensor([0] * 7 + [1, 1])
    result_B = advantages(
        rewards_B, group_B, torch.ones(9, dtype=torch.bool), AdvantageSettings(scale=scale, baseline=baseline)
    )
    assert torch.equal(result_B[:7], torch.zeros(7, dtype=dtype))
    assert result_B[8] > 0


@pytest.mark.parametrize("scale", ["none", "group_std", "batch_std"])
@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
def test_advantages_with_fewer_than_two_scored_in_the_group_are_zero(scale, baseline) -> None:
    rewards_B = doubles(5, NAN, NAN, NAN)
    scored_B = torch.tensor([True, False, False, False])
    chosen = AdvantageSettings(scale=scale, baseline=baseline)
    assert torch.equal(advantages(rewards_B, torch.tensor([0, 0, 1, 1]), scored_B, chosen), doubles(0, 0, 0, 0))


def test_advantages_scored_reward_that_is_nan_is_refused_with_its_place() -> None:
    with pytest.raises(ValueError, match=r"got 2 that are not, the first at sequence 1\. Set scored_B"):
        advantages(doubles(1, NAN, math.inf), torch.zeros(3, dtype=torch.int64), SCORED_B[:3], AdvantageSettings())


REWARD_LISTS = st.lists(
    st.tuples(st.integers(0, 3), st.one_of(st.none(), st.sampled_from([0.0, 0.1, 0.5, 1.0, -2.0]))),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)
@given(REWARD_LISTS, st.booleans())
def test_advantages_of_random_groups_equal_a_loop(entries: list[tuple[int, float | None]], leave_one_out: bool) -> None:
    groups: dict[int, list[float]] = {}
    for group, reward in entries:
        if reward is not None:
            groups.setdefault(group, []).append(reward)
    expected = []
    for group, reward in entries:
        rewards = groups.get(group, [])
        if reward is None or len(rewards) < 2:
            expected.append(0.0)
        elif leave_one_out:
            expected.append(reward - (sum(rewards) - reward) / (len(rewards) - 1))
        else:
            expected.append(reward - sum(rewards) / len(rewards))
    result_B = advantages(
        doubles(*[NAN if reward is None else reward for _, reward in entries]),
        torch.tensor([group for group, _ in entries]),
        torch.tensor([reward is not None for _, reward in entries]),
        AdvantageSettings(baseline="leave_one_out" if leave_one_out else "group_mean"),
    )
    torch.testing.assert_close(result_B, doubles(*expected), rtol=0, atol=1e-12)


def test_informative_groups_are_those_with_spread_in_order_of_their_labels() -> None:
    group_B = torch.tensor([9, 9, 2, 2, 5, 5, 5, 1, 1])
    rewards_B = doubles(0.1, 0.1, 1, 0, NAN, 1, 1, NAN, 1)
    scored_B = ~rewards_B.isnan()
    # Labels 1 (one scored), 2 (spread), 5 (spread only through the failure), 9 (constant).
    assert informative_groups(rewards_B, group_B, scored_B).tolist() == [False, True, False, False]


def test_informative_groups_agree_with_nonzero_advantages() -> None:
    result_B = advantages(REWARDS_B, GROUP_B, SCORED_B, AdvantageSettings())
    assert informative_groups(REWARDS_B, GROUP_B, SCORED_B).tolist() == [True, True]
    assert (result_B != 0).all()


TRUNCATED_B = torch.tensor([False, True, True])


def test_apply_truncation_train_changes_nothing() -> None:
    outcome = apply_truncation(doubles(1, 0.5, NAN), TRUNCATED_B, TruncationSettings(mode="train"))
    assert outcome.rewards_B[:2].tolist() == [1.0, 0.5]
    assert outcome.in_loss_B.tolist() == [True, True, True]


def test_apply_truncation_mask_leaves_rewards_and_takes_truncated_out_of_the_loss() -> None:
    outcome = apply_truncation(doubles(1, 0.5, NAN), TRUNCATED_B, TruncationSettings(mode="mask"))
    assert outcome.rewards_B[:2].tolist() == [1.0, 0.5]
    assert outcome.in_loss_B.tolist() == [True, False, False]


def test_apply_truncation_penalise_lowers_the_reward_and_leaves_failures_nan() -> None:
    outcome = apply_truncation(doubles(1, 0.5, NAN), TRUNCATED_B, TruncationSettings(mode="penalise", penalty=0.75))
    assert outcome.rewards_B[:2].tolist() == [1.0, -0.25]
    assert outcome.rewards_B[2].isnan()
    assert outcome.in_loss_B.tolist() == [True, True, True]


@pytest.mark.parametrize(
    ("scale", "expected"), [("none", 1e12), ("group_std", 1 / math.sqrt(2)), ("batch_std", 1 / math.sqrt(2))]
)
def test_advantages_largest_rewards_that_can_be_allowed_stay_finite(scale: str, expected: float) -> None:
    """±1e12, the largest `reward.max_abs`, in float32 as in a batch; the deviation of two numbers is √2 of their half distance."""
    result_B = advantages(
        torch.tensor([1e12, -1e12]),
        torch.zeros(2, dtype=torch.int64),
        torch.ones(2, dtype=torch.bool),
        AdvantageSettings(scale=scale),
    )
    assert result_B.tolist() == pytest.approx([expected, -expected], rel=1e-6)
