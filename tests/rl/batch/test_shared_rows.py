"""The rows that sequences share: every beginning that is alike in tokens and records runs once, and nothing else is shared."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from samepath.rl.batch.shared_rows import MIN_SHARED_TOKENS, Placed, SharedRows
from samepath.rollout.segments import joined_segments
from samepath.rollout.types import Segment
from tests.conversations import conversations, drawn_call, numbered

BEGINNING = tuple(range(2, 2 + MIN_SHARED_TOKENS))


def placed(segments: Sequence[Segment]) -> tuple[SharedRows, list[Placed]]:
    shared = SharedRows()
    return shared, [shared.place(segment) for segment in segments]


def beginning(segment: Segment, row: int) -> bytes:
    """Tokens and records of the rows up to this one."""
    prints = segment.selection_fingerprint
    records = b"" if prints is None else prints[: row + 1].tobytes()
    return segment.token_ids[: row + 1].tobytes() + b"/" + segment.routes[: row + 1].tobytes() + b"/" + records


def with_beginning(calls: list[Segment]) -> list[Segment]:
    """The same calls behind sixteen tokens more."""
    longer = [
        drawn_call([*BEGINNING, *call.token_ids[~call.trained]], call.token_ids[call.trained].tolist(), version=version)
        for call, version in ((call, int(call.weight_version.max())) for call in calls)
    ]
    return numbered(longer, [call.epoch for call in calls])


@settings(deadline=None, max_examples=60)
@given(st.lists(conversations(), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_every_beginning_of_conversations_runs_once(drawn: list[list[Segment]], random) -> None:
    """Against a table of all beginnings, in whatever order the segments come."""
    segments = [one for calls in drawn for one in joined_segments(with_beginning(calls), exact=False)]
    random.shuffle(segments)
    shared, places = placed(segments)
    table: dict[bytes, int] = {}
    for segment, place in zip(segments, places, strict=True):
        length = len(segment.token_ids) - 1
        known = [beginning(segment, row) in table for row in range(length)]
        assert place.num_shared == sum(known)
        for row in range(length):
            table.setdefault(beginning(segment, row), len(table))
        assert place.rows_T.tolist() == [table[beginning(segment, row)] for row in range(length)]
    assert shared.num_rows == len(table)


def test_segments_of_a_conversation_share_what_was_drawn_worked_by_hand() -> None:
    """Two epochs go on from [2 3 4], one with what the first drew; the fourth goes on from the third, whose own prompt was another."""
    ids = [[2, 3, 4, 5, 6], [2, 3, 4, 5, 7], [2, 3, 8, 9], [2, 3, 8, 9, 10, 11]]
    firsts = [3, 4, 3, 5]
    segments = [
        drawn_call([*BEGINNING, *tokens[:first]], tokens[first:]) for tokens, first in zip(ids, firsts, strict=True)
    ]
    shared, places = placed(segments)
    assert [place.num_shared - MIN_SHARED_TOKENS for place in places] == [-16, 4, 2, 3]
    assert [place.rows_T[MIN_SHARED_TOKENS:].tolist() for place in places] == [
        [16, 17, 18, 19], [16, 17, 18, 19], [16, 17, 20], [16, 17, 20, 21, 22],
    ]  # fmt: skip
    assert shared.num_rows == 23
    assert not any(place.apart for place in places)


def test_prompt_that_took_another_path_is_apart_whatever_else_it_shares() -> None:
    """The third has the second's prompt and path, the fourth goes on from the second with a prompt of its own."""
    prompt = [*BEGINNING, 2, 3]
    first, second, third = (drawn_call(prompt, [token, 5]) for token in (4, 6, 7))
    fourth = drawn_call([*prompt, 6, 5], [8])
    changed = []
    for call in (second, third, fourth):
        routes = call.routes.copy()
        routes[10] = (routes[10] + 1) % 8
        changed.append(replace(call, routes=routes))
    _, places = placed([first, *changed])
    assert [place.apart for place in places] == [False, True, False, False]
    assert [place.num_shared for place in places] == [0, 10, 18, 19]


def test_short_prompts_share_among_themselves_and_with_what_begins_with_as_many_tokens() -> None:
    """A prompt of two tokens, the same again, one of another two; then the first conversation goes on behind sixteen tokens, and behind four."""
    said = list(range(4, 4 + 16))
    first = drawn_call([2, 3], said)
    again, other = drawn_call([2, 3], [4, 9]), drawn_call([2, 4], said)
    long, short = drawn_call([2, 3, *said], [9]), drawn_call([2, 3, 4, 5], [9])
    _, places = placed([first, again, other, long, short])
    assert [place.num_shared for place in places] == [0, 3, 0, 17, 0]


def test_stretch_is_cut_where_a_third_sequence_leaves_it() -> None:
    """The rows behind the cut stay those of the first sequence, and what went on from them still does."""
    shared, places = placed(
        [
            drawn_call(BEGINNING, [3, 4, 5, 6, 7]),
            drawn_call(BEGINNING, [3, 4, 5, 6, 8, 9]),
            drawn_call(BEGINNING, [3, 9, 9]),
            drawn_call(BEGINNING, [3, 4, 5, 6, 8, 9, 2]),
            drawn_call(BEGINNING, [3, 4, 5, 6, 7]),
        ]
    )
    assert [place.num_shared for place in places] == [0, 20, 17, 21, 20]
    assert places[3].rows_T.tolist() == [*range(20), 20, 22]
    assert np.array_equal(places[4].rows_T, places[0].rows_T)
    assert shared.num_rows == 23
