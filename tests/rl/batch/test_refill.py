"""Which groups are trained where those without spread are replaced."""

import itertools
from dataclasses import replace

import pytest

from samepath.rewards.score import Score
from samepath.rl.batch.refill import has_spread, trained_groups, trained_places
from samepath.rl.recipe.algorithm import AlgorithmSettings
from tests.rl.sampled import group

FAILED = Score(total=float("nan"), parts={}, status="timeout")
SETTINGS = AlgorithmSettings(refill=2, prompts_per_step=2, updates_per_rollout=1)


@pytest.mark.parametrize(
    ("rewards", "wanted"),
    [
        ((1.0, 1.0), False),
        ((1.0, 0.5), True),
        ((1.0, FAILED), False),
        ((FAILED, FAILED), False),
        ((0.0, 0.0, FAILED, 1.0), True),
    ],
)
def test_has_spread_looks_at_usable_rewards_alone(rewards: tuple[float | Score, ...], wanted: bool) -> None:
    assert has_spread(group("g", *rewards), SETTINGS) is wanted


def test_has_spread_is_asked_behind_the_penalty_of_truncated_answers() -> None:
    made = group("g", 1.0, 1.0)
    (segment,) = made.rollouts[1].segments
    cut = replace(made.rollouts[1], segments=(replace(segment, finish_reason="length"),))
    made = replace(made, rollouts=(made.rollouts[0], cut))
    assert not has_spread(made, SETTINGS)
    penalised = AlgorithmSettings.model_validate({"truncated": {"mode": "penalise", "penalty": 0.5}})
    assert has_spread(made, penalised)


def test_trained_places_equal_the_naive_twin() -> None:
    for spread in itertools.product((False, True), repeat=5):
        for wanted in range(1, 6):
            able = [place for place, one in enumerate(spread) if one][:wanted]
            unable = [place for place, one in enumerate(spread) if not one][: wanted - len(able)]
            assert trained_places(spread, wanted) == sorted(able + unable)


def test_trained_groups_counts_what_was_sampled_and_not_trained() -> None:
    scored = [group("a", 1.0, 1.0), group("b", 1.0, 0.0), group("c", 0.0, 1.0)]
    made = trained_groups(scored, SETTINGS)
    assert [one.group_id for one in made.groups] == ["b", "c"]
    assert made.metrics() == {"rollout/groups_replaced": 1.0, "rollout/tokens_replaced": 3.0}
    plain = trained_groups(scored, AlgorithmSettings())
    assert (plain.groups, plain.metrics()) == (scored, {})
