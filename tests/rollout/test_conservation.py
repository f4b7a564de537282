"""The law that every step is held to, and each way of breaking it."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samepath.rollout.conservation import check_conservation, drift_cuts
from samepath.rollout.segments import SegmentError, joined_segments
from samepath.rollout.types import Segment
from tests.conversations import conversations, drawn_call, numbered, one_segment_a_call


@settings(deadline=None, max_examples=40)
@given(conversations(), st.data())
def test_any_cutting_of_a_conversation_conserves_it_and_any_other_token_does_not(
    calls: list[Segment], data: st.DataObject
) -> None:
    segments = joined_segments(calls, exact=True)
    check_conservation(segments, "g/0")
    check_conservation(one_segment_a_call(calls), "g/0")
    assert drift_cuts(segments) == []
    which = data.draw(st.integers(0, len(segments) - 1))
    segment = segments[which]
    place = data.draw(st.integers(0, len(segment.token_ids) - 1))
    ids = segment.token_ids.copy()
    ids[place] += 1
    with pytest.raises(SegmentError, match=f"g/0, segment {which}: call .* must end the tokens that it read and drew"):
        check_conservation((*segments[:which], replace(segment, token_ids=ids), *segments[which + 1 :]), "g/0")


def conversation() -> tuple[Segment, ...]:
    """Two epochs, three calls."""
    calls = [drawn_call([2, 3], [4, 5]), drawn_call([2, 3, 4, 5, 6], [7]), drawn_call([2, 3, 8], [9, 9])]
    return joined_segments(numbered(calls, [0, 0, 1]), exact=True)


def with_mask(segment: Segment, place: int) -> Segment:
    trained = segment.trained.copy()
    trained[place] = not trained[place]
    return replace(segment, trained=trained)


def with_version(segment: Segment, place: int, version: int) -> Segment:
    versions = segment.weight_version.copy()
    versions[place] = version
    return replace(segment, weight_version=versions)


def shifted(segment: Segment, by: int) -> Segment:
    span = segment.calls[-1]
    return replace(segment, calls=(*segment.calls[:-1], replace(span, first=span.first + by)))


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (lambda first, second: (second,), r"got calls \[2\]"),
        (lambda first, second: (first, first, second), r"got calls \[0, 1, 0, 1, 2\]"),
        (lambda first, second: (second, first), r"got calls \[2, 0, 1\]"),
        (lambda first, second: (first, replace(second, calls=())), r"got calls \[0, 1\] in 2 segments"),
        (lambda first, second: (with_mask(first, 3), second), "token 3 is not trained and was drawn"),
        (lambda first, second: (with_mask(first, 4), second), "token 4 is trained and was not drawn"),
        (lambda first, second: (first, with_mask(second, 0)), "segment 1.*token 0 is trained and was not drawn"),
        (lambda first, second: (with_version(first, 4, 3), second), "token 4 has 3"),
        (lambda first, second: (with_version(first, 5, -1), second), "token 5 has -1"),
        (lambda first, second: (shifted(first, -2), second), "call 1 stands at 3 to 6, and 4 is the first free place"),
        (lambda first, second: (shifted(first, 2), second), "call 1 stands at 7 to 6"),
    ],
)
def test_every_other_way_of_breaking_it_is_named(
    breaks: Callable[[Segment, Segment], tuple[Segment, ...]], says: str
) -> None:
    first, second = conversation()
    check_conservation((first, second), "g/0")
    with pytest.raises(SegmentError, match=says):
        check_conservation(breaks(first, second), "g/0")


def test_call_that_drew_nothing_is_none_the_less_one() -> None:
    calls = numbered([drawn_call([2, 3], []), drawn_call([2, 3, 6], [7])], [0, 0])
    (segment,) = joined_segments(calls, exact=True)
    check_conservation((segment,), "g/0")
    assert segment.trained.tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("prompt", "kind"), [([2, 3, 4, 6, 8], "sampled"), ([2, 9, 4, 5, 8], "given"), ([2, 3, 4], "shortened")]
)
def test_cut_within_an_epoch_is_drift_by_what_the_prompt_changed(prompt: list[int], kind: str) -> None:
    calls = numbered([drawn_call([2, 3], [4, 5]), drawn_call(prompt, [7])], [0, 0])
    segments = joined_segments(calls, exact=True)
    check_conservation(segments, "g/0")
    assert drift_cuts(segments) == [kind]
    assert drift_cuts(joined_segments(numbered(calls, [0, 1]), exact=True)) == []


def test_tokens_are_told_apart_by_place_and_length() -> None:
    first = drawn_call([2, 3], [4, 5])
    swapped = replace(first, token_ids=np.array([3, 2, 4, 5], np.int32))
    with pytest.raises(SegmentError, match="must end the tokens"):
        check_conservation((swapped,), "g/0")
