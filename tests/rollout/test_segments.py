"""From calls to segments: every call's records stand at its own places, whatever was joined."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from samepath.model.text.renderer import PieceKind
from samepath.rollout.segments import SegmentError, as_call, cut_epochs, join_calls, joined_segments
from samepath.rollout.types import TOKEN_KINDS, Segment
from tests.conversations import conversations, drawn_call, numbered, one_segment_a_call


def drawn_tokens(segments: Sequence[Segment]) -> list[tuple[bytes, int, float, int, tuple[int, ...]]]:
    """Of every trained token: all tokens before it, itself, log-probability, version, candidates."""
    seen = []
    for segment in segments:
        places = segment.trained.nonzero()[0]
        kept: list[np.ndarray] = [np.zeros(0)] * len(places)
        if segment.support is not None:
            kept = np.split(segment.support.ids, np.cumsum(segment.support.counts)[:-1])
        for place, ids in zip(places, kept, strict=True):
            before = segment.token_ids[:place].tobytes()
            logprob, version = float(segment.sampler_logprobs[place]), int(segment.weight_version[place])
            seen.append((before, int(segment.token_ids[place]), logprob, version, tuple(ids.tolist())))
    return seen


def test_join_two_calls_worked_by_hand() -> None:
    """Prompt [2, 3], drawn [4, 5]; then [6] was given and [7] drawn: rows 0, 2, 3 and 5 are not followed by a drawn token."""
    first, second = numbered([drawn_call([2, 3], [4, 5]), drawn_call([2, 3, 4, 5, 6], [7], version=1)], [0, 0])
    joined = join_calls([first, second], exact=True)
    assert joined.token_ids.tolist() == [2, 3, 4, 5, 6, 7]
    assert joined.trained.tolist() == [False, False, True, True, False, True]
    assert joined.weight_version.tolist() == [-1, -1, 0, 0, -1, 1]
    logprobs = [0, 0, *first.sampler_logprobs[2:], 0, second.sampler_logprobs[5]]
    assert joined.sampler_logprobs.tolist() == [float(value) for value in logprobs]
    of_first = [False, True, True, False, False, False]
    for row, own in enumerate(of_first):
        source = first if own else second
        assert joined.routes[row].tolist() == source.routes[row].tolist()
        assert joined.selection_fingerprint is not None
        assert source.selection_fingerprint is not None
        assert joined.selection_fingerprint[row].tolist() == source.selection_fingerprint[row].tolist()
    assert [(span.index, span.first, span.end) for span in joined.calls] == [(0, 2, 4), (1, 5, 6)]
    assert (joined.route_conflicts, joined.superseded_rows) == (0, 3), "rows 0 to 2 stand in both, of two versions"


@settings(deadline=None, max_examples=60)
@given(conversations(truncated=True))
def test_every_drawn_token_stands_once_behind_what_it_was_drawn_behind(calls: list[Segment]) -> None:
    segments = joined_segments(calls, exact=True)
    assert drawn_tokens(segments) == drawn_tokens(calls)
    assert [segment.epoch for segment in segments] == sorted({call.epoch for call in calls})
    assert [span.index for segment in segments for span in segment.calls] == list(range(len(calls)))
    assert sum(segment.num_trained for segment in segments) == sum(call.num_trained for call in calls)


@settings(deadline=None, max_examples=40)
@given(conversations(max_epochs=1, max_calls=4, truncated=True))
def test_joining_in_two_steps_gives_the_same_segment(calls: list[Segment]) -> None:
    whole, (first, *rest) = join_calls(calls, exact=True), calls
    for call in rest:
        first = join_calls([first, call], exact=True)
    for name in ("token_ids", "trained", "sampler_logprobs", "routes", "selection_fingerprint", "weight_version"):
        assert np.array_equal(getattr(first, name), getattr(whole, name)), name
    assert drawn_tokens([first]) == drawn_tokens([whole])
    assert (first.calls, first.finish_reason) == (whole.calls, whole.finish_reason)
    assert (first.route_conflicts, first.superseded_rows) == (whole.route_conflicts, whole.superseded_rows)


def test_call_without_candidates_beside_one_with_them_has_the_full_vocabulary() -> None:
    calls = numbered([drawn_call([2], [4, 5]), drawn_call([2, 4, 5, 6], [7], truncated=True)], [0, 0])
    support = join_calls(calls, exact=True).support
    assert support is not None
    assert support.counts.tolist() == [0, 0, 2]
    assert support.ids.tolist() == [7, 10]


def changed_row(call: Segment, row: int) -> Segment:
    """The call with other experts in one row."""
    routes = call.routes.copy()
    routes[row] = (routes[row] + 1) % 8
    return replace(call, routes=routes)


def test_records_that_differ_at_one_version_stop_an_exact_engine_and_are_counted_for_another() -> None:
    first, second = numbered([drawn_call([2, 3], [4, 5]), drawn_call([2, 3, 4, 5, 6], [7])], [0, 0])
    with pytest.raises(SegmentError, match="recorded row 2 otherwise"):
        join_calls([first, changed_row(second, 2)], exact=True)
    assert join_calls([first, changed_row(second, 2)], exact=False).route_conflicts == 1
    # Row 3 was not run by the first call: there is nothing to compare.
    joined = join_calls([first, changed_row(second, 3)], exact=True)
    assert joined.route_conflicts == 0
    assert joined.routes[3].tolist() == changed_row(second, 3).routes[3].tolist()
    assert second.selection_fingerprint is not None
    prints = second.selection_fingerprint.copy()
    prints[1, 2] += np.uint64(1)
    with pytest.raises(SegmentError, match="recorded row 1 otherwise"):
        join_calls([first, replace(second, selection_fingerprint=prints)], exact=True)


def test_rows_that_a_call_read_are_of_the_weights_that_it_began_with() -> None:
    """The second call's weights change while it draws: what it read was recorded by those of the first call."""
    first = drawn_call([2, 3], [4, 5], version=1)
    second = drawn_call([2, 3, 4, 5, 6], [7, 8], version=1)
    versions = second.weight_version.copy()
    versions[-1] = 2
    calls = numbered([first, changed_row(replace(second, weight_version=versions), 1)], [0, 0])
    joined = join_calls(calls, exact=False)
    assert (joined.route_conflicts, joined.superseded_rows) == (1, 0)
    assert joined.weight_version.tolist() == [-1, -1, 1, 1, -1, 1, 2]


