"""Conversations whose contexts new weights compute anew: cut wherever they came, so that every segment is one version's in every row."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings

from samepath.rl.batch.segment_check import check_segments
from samepath.rollout.conservation import check_conservation, drift_cuts, weight_cuts
from samepath.rollout.segments import SegmentError, as_calls, joined_segments
from samepath.rollout.types import TOKEN_KINDS, WEIGHTS, CallSpan, Segment
from tests.conversations import conversations, drawn_call, numbered, recomputed_call, recomputed_conversations
from tests.rl.sampled import rollout
from tests.rollout.test_segments import drawn_tokens


def conversation(*calls: tuple[list[int], list[tuple[int, list[int]]], int]) -> list[Segment]:
    """Calls of (prompt, what each version drew, epoch)."""
    return [
        segment
        for index, (prompt, drawn, epoch) in enumerate(calls)
        for segment in as_calls(recomputed_call(prompt, drawn), index=index, epoch=epoch)
    ]


def spans(segments: Sequence[Segment]) -> list[list[tuple[int, int, int]]]:
    return [[(span.index, span.first, span.end) for span in one.calls] for one in segments]


def assert_one_versions_own(segments: Sequence[Segment]) -> None:
    """Each segment has the records that its version alone gives its tokens."""
    for segment in segments:
        (version,) = set(segment.weight_version[segment.trained].tolist())
        whole = drawn_call(segment.token_ids.tolist(), [], version=version)
        assert np.array_equal(segment.routes, whole.routes)
        assert whole.selection_fingerprint is not None
        assert np.array_equal(segment.selection_fingerprint, whole.selection_fingerprint)
        assert (segment.superseded_rows, segment.route_conflicts) == (0, 0)


def test_new_weights_within_a_call_cut_it_by_hand() -> None:
    """[4] by version 0, [5, 6] by version 1, which also draws the second call: its segment begins behind [4]."""
    calls = conversation(([2, 3], [(0, [4]), (1, [5, 6])], 0), ([2, 3, 4, 5, 6, 7], [(1, [8])], 0))
    first, second = joined_segments(calls, exact=True, one_version=True)
    assert (first.token_ids.tolist(), second.token_ids.tolist()) == ([2, 3, 4], [2, 3, 4, 5, 6, 7, 8])
    assert second.trained.tolist() == [False, False, False, True, True, False, True]
    assert spans([first, second]) == [[(0, 2, 3)], [(0, 3, 5), (1, 6, 7)]]
    assert (first.finish_reason, second.finish_reason) == (WEIGHTS, "stop")
    assert_one_versions_own([first, second])


def test_new_weights_between_two_calls_cut_there_by_hand() -> None:
    calls = conversation(([2, 3], [(0, [4, 5])], 0), ([2, 3, 4, 5, 6], [(1, [7])], 0))
    first, second = joined_segments(calls, exact=True, one_version=True)
    assert (first.token_ids.tolist(), second.token_ids.tolist()) == ([2, 3, 4, 5], [2, 3, 4, 5, 6, 7])
    assert second.trained.tolist() == [False] * 5 + [True]
    assert spans([first, second]) == [[(0, 2, 4)], [(1, 5, 6)]]
    assert (first.finish_reason, weight_cuts([first, second])) == ("stop", 1)
    assert_one_versions_own([first, second])


def test_three_versions_and_an_epoch_between_by_hand() -> None:
    """Version 1 goes on across the change of epoch, where the epoch alone cuts; version 2 comes in the call behind it."""
    calls = conversation(
        ([2, 3], [(0, [4]), (1, [5])], 0), ([2, 6], [(1, [7]), (2, [8])], 1), ([2, 6, 7, 8, 9], [(2, [4, 4])], 1)
    )
    segments = joined_segments(calls, exact=True, one_version=True)
    assert [one.epoch for one in segments] == [0, 0, 1, 1]
    assert spans(segments) == [[(0, 2, 3)], [(0, 3, 4)], [(1, 2, 3)], [(1, 3, 4), (2, 5, 7)]]
    assert [int(one.weight_version.max()) for one in segments] == [0, 1, 1, 2]
    check_conservation(segments, "here")
    assert (drift_cuts(segments), weight_cuts(segments)) == ([], 2)
    assert_one_versions_own(segments)


@settings(deadline=None, max_examples=60)
@given(recomputed_conversations(truncated=True))
def test_any_change_of_weights_conserves_every_token_in_a_segment_of_its_own_version(calls: list[Segment]) -> None:
    segments = joined_segments(calls, exact=True, one_version=True)
    assert drawn_tokens(segments) == drawn_tokens(calls)
    check_segments(rollout("g", 0, 1.0, segments=segments), strict=True, one_version=True)
    assert_one_versions_own(segments)
    assert all(one.trained.any() for one in segments)
    runs = [key for key, _ in groupby(calls, key=lambda one: (one.epoch, int(one.weight_version.max())))]
    assert [(one.epoch, int(one.weight_version.max())) for one in segments] == runs
    assert drift_cuts(segments) == []
    assert weight_cuts(segments) == len(segments) - len({one.epoch for one in segments})
    for one in segments:
        assert one.kinds is not None
        kinds = [TOKEN_KINDS[kind] for kind in one.kinds]
        assert [kind == "trained" for kind in kinds] == one.trained.tolist()
        # What the call drew before it was cut is read again here; of earlier calls the prompt says who made it.
        cut = one.calls[0].first
        begun = next(call.calls[0].first for call in calls if call.calls[0].index == one.calls[0].index)
        assert kinds[begun:cut] == ["sampled"] * (cut - begun)


@settings(deadline=None, max_examples=30)
@given(conversations(truncated=True))
def test_where_no_weights_come_the_cut_changes_nothing(calls: list[Segment]) -> None:
    still = [
        replace(call, weight_version=np.where(call.trained, 3, -1).astype(np.int32))
        for call in numbered([replace(call, epoch=0) for call in calls], [call.epoch for call in calls])
    ]
    one, other = (joined_segments(still, exact=False, one_version=way) for way in (False, True))
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        for name in ("token_ids", "trained", "sampler_logprobs", "routes", "selection_fingerprint", "weight_version"):
            assert np.array_equal(getattr(left, name), getattr(right, name)), name
        assert (left.calls, left.finish_reason, left.epoch) == (right.calls, right.finish_reason, right.epoch)


def test_segment_that_holds_rows_or_tokens_of_two_versions_is_refused_before_it_is_trained() -> None:
    """Without the cut: the first call's rows stay its version's, the others are those of the second's."""
    calls = numbered([drawn_call([2, 3], [4, 5]), drawn_call([2, 3, 4, 5, 6], [7], version=1)], [0, 0])
    (whole,) = joined_segments(calls, exact=True)
    held = rollout("a", 1, 0.0, segments=(whole,))
    check_segments(held, strict=True)
    with pytest.raises(SegmentError, match=r"a/1, segment 0: .* got tokens of \[0, 1\] and 3 rows of others"):
        check_segments(held, strict=True, one_version=True)


