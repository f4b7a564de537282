"""Selection is exact: every backend equals a plain sort by (−logit, position) on rows made to break radix selectors."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samepath.kernels.backend import Backend
from samepath.kernels.selection.selection import KNOWN_POSITIONS, select, select_all, selection_fingerprint, splitmix64

BACKENDS: tuple[Backend, ...] = ("reference", "torch")


def sorted_oracle(row: Sequence[float], start: int, end: int, num_selected: int) -> list[int]:
    """Plain Python, independent of both backends."""

    def order(position: int) -> tuple[float, int]:
        value = row[position]
        return (math.inf if math.isnan(value) else -(value + 0.0), position)

    return sorted(sorted(range(start, end), key=order)[:num_selected])


def assert_selects(logits_NS: Tensor, starts: Sequence[int], ends: Sequence[int], num_selected: int) -> None:
    starts_N, ends_N = torch.tensor(starts), torch.tensor(ends)
    wanted = [sorted_oracle(row, start, end, num_selected) for row, start, end in zip(logits_NS.tolist(), starts, ends)]
    for backend in BACKENDS:
        indices_NC, count_N = select(logits_NS, starts_N, ends_N, num_selected, backend)
        assert indices_NC.dtype == count_N.dtype == torch.int32
        assert indices_NC.shape == (len(wanted), num_selected)
        got = [row[:count] for row, count in zip(indices_NC.tolist(), count_N.tolist())]
        assert got == wanted, backend
        tails = [row[count:] for row, count in zip(indices_NC.tolist(), count_N.tolist())]
        assert all(index == -1 for tail in tails for index in tail), backend


def one_fp16_octave(num_keys: int) -> Tensor:
    """Values of [1, 2) on float16's 1024 steps: every value many times, all in one exponent bin."""
    return (torch.arange(num_keys) * 7919 % 1024).float() / 1024 + 1


@pytest.mark.parametrize("num_selected", [1, 2, 7, 64])
@pytest.mark.parametrize(
    "row",
    [
        torch.zeros(300),
        torch.full((300,), -3.5),
        one_fp16_octave(300),
        torch.tensor([-0.0, 0.0, -0.0, 0.0, 1e-45, -1e-45] * 50),
        torch.full((300,), torch.nan),
        torch.tensor([torch.nan, 1.0, -torch.inf, torch.inf, 2.0] * 60),
        torch.full((300,), -torch.inf),
        torch.full((300,), torch.inf),
        torch.tensor([torch.finfo(torch.float32).min, -torch.inf, torch.nan] * 100),
        torch.tensor([torch.finfo(torch.float32).max, torch.inf, 0.0] * 100),
        torch.arange(300.0),
        -torch.arange(300.0),
    ],
    ids=[
        "all zero",
        "all equal",
        "one octave",
        "signed zeros and denormals",
        "all nan",
        "nan and infinities",
        "all minus infinity",
        "all plus infinity",
        "lowest finite beside minus infinity",
        "largest finite beside infinity",
        "ascending",
        "descending",
    ],
)
def test_select_adversarial_rows_equal_the_sort(row: Tensor, num_selected: int) -> None:
    bounds = [(0, 300), (0, 299), (17, 300), (40, 103), (5, 6), (9, 9), (290, 300)]
    starts, ends = zip(*bounds)
    assert_selects(row.repeat(len(bounds), 1), starts, ends, num_selected)


@pytest.mark.parametrize("num_above", [0, 5, 63, 64, 200])
def test_select_more_than_16384_equal_candidates_loses_none(num_above: int) -> None:
    """A selector with a fixed stash of equal candidates would run over here."""
    row = torch.full((20000,), 0.25)
    row[torch.arange(num_above) * 97 + 13] = 0.5
    assert_selects(torch.stack([row, row.flip(0)]), [0, 1000], [20000, 19990], 64)


def test_select_hand_worked_row_keeps_the_lower_equals() -> None:
    logits_NS = torch.tensor([[3.0, 1.0, 2.0, 2.0, 2.0, 0.0]])
    for backend in BACKENDS:
        indices_NC, count_N = select(logits_NS, torch.tensor([0]), torch.tensor([6]), 3, backend)
        assert indices_NC.tolist() == [[0, 2, 3]]
        assert count_N.tolist() == [3]


def test_select_fewer_valid_than_wanted_keeps_them_even_at_minus_infinity() -> None:
    logits_NS = torch.tensor([[9.0, -torch.inf, torch.nan, 4.0, 9.0]])
    for backend in BACKENDS:
        indices_NC, count_N = select(logits_NS, torch.tensor([1]), torch.tensor([4]), 4, backend)
        assert indices_NC.tolist() == [[1, 2, 3, -1]]
        assert count_N.tolist() == [3]


def test_select_more_wanted_than_keys_pads_with_minus_one() -> None:
    for backend in BACKENDS:
        indices_NC, count_N = select(torch.zeros(2, 3), torch.tensor([0, 0]), torch.tensor([3, 0]), 5, backend)
        assert indices_NC.tolist() == [[0, 1, 2, -1, -1], [-1] * 5]
        assert count_N.tolist() == [3, 0]


