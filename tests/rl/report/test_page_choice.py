"""Which rollouts a page holds of more than it takes."""

from hypothesis import given
from hypothesis import strategies as st

from samepath.rl.report.page_choice import (
    PageLimits,
    StepSize,
    choose_steps,
    choose_token_values,
    ranges,
    spread_evenly,
    worst_first,
)
from tests.rl.report.test_page import tracked


def test_worst_first_is_failed_then_low_then_late() -> None:
    rollouts = {
        "failed": tracked(1, 0, 0, reward=1.0, reward_status="timeout"),
        "unscored": tracked(1, 0, 1, reward=float("nan")),
        "late": tracked(3, 0, 0, reward=-1.0),
        "early": tracked(2, 0, 0, reward=-1.0),
        "best": tracked(9, 0, 0, reward=2.0),
    }
    assert sorted(rollouts, key=lambda name: worst_first(rollouts[name])) == [
        "failed",
        "unscored",
        "late",
        "early",
        "best",
    ]


def test_ranges_joins_neighbours() -> None:
    assert ranges([1, 2, 3, 7, 9, 10]) == "1–3, 7, 9–10"


def test_spread_evenly_keeps_the_ends() -> None:
    assert spread_evenly(11, 3) == [0, 5, 10]
    assert spread_evenly(11, 1) == [10]
    assert spread_evenly(2, 5) == [0, 1]


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 500)), min_size=1, max_size=40),
    st.integers(1, 300),
    st.integers(1, 3000),
)
def test_choose_steps_fits_and_keeps_the_last(sizes: list[tuple[int, int]], rollouts: int, chars: int) -> None:
    steps = [StepSize(num_rollouts=count, num_chars=length) for count, length in sizes]
    chosen, first = choose_steps(steps, PageLimits(rollouts=rollouts, chars=chars))
    assert chosen == sorted(set(chosen))
    assert chosen[-1] == len(steps) - 1
    held = first if first is not None else sum(steps[index].num_rollouts for index in chosen)
    assert held <= max(rollouts, 1)
    if first is None:
        assert sum(steps[index].num_chars for index in chosen) <= chars
    if sum(count for count, _ in sizes) <= rollouts and sum(length for _, length in sizes) <= chars:
        assert (chosen, first) == (list(range(len(steps))), None)


def test_choose_token_values_passes_over_what_does_not_fit() -> None:
    keys = {
        (1, 0): ((True, 0.0, -1), 8, 8),
        (1, 1): ((True, 1.0, -1), 5, 8),
        (1, 2): ((True, 2.0, -1), 2, 2),
        (1, 3): ((True, 3.0, -1), 0, 0),
        (1, 4): ((True, -1.0, -1), 3, 2),
    }
    assert choose_token_values(keys, PageLimits(tokens=10)) == {(1, 0), (1, 2), (1, 3)}
