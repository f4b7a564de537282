"""From the calls of a conversation to the segments that are trained.

An engine returns each call of the model as a segment of its own: the prompt, then what was drawn behind it. Calls of one epoch, in which the
text only grows, become one segment: the tokens of the last call, with every call's records at its own positions. A new epoch, in which
something before was dropped, begins a new segment. Where every context is computed anew by the weights that draw (`rl.on_new_weights: recompute`),
so do new weights, within a call and between two. Axes: T tokens of a segment.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from samepath.model.text.renderer import PieceKind
from samepath.rollout.types import MISSING_ROUTE, TOKEN_KINDS, CallKind, Segment, Support


class SegmentError(RuntimeError):
    """Segments that are not what was sampled, or a cut that nobody asked for."""


@dataclass(slots=True)
class _Records:
    """Routes and selections of the rows of the calls joined so far."""

    routes_TLX: NDArray[np.int16]
    prints_TL: NDArray[np.uint64] | None
    version_T: NDArray[np.int32]
    """Version of the weights that recorded the row; −1 unknown."""
    sampled_T: NDArray[np.bool_]
    """True where the next token was drawn from the row: no later call changes its record."""
    conflicts: int
    superseded: int


def as_call(
    segment: Segment, *, index: int, epoch: int, kind: CallKind = "act", kinds: Sequence[PieceKind] | None = None
) -> Segment:
    """What an engine returned for one request, as call `index` (from 0) of a conversation and a part of its epoch.

    `kinds` are those of the prompt's tokens, `sampled` for whatever the model drew before. Raises SegmentError unless there is one for each.
    """
    (span,) = segment.calls
    if kinds is not None and len(kinds) != span.first:
        raise SegmentError(f"a prompt must have one kind for each of its {span.first} tokens; got {len(kinds)} kinds.")
    return replace(
        segment,
        epoch=epoch,
        calls=(replace(span, index=index, kind=kind),),
        kinds=None if kinds is None else _token_kinds(segment.trained, kinds),
    )


def as_calls(
    segments: Sequence[Segment], *, index: int, epoch: int, kinds: Sequence[PieceKind] | None = None
) -> tuple[Segment, ...]:
    """What an engine returned for one request: `as_call` of each of its segments, of which there are several where new weights cut it.

    `kinds` are those of the request's prompt; what earlier weights drew behind it is `sampled`. Raises SegmentError as `as_call` does.
    """
    made: list[Segment] = []
    for segment in segments:
        drawn: list[PieceKind] = ["sampled"] * sum(one.num_trained for one in made)
        own = None if kinds is None else [*kinds, *drawn]
        made.append(as_call(segment, index=index, epoch=epoch, kinds=own))
    return tuple(made)


def joined_segments(calls: Sequence[Segment], *, exact: bool, one_version: bool = False) -> tuple[Segment, ...]:
    """The segments of a conversation from its calls (see `as_call`, `as_calls`) in their order.

    `one_version` says that whatever drew a call also computed the whole context of it: each segment is then of one weight version, in every row.
    Raises SegmentError as `join_calls` and `cut_versions` do, and without `one_version` for a call that new weights cut.
    """
    parts = cut_epochs(calls)
    if one_version:
        parts = [piece for part in parts for piece in cut_versions(part)]
    elif any(call.calls[0].goes_on for call in calls):
        raise SegmentError(
            "new weights may cut a call only where a conversation is cut at them (EpisodeRequest.one_version, rl.on_new_weights=recompute); "
            f"got {[call.calls[0].index for call in calls if call.calls[0].goes_on]} cut without."
        )
    return tuple(join_calls(part, exact=exact) for part in parts)


def cut_epochs(calls: Sequence[Segment]) -> list[list[Segment]]:
    """Calls that become one segment each: of one epoch, and each prompt goes on where the call before ended.

    A prompt that does not, in the same epoch, is cut off too; `drift_cuts` counts it. Raises SegmentError if an epoch comes back.
    """
    parts: list[list[Segment]] = []
    for call in calls:
        before = parts[-1][-1] if parts else None
        if before is not None and call.epoch < before.epoch:
            raise SegmentError(
                f"epochs of a conversation must never fall; got {call.epoch} behind {before.epoch}. Number them as they begin."
            )
        if before is None or call.epoch > before.epoch or not goes_on(before, call):
            parts.append([])
        parts[-1].append(call)
    return parts


def cut_versions(calls: Sequence[Segment]) -> list[list[Segment]]:
    """Calls of one epoch cut where the weights change: those of one version in a row become one segment.

    Raises SegmentError for a call that several versions drew, or none: an engine that computes contexts anew returns a segment for each.
    """
    for call in calls:
        versions = sorted(set(call.weight_version[call.trained].tolist()))
        if len(versions) != 1:
            raise SegmentError(
                f"with rl.on_new_weights=recompute one weight version must have drawn each segment of a call; got {versions} for call "
                f"{call.calls[0].index}. Its engine must compute the context anew and begin a segment with new weights."
            )
    return [list(part) for _, part in itertools.groupby(calls, key=lambda call: int(call.weight_version.max()))]


def goes_on(before: Segment, call: Segment) -> bool:
    """Whether the prompt of a segment's first call begins with every token of the segment before."""
    count = len(before.token_ids)
    return call.calls[0].first >= count and np.array_equal(call.token_ids[:count], before.token_ids)