def test_select_float64_separates_what_float32_would_tie() -> None:
    logits_NS = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)
    for backend in BACKENDS:
        assert select(logits_NS, torch.tensor([0]), torch.tensor([2]), 1, backend)[0].tolist() == [[1]]


wild_values = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan]),
    st.floats(width=32),
    st.integers(-3, 3).map(float),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_select_wild_rows_equal_the_sort(data: st.DataObject) -> None:
    num_keys = data.draw(st.integers(1, 40))
    num_selected = data.draw(st.integers(1, 20))
    rows, starts, ends = [], [], []
    for _ in range(data.draw(st.integers(1, 4))):
        rows.append(data.draw(st.lists(wild_values, min_size=num_keys, max_size=num_keys)))
        starts.append(data.draw(st.integers(0, num_keys)))
        ends.append(data.draw(st.integers(starts[-1], num_keys)))
    assert_selects(torch.tensor(rows, dtype=torch.float32), starts, ends, num_selected)


def test_select_row_alone_equals_row_in_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_NS = torch.randn(50, 200, generator=generator).mul(4).round()
    starts_N, ends_N = torch.zeros(50, dtype=torch.int64), torch.arange(50) * 4 + 1
    whole, _ = select(logits_NS, starts_N, ends_N, 16, "torch")
    for row in (0, 7, 31, 49):
        alone, _ = select(logits_NS[row : row + 1], starts_N[row : row + 1], ends_N[row : row + 1], 16, "torch")
        assert torch.equal(alone[0], whole[row])


@pytest.mark.parametrize(
    ("logits_NS", "num_selected", "message"),
    [
        (torch.zeros(4), 1, r"logits \[N, S\]"),
        (torch.zeros(3, 4), 1, r"bounds \[N\]"),
        (torch.zeros(2, 4, dtype=torch.bfloat16), 1, "float32 or float64"),
        (torch.zeros(2, 4), 0, "at least 1"),
    ],
)
def test_select_bad_input_says_what_must_hold(logits_NS: Tensor, num_selected: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(logits_NS, torch.tensor([0, 0]), torch.tensor([4, 4]), num_selected, "torch")


def test_select_all_short_rows_equals_select() -> None:
    starts_N, ends_N = torch.tensor([0, 3, 10, 5]), torch.tensor([6, 3, 12, 6])
    logits_NS = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    for backend in BACKENDS:
        indices_NC, count_N = select(logits_NS, starts_N, ends_N, 6, backend)
        all_NC, all_N = select_all(starts_N, ends_N, 6)
        assert torch.equal(all_NC, indices_NC)
        assert torch.equal(all_N, count_N)
        assert (all_NC.dtype, all_N.dtype) == (indices_NC.dtype, count_N.dtype)


def splitmix64_in_python(value: int) -> int:
    """Steele et al., OOPSLA 2014, one step from state `value` · γ."""
    mask = 2**64 - 1
    z = (value * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_splitmix64_published_constants_give_the_published_stream() -> None:
    """State 0 gives 0xE220A8397B1DCDAF first, as in the authors' own test vector."""
    assert splitmix64_in_python(0) == 0xE220A8397B1DCDAF
    values = [0, 1, 2, 1000, 2**31, 2**62, -1, -(2**63)]
    hashed = splitmix64(torch.tensor(values)).numpy().view(np.uint64).tolist()
    assert hashed == [splitmix64_in_python(value % 2**64) for value in values]


def test_selection_fingerprint_order_changes_nothing_and_tail_is_ignored() -> None:
    one, other = torch.tensor([[3, 8, 5, -1, -1]]), torch.tensor([[8, 5, 3, 77, 12]])
    count_N = torch.tensor([3])
    assert torch.equal(selection_fingerprint(one, count_N), selection_fingerprint(other, count_N))


@pytest.mark.parametrize("last", [5, KNOWN_POSITIONS - 1, KNOWN_POSITIONS, 1 << 20])
def test_selection_fingerprint_is_the_sum_of_the_hashes_inside_the_table_and_behind_it(last: int) -> None:
    positions_NC = torch.tensor([[0, 3, last], [1, 2, -1]], dtype=torch.int32)
    wanted_N = [int(splitmix64(torch.tensor(row)).sum()) for row in ([0, 3, last], [1, 2])]
    assert selection_fingerprint(positions_NC, torch.tensor([3, 2])).tolist() == wanted_N


def test_selection_fingerprint_empty_row_is_zero() -> None:
    assert selection_fingerprint(torch.full((1, 4), -1), torch.tensor([0])).tolist() == [0]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    left=st.sets(st.integers(0, 200), min_size=1, max_size=12),
    right=st.sets(st.integers(0, 200), min_size=1, max_size=12),
)
def test_selection_fingerprint_is_equal_exactly_when_the_sets_are(left: set[int], right: set[int]) -> None:
    def fingerprint(members: set[int]) -> int:
        return int(selection_fingerprint(torch.tensor([list(members)]), torch.tensor([len(members)])))

    assert (fingerprint(left) == fingerprint(right)) == (left == right)
