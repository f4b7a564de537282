"""Which keys a row sees: right whatever the bucketing, and never a grid beyond its bound."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samepath.kernels.window import AttentionPlan
from samepath.model import plan as plan_module
from samepath.model.plan import Span, merge_plans, plan_decode, plan_spans


def seen_keys(plan: AttentionPlan, num_rows: int) -> list[list[int]]:
    """Key-store rows that each batch row may attend to, read the way attention reads the plan."""
    rows, keys = [], []
    for window in plan.windows:
        assert int(window.ends_BT.max()) <= window.longest
        for sequence in range(window.rows_BT.shape[0]):
            for query in range(window.rows_BT.shape[1]):
                end = int(window.ends_BT[sequence, query])
                rows.append(int(window.rows_BT[sequence, query]))
                keys.append(window.keys_BS[sequence, :end].tolist())
    rows.append(-1)
    keys.append([])
    for row, source in enumerate(plan.source_N.tolist()):
        assert rows[source] in (row, -1) or not keys[source]
    return [keys[source] for source in plan.source_N.tolist()][:num_rows]


def make_spans(shapes: list[tuple[int, int]]) -> list[Span]:
    """(first, count) of each span; sequence i's position p stands in key row 1000·i + p."""
    spans, row = [], 0
    for number, (first, count) in enumerate(shapes):
        keys = torch.arange(first + count) + 1000 * number
        spans.append(Span(row=row, first=first, count=count, keys=keys))
        row += count
    return spans


def wanted_keys(spans: list[Span], num_rows: int) -> list[list[int]]:
    wanted: list[list[int]] = [[] for _ in range(num_rows)]
    for span in spans:
        for offset in range(span.count):
            wanted[span.row + offset] = span.keys[: span.first + offset + 1].tolist()
    return wanted


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shapes=st.lists(st.tuples(st.integers(0, 90), st.integers(1, 60)), min_size=1, max_size=6),
    bound=st.sampled_from([1 << 13, 1 << 15, 1 << 23]),
    heads=st.sampled_from([0, 1, 3]),
)
def test_plan_spans_every_row_sees_its_own_past_within_the_bound(
    shapes: list[tuple[int, int]], bound: int, heads: int
) -> None:
    spans = make_spans(shapes)
    num_rows = plan_module.round_up(sum(count for _, count in shapes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "MAX_WINDOW_ELEMENTS", bound)
        plan = plan_spans(spans, num_rows, heads)
    assert seen_keys(plan, num_rows) == wanted_keys(spans, num_rows)
    for window in plan.windows:
        assert window.rows_BT.numel() * window.keys_BS.shape[1] * heads <= bound
        assert window.keys_BS.shape[1] % 16 == 0


def test_plan_spans_one_long_sequence_is_cut_instead_of_squared() -> None:
    """32768 rows over 32768 keys would be 2^30 logits a head; each window holds at most 2^23."""
    spans = make_spans([(0, 32768)])
    plan = plan_spans(spans, 32768, 4)
    assert len(plan.windows) <= 32768 // 64
    assert max(w.rows_BT.numel() * w.keys_BS.shape[1] * 4 for w in plan.windows) <= plan_module.MAX_WINDOW_ELEMENTS
    # Kernels that hold no scores take it whole.
    assert len(plan_spans(spans, 32768, 0).windows) == 1


def test_plan_spans_similar_lengths_share_a_window_and_unlike_ones_do_not() -> None:
    assert len(plan_spans(make_spans([(0, 30), (0, 32), (0, 31)]), 96, 1).windows) == 1
    assert len(plan_spans(make_spans([(0, 4), (0, 5), (0, 900)]), 912, 1).windows) == 2


def test_plan_spans_sequences_are_apart_only_if_all_their_keys_are_their_own_rows() -> None:
    own = [
        Span(row=row, first=0, count=count, keys=torch.arange(row, row + count)) for row, count in ((0, 30), (30, 31))
    ]
    assert [window.apart for window in plan_spans(own, 64, 1).windows] == [True]
    prompt = torch.arange(18)
    shared = [
        Span(row=start, first=18, count=5, keys=torch.cat([prompt, torch.arange(start, start + 5)]))
        for start in (18, 23)
    ]
    assert [window.apart for window in plan_spans(shared, 32, 1).windows] == [False]
    # Slots of a cache, which several sequences may point to.
    cached = [Span(row=row, first=0, count=4, keys=torch.arange(9, 13)) for row in (0, 4)]
    assert [window.apart for window in plan_spans(cached, 16, 1).windows] == [False]


@pytest.mark.parametrize("bound", [1, 40, 1 << 23])
def test_plan_decode_rows_see_their_cache_whatever_the_bound(monkeypatch: pytest.MonkeyPatch, bound: int) -> None:
    monkeypatch.setattr(plan_module, "MAX_WINDOW_ELEMENTS", bound)
    ends_B, keys_BS = torch.tensor([3, 16, 1]), torch.arange(48).view(3, 16) + 100
    plan = plan_decode(ends_B, keys_BS, 16, 2)
    assert len(plan.windows) == (1 if bound > 1000 else 3)
    assert seen_keys(plan, 16) == [keys_BS[b, :end].tolist() for b, end in enumerate([3, 16, 1])] + [[]] * 13


def test_plan_decode_takes_the_bound_that_it_is_given_as_longest() -> None:
    ends_B, keys_BS = torch.tensor([3, 9, 1]), torch.arange(48).view(3, 16) + 100
    given = plan_decode(ends_B, keys_BS, 16, 2, longest=16)
    assert [window.longest for window in given.windows] == [16]
    assert seen_keys(given, 16) == seen_keys(plan_decode(ends_B, keys_BS, 16, 2), 16)
    assert plan_decode(ends_B, keys_BS, 16, 2).windows[0].longest == 9


@pytest.mark.parametrize("num_decoding", [1, 3, 16])
def test_merge_plans_stacks_decode_rows_before_prompt_rows(num_decoding: int) -> None:
    ends_B = torch.arange(num_decoding) + 1
    keys_BS = torch.arange(num_decoding * 16).view(num_decoding, 16) + 5000
    spans = make_spans([(4, 7), (0, 20)])
    num_rows = plan_module.round_up(num_decoding + 27)
    decode = plan_decode(ends_B, keys_BS, plan_module.round_up(num_decoding), 1)
    merged = merge_plans(decode, plan_spans(spans, num_rows - num_decoding, 1), num_decoding, num_rows)
    wanted = [keys_BS[b, : b + 1].tolist() for b in range(num_decoding)]
    assert seen_keys(merged, num_rows) == wanted + wanted_keys(spans, num_rows - num_decoding)