def test_call_of_several_versions_in_one_segment_is_no_engines_that_computes_anew() -> None:
    mixed = drawn_call([2, 3], [4, 5])
    versions = mixed.weight_version.copy()
    versions[-1] = 1
    calls = numbered([replace(mixed, weight_version=versions)], [0])
    assert len(joined_segments(calls, exact=True)) == 1
    with pytest.raises(SegmentError, match=r"one weight version must have drawn .* got \[0, 1\] for call 0"):
        joined_segments(calls, exact=True, one_version=True)
    with pytest.raises(SegmentError, match=r"got \[\] for call 0"):
        joined_segments(numbered([drawn_call([2, 3], [])], [0]), exact=True, one_version=True)


def test_call_that_new_weights_cut_is_refused_where_nobody_asked_for_it() -> None:
    calls = conversation(([2, 3], [(0, [4]), (1, [5])], 0))
    with pytest.raises(SegmentError, match=r"only where a conversation is cut at them .* got \[0\] cut without"):
        joined_segments(calls, exact=True)


def changed(segment: Segment, place: int = -1, **span: int | str) -> Segment:
    own: list[CallSpan] = list(segment.calls)
    own[place] = replace(own[place], **span)
    return replace(segment, calls=tuple(own))


def test_cut_call_must_go_on_behind_the_same_tokens_in_the_next_segment() -> None:
    calls = conversation(([2, 3], [(0, [4]), (1, [5])], 0), ([2, 3, 4, 5, 6], [(1, [7])], 0))
    first, second = joined_segments(calls, exact=True, one_version=True)
    check_conservation([first, second], "g/0")
    other = conversation(([2, 8], [(0, [4]), (1, [5])], 0), ([2, 8, 4, 5, 6], [(1, [7])], 0))
    _, elsewhere = joined_segments(other, exact=True, one_version=True)
    for broken in (
        [first, elsewhere],
        [first, replace(second, epoch=1)],
        [changed(first, finish_reason="stop"), changed(second, finish_reason=WEIGHTS)],
        [first],
    ):
        with pytest.raises(SegmentError, match="g/0: (a call that new weights cut must go on|every call of the model)"):
            check_conservation(broken, "g/0")
    with pytest.raises(SegmentError, match=r"got calls \[0, 1, 2\]"):
        check_conservation([first, changed(changed(second, 0, index=1), index=2)], "g/0")


def test_cut_between_calls_that_new_weights_do_not_explain_is_drift() -> None:
    apart = conversation(([2, 3], [(0, [4, 5])], 0), ([2, 3, 4, 5, 6], [(0, [7])], 0))
    assert (drift_cuts(apart), weight_cuts(apart)) == (["shortened"], 0)
    elsewhere = conversation(([2, 3], [(0, [4, 5])], 0), ([2, 3, 4, 9, 6], [(1, [7])], 0))
    segments = joined_segments(elsewhere, exact=True, one_version=True)
    assert (drift_cuts(segments), weight_cuts(segments)) == (["sampled"], 0)
