"""Length rewards against numbers worked by hand."""

import pytest

from samepath.rewards.length import brevity, overlong
from samepath.rewards.request import RewardRequest


def request(num_tokens: int) -> RewardRequest:
    return RewardRequest(prompt_text="", response_text="", num_tokens=num_tokens)


@pytest.mark.parametrize(("tokens", "expected"), [(0, 1.0), (25, 0.75), (100, 0.0), (150, 0.0)])
def test_brevity_falls_from_one_to_zero(tokens, expected):
    assert brevity(request(tokens), max_tokens=100) == expected


@pytest.mark.parametrize(
    ("tokens", "expected"), [(0, 0.0), (80, 0.0), (85, -0.25), (90, -0.5), (100, -1.0), (200, -1.0)]
)
def test_overlong_falls_linearly_within_the_buffer(tokens, expected):
    assert overlong(request(tokens), max_tokens=100, buffer_tokens=20) == expected


def test_length_rewards_impossible_limits_are_refused():
    with pytest.raises(ValueError, match="max_tokens must be at least 1; got 0"):
        brevity(request(1), max_tokens=0)
    with pytest.raises(ValueError, match=r"\[1, max_tokens = 10\]; got 11"):
        overlong(request(1), max_tokens=10, buffer_tokens=11)