def join_calls(calls: Sequence[Segment], *, exact: bool) -> Segment:
    """One segment of calls of one epoch: the tokens of the last, with each call's masks, log-probabilities, versions and supports.

    Routes and fingerprints of a row are those of the call that drew the next token, else of the last call that recorded it. Where two calls
    with equal weights recorded a row otherwise, the row is counted in `route_conflicts`; with different weights, in `superseded_rows`.

    Raises SegmentError without calls, for calls that do not belong together, and with `exact` (an engine that promises the same bits in any
    batch) for the first conflict.
    """
    if not calls:
        raise SegmentError("a segment needs at least one call; got none.")
    records = _first_records(calls[0])
    for before, call in itertools.pairwise(calls):
        if call.epoch != before.epoch or not goes_on(before, call):
            raise SegmentError(
                f"calls of one segment must share an epoch, and each prompt must go on where the call before ended; got call "
                f"{call.calls[0].index} of epoch {call.epoch} behind {before.calls[0].index} of {before.epoch}. Cut them with `cut_epochs`."
            )
        _add_records(records, call, exact)
    last, total = calls[-1], len(calls[-1].token_ids)
    trained = np.zeros(total, np.bool_)
    logprobs, versions = np.zeros(total, np.float32), np.full(total, -1, np.int32)
    for call in calls:
        own = call.trained.nonzero()[0]
        trained[own], logprobs[own] = True, call.sampler_logprobs[own]
        versions[own] = call.weight_version[own]
    return Segment(
        token_ids=last.token_ids,
        trained=trained,
        sampler_logprobs=logprobs,
        routes=records.routes_TLX,
        support=_joined_supports(calls),
        selection_fingerprint=records.prints_TL,
        weight_version=versions,
        finish_reason=last.finish_reason,
        epoch=last.epoch,
        calls=tuple(span for call in calls for span in call.calls),
        kinds=None if last.kinds is None else np.where(trained, np.uint8(TOKEN_KINDS.index("trained")), last.kinds),
        route_conflicts=records.conflicts,
        superseded_rows=records.superseded,
    )


def _token_kinds(trained_T: NDArray[np.bool_], kinds: Sequence[PieceKind]) -> NDArray[np.uint8]:
    """[T] places in TOKEN_KINDS of a call: its prompt's, then `trained`."""
    numbers = np.full(len(trained_T), TOKEN_KINDS.index("trained"), np.uint8)
    numbers[: len(kinds)] = [TOKEN_KINDS.index(kind) for kind in kinds]
    return numbers


def _first_records(call: Segment) -> _Records:
    prints = call.selection_fingerprint
    return _Records(
        routes_TLX=call.routes.copy(),
        prints_TL=None if prints is None else prints.copy(),
        version_T=_recording_version(call),
        sampled_T=_sampled_next(call),
        conflicts=call.route_conflicts,
        superseded=call.superseded_rows,
    )


def _add_records(records: _Records, call: Segment, exact: bool) -> None:
    """Compare the call's records with those so far, and take them where the next token was not drawn by an earlier call."""
    if (records.prints_TL is None) != (call.selection_fingerprint is None):
        raise SegmentError("either every call of a segment has selection fingerprints or none; got both.")
    # Of the last token before, which was not run then, there is nothing to compare.
    count = len(records.version_T) - 1
    routes, version = call.routes.copy(), _recording_version(call)
    known = (records.routes_TLX[:count] != MISSING_ROUTE).all((1, 2)) & (routes[:count] != MISSING_ROUTE).all((1, 2))
    differs = known & (records.routes_TLX[:count] != routes[:count]).any((1, 2))
    prints = None if call.selection_fingerprint is None else call.selection_fingerprint.copy()
    if prints is not None and records.prints_TL is not None:
        differs |= (records.prints_TL[:count] != prints[:count]).any(1)
    differs &= (records.version_T[:count] >= 0) & (version[:count] >= 0)
    equal = records.version_T[:count] == version[:count]
    if exact and bool((differs & equal).any()):
        row = int((differs & equal).argmax())
        raise SegmentError(
            f"an engine that is exact must record a row alike in every call of an epoch at one weight version; call {call.calls[0].index} "
            f"recorded row {row} otherwise than the calls before (version {version[row]}). Its cache holds keys of other tokens or weights."
        )
    records.conflicts += int((differs & equal).sum())
    records.superseded += int((differs & ~equal).sum())
    sampled = _sampled_next(call)
    stays = np.zeros(len(version), np.bool_)
    # A row that this call did not record keeps what is known of it.
    stays[:count] = records.sampled_T[:count] | (routes[:count] == MISSING_ROUTE).any((1, 2))
    kept = stays.nonzero()[0]
    routes[kept], version[kept] = records.routes_TLX[kept], records.version_T[kept]
    if prints is not None and records.prints_TL is not None:
        prints[kept] = records.prints_TL[kept]
    sampled[:count] |= records.sampled_T[:count]
    records.routes_TLX, records.prints_TL, records.version_T, records.sampled_T = routes, prints, version, sampled


def _sampled_next(segment: Segment) -> NDArray[np.bool_]:
    """[T] True where the row's next token was drawn."""
    return np.append(segment.trained[1:], False)


def _recording_version(segment: Segment) -> NDArray[np.int32]:
    """[T] version of the weights that each row was recorded with: those that drew its next token, else those that its last call began with."""
    span = segment.calls[-1]
    began = segment.weight_version[span.first] if span.end > span.first else -1
    return np.where(_sampled_next(segment), np.append(segment.weight_version[1:], -1), began).astype(np.int32)


def _joined_supports(calls: Sequence[Segment]) -> Support | None:
    """Candidates of every drawn token, call by call; a call without a record drew from the full vocabulary (count 0)."""
    if all(call.support is None for call in calls):
        return None
    counts = [np.zeros(call.num_trained, np.int32) if call.support is None else call.support.counts for call in calls]
    ids = [call.support.ids for call in calls if call.support is not None]
    return Support(counts=np.concatenate(counts), ids=np.concatenate(ids))
