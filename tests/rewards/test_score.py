"""Which totals and parts are usable, at the bounds and beyond them."""

import math

import pytest

from samepath.rewards.score import MAX_PART, bounded_score


@pytest.mark.parametrize("total", [0.0, 1e6, -1e6, 5e-324])
def test_bounded_score_within_the_bound_is_usable(total: float) -> None:
    score = bounded_score(total, {"own": total}, 1e6)
    assert (score.status, score.total, score.parts) == ("ok", total, {"own": total})


@pytest.mark.parametrize("total", [math.nextafter(1e6, math.inf), -1e39, math.inf, -math.inf, math.nan])
def test_bounded_score_beyond_the_bound_is_invalid(total: float) -> None:
    score = bounded_score(total, {"own": 1.0}, 1e6)
    assert score.status == "invalid"
    assert math.isnan(score.total)
    assert score.parts == {}
    assert "reward.max_abs=1e+06" in score.detail


def test_bounded_score_part_that_is_only_logged_is_bounded_too() -> None:
    """A part of weight 0 does not reach the total, but it is averaged."""
    assert bounded_score(0.0, {"own": MAX_PART}, 1.0).status == "ok"
    score = bounded_score(0.0, {"fine": 1.0, "own": -1e39}, 1.0)
    assert score.status == "invalid"
    assert score.detail.endswith("got -1e+39 for own")
