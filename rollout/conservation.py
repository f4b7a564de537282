"""What every rollout of every step is held to: each drawn token is trained once, behind exactly the tokens it was drawn behind.

The engine leaves a digest of all tokens of each call, and it must still be that of the segment's tokens where the learner takes it.
"""

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np

from samepath.rollout.segments import SegmentError, goes_on
from samepath.rollout.token_digest import token_digest
from samepath.rollout.types import WEIGHTS, Segment

DriftKind = Literal["sampled", "given", "shortened"]
"""What the later prompt changed: a token that was drawn, one that was not, or nothing but its end."""


def check_conservation(segments: Sequence[Segment], where: str) -> None:
    """Hold a rollout's segments to the law; `where` names it. Raises SegmentError.

    Every call stands in one segment, in the order in which they were made; one that new weights cut goes on at the beginning of the next
    segment, behind the same tokens. What is trained is what the calls drew, nothing else; and up to its end each segment has the tokens that the
    engine read and drew.
    """
    spans = [span for segment in segments for span in segment.calls]
    indices, ended = [span.index for span in spans], [not span.goes_on for span in spans]
    wanted = [sum(ended[:place]) for place in range(len(spans))]
    if indices != wanted or not all(segment.calls for segment in segments):
        raise SegmentError(
            f"{where}: every call of the model must stand in one segment, in the order of the conversation; got calls {indices} in "
            f"{len(segments)} segments. Make segments from all calls with `joined_segments`."
        )
    _check_cut_calls(segments, where)
    for number, segment in enumerate(segments):
        _check_segment(segment, f"{where}, segment {number}")


def _check_cut_calls(segments: Sequence[Segment], where: str) -> None:
    for before, after in itertools.zip_longest(segments, segments[1:]):
        last = before.calls[-1]
        whole = after is not None and after.epoch == before.epoch and after.calls[0].first == last.end
        rest = whole and token_digest(after.token_ids[: last.end]) == last.digest
        if any(span.goes_on for span in before.calls[:-1]) or (last.goes_on and not rest):
            raise SegmentError(
                f"{where}: a call that new weights cut must go on at the beginning of the next segment, behind all tokens so far; call "
                f"{next(span.index for span in before.calls if span.goes_on)} does not. Make segments from all calls with `joined_segments`."
            )


def _check_segment(segment: Segment, where: str) -> None:
    total, drawn, end = len(segment.token_ids), np.zeros(len(segment.token_ids), np.bool_), 1
    for span in segment.calls:
        if not end <= span.first <= span.end <= total:
            raise SegmentError(
                f"{where}: calls must follow one another behind the first token and end within {total} tokens; call {span.index} stands at "
                f"{span.first} to {span.end}, and {end} is the first free place."
            )
        end = span.end
        drawn[span.first : span.end] = True
        if token_digest(segment.token_ids[: span.end]) != span.digest:
            raise SegmentError(
                f"{where}: call {span.index} must end the tokens that it read and drew; the {span.end} tokens up to its end are others. "
                "Nothing may be tokenised again, or changed, once it was sampled."
            )
    if not np.array_equal(segment.trained, drawn):
        place = int((segment.trained != drawn).argmax())
        raise SegmentError(
            f"{where}: trained must be what was drawn, no more and no less; token {place} is {'not ' if drawn[place] else ''}trained and "
            f"was {'' if drawn[place] else 'not '}drawn by a call."
        )
    if not np.array_equal(segment.weight_version >= 0, drawn):
        place = int(((segment.weight_version >= 0) != drawn).argmax())
        raise SegmentError(
            f"{where}: every drawn token, and no other, must have the version of the weights that drew it; token {place} has "
            f"{segment.weight_version[place]}."
        )


def drift_cuts(segments: Sequence[Segment]) -> list[DriftKind]:
    """The cuts that no rule of the context asked for: between segments of one epoch, by what the later prompt has otherwise.

    Where new weights cut a conversation (`rl.on_new_weights: recompute`), the next segment has all tokens so far: that is no drift.
    """
    return [
        _drift(before, after)
        for before, after in itertools.pairwise(segments)
        if before.epoch == after.epoch and not _cut_by_weights(before, after)
    ]


def weight_cuts(segments: Sequence[Segment]) -> int:
    """How many cuts new weights made: within an answer, or between two calls of an epoch."""
    return sum(
        before.epoch == after.epoch and _cut_by_weights(before, after) for before, after in itertools.pairwise(segments)
    )


def _cut_by_weights(before: Segment, after: Segment) -> bool:
    if before.finish_reason == WEIGHTS:
        return True
    last, first = before.weight_version[before.trained][-1:], after.weight_version[after.trained][:1]
    return goes_on(before, after) and len(last) == len(first) == 1 and last.tolist() != first.tolist()


def _drift(before: Segment, after: Segment) -> DriftKind:
    count = min(len(before.token_ids), after.calls[0].first)
    different = before.token_ids[:count] != after.token_ids[:count]
    if not different.any():
        return "shortened"
    return "sampled" if before.trained[int(different.argmax())] else "given"
