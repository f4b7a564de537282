"""pass@k by hand, by counting, and where it is obvious."""

from itertools import combinations

import pytest

from samepath.rl.evaluation.pass_at import pass_at_k


def test_pass_at_k_by_hand() -> None:
    """Of 4 samples 1 is right: of the 6 pairs 3 hold it. The biased 1 − (3/4)² would be 0.4375."""
    assert pass_at_k(4, 1, 2) == 0.5
    assert pass_at_k(4, 1, 1) == 0.25
    assert pass_at_k(5, 2, 3) == pytest.approx(1 - 1 / 10)


@pytest.mark.parametrize(("n", "c"), [(n, c) for n in range(1, 7) for c in range(n + 1)])
def test_pass_at_k_is_the_share_of_k_samples_that_hold_a_right_one(n: int, c: int) -> None:
    for k in range(1, n + 1):
        drawn = list(combinations(range(n), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(any(index < c for index in one) for one in drawn) / len(drawn))


def test_pass_at_k_many_samples_is_a_number() -> None:
    assert pass_at_k(10_000, 5_000, 100) == pytest.approx(1.0)
    assert pass_at_k(1000, 1, 1000) == 1.0


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 5), (4, 1, 0)])
def test_pass_at_k_refuses_what_cannot_be(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="1 ≤ k ≤ samples"):
        pass_at_k(n, c, k)