def test_row_that_the_last_call_did_not_record_keeps_the_record_before() -> None:
    first, second = numbered([drawn_call([2, 3], [4, 5]), drawn_call([2, 3, 4, 5, 6], [7])], [0, 0])
    routes = second.routes.copy()
    routes[:4] = -1
    joined = join_calls([first, replace(second, routes=routes)], exact=True)
    assert joined.routes[:3].tolist() == first.routes[:3].tolist()
    assert joined.routes[3].tolist() == [[-1, -1]] * 2, "nobody recorded it"
    assert joined.route_conflicts == 0


def test_records_are_never_carried_from_one_epoch_to_another() -> None:
    """The second epoch begins with the same tokens, of other weights."""
    calls = numbered([drawn_call([2, 3], [4, 5]), drawn_call([2, 3, 6], [7], version=1)], [0, 1])
    first, second = joined_segments(calls, exact=True)
    assert first.routes.tolist() == calls[0].routes.tolist()
    assert second.routes.tolist() == calls[1].routes.tolist()
    assert second.routes[0].tolist() != first.routes[0].tolist()


def test_prompt_that_does_not_go_on_begins_a_segment_in_its_epoch() -> None:
    calls = numbered([drawn_call([2, 3], [4, 5]), drawn_call([2, 3, 4, 6], [7])], [0, 0])
    assert [len(part) for part in cut_epochs(calls)] == [1, 1]
    assert [segment.epoch for segment in joined_segments(calls, exact=True)] == [0, 0]
    with pytest.raises(SegmentError, match="must go on where the call before ended"):
        join_calls(calls, exact=True)
    # A prompt of the same beginning that reaches less far than what was drawn is none that goes on.
    assert len(cut_epochs(numbered([drawn_call([2, 3], [4, 5]), drawn_call([2, 3, 4], [5, 7])], [0, 0]))) == 2


def test_kinds_are_the_last_prompts_with_every_drawn_token_trained() -> None:
    """The second prompt reads the first drawn token again behind one, 3, that an earlier epoch drew."""
    first = as_call(drawn_call([2, 3], [4]), index=0, epoch=1, kinds=["scaffold", "sampled"])
    assert first.kinds is not None
    assert [TOKEN_KINDS[number] for number in first.kinds] == ["scaffold", "sampled", "trained"]
    kinds: list[PieceKind] = ["scaffold", "sampled", "sampled", "content"]
    second = as_call(drawn_call([2, 3, 4, 5], [6, 7]), index=1, epoch=1, kinds=kinds)
    joined = join_calls([first, second], exact=True)
    assert joined.kinds is not None
    assert joined.kinds.dtype == np.uint8
    assert [TOKEN_KINDS[number] for number in joined.kinds] == [
        "scaffold", "sampled", "trained", "content", "trained", "trained",
    ]  # fmt: skip
    without = numbered([drawn_call([2, 3], [4]), drawn_call([2, 3, 4, 5], [6])], [0, 0])
    assert join_calls(without, exact=True).kinds is None
    with pytest.raises(SegmentError, match="each of its 2 tokens; got 1 kinds"):
        as_call(drawn_call([2, 3], [4]), index=0, epoch=0, kinds=["scaffold"])


def test_new_epoch_is_cut_even_where_its_prompt_goes_on() -> None:
    calls = numbered([drawn_call([2, 3], [4, 5]), drawn_call([2, 3, 4, 5, 6], [7])], [0, 1])
    assert [len(part) for part in cut_epochs(calls)] == [1, 1]
    assert len(cut_epochs(one_segment_a_call(calls))) == 2


def test_epochs_that_fall_and_calls_of_nothing_are_refused() -> None:
    calls = numbered([drawn_call([2], [4]), drawn_call([3], [4])], [1, 0])
    with pytest.raises(SegmentError, match="never fall; got 0 behind 1"):
        cut_epochs(calls)
    with pytest.raises(SegmentError, match="at least one call"):
        join_calls([], exact=True)
    bare = replace(calls[1], selection_fingerprint=None, epoch=1)
    with pytest.raises(SegmentError, match="go on where"):
        join_calls([calls[0], bare], exact=True)
    goes_on = replace(drawn_call([2, 4, 5], [6]), selection_fingerprint=None)
    with pytest.raises(SegmentError, match="fingerprints or none"):
        join_calls([drawn_call([2], [4]), as_call(goes_on, index=1, epoch=0)], exact=True)
