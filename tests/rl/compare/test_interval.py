"""Intervals against tables of Student's distribution, and numbers worked by hand."""

import math

import pytest

from samepath.rl.compare.interval import interval, sign_test, student_t, welch


@pytest.mark.parametrize(
    ("degrees", "confidence", "expected"),
    [
        (1, 0.95, 12.7062),
        (2, 0.95, 4.30265),
        (4, 0.95, 2.77645),
        (30, 0.95, 2.04227),
        (10, 0.99, 3.16927),
        (5000, 0.95, 1.96044),
    ],
)
def test_student_t_is_that_of_the_tables(degrees: int, confidence: float, expected: float) -> None:
    assert student_t(degrees, confidence) == pytest.approx(expected, abs=2e-5 * expected)


def test_interval_of_three_values_worked_by_hand() -> None:
    """Mean 2, deviation 1, half width 4.30265 / √3."""
    found = interval([1.0, 2.0, 3.0])
    assert (found.mean, found.count) == (2.0, 3)
    assert found.high - 2.0 == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
    assert 2.0 - found.low == pytest.approx(found.high - 2.0)


def test_interval_of_one_value_says_that_nothing_is_known() -> None:
    found = interval([0.5])
    assert found.mean == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_welch_worked_by_hand_and_narrower_than_the_worse_side_alone() -> None:
    """Variances 1 and 4 of three values: standard error √(5/3); degrees (5/3)² / ((1/3)²/2 + (4/3)²/2) = 50/17."""
    found = welch([1.0, 2.0, 3.0], [3.0, 5.0, 7.0])
    assert found.mean == 3.0
    assert found.high - 3.0 == pytest.approx(student_t(50 / 17) * math.sqrt(5 / 3))
    assert math.isnan(welch([1.0], [1.0, 2.0]).low)
    assert welch([1.0, 1.0], [2.0, 2.0]).low == 1.0


def test_sign_test_worked_by_hand() -> None:
    """8 of 10: 2 · (1 + 10 + 45) / 1024."""
    assert sign_test(8, 2) == sign_test(2, 8) == pytest.approx(112 / 1024)
    assert sign_test(0, 0) == sign_test(3, 3) == 1.0
