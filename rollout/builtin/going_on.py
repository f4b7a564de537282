"""Samples that were interrupted, and what must be kept of those under way so that they can be: `GroupRequest.begun`, `Engine.progress`."""

from collections.abc import Iterable, Sequence

import numpy as np

from samepath.model.key_store import SlotCache
from samepath.rollout.begun import Drawn, Progress, has_ended, sampled_tokens
from samepath.rollout.builtin.recording import read_slots
from samepath.rollout.builtin.sample import Cut, SampleState, SlotRecord, Told
from samepath.rollout.builtin.sample_rows import SampleRows
from samepath.rollout.record import support_rows
from samepath.rollout.request import GroupState
from samepath.rollout.types import Rollout, Segment


def resumed(state: GroupState, tables: SampleRows, weight_version: int) -> list[SampleState]:
    """Samples of a group that begin behind their tokens, each with a row of the tables, to be prefilled like those that gave their pages back.

    Where other weights drew the last token, these compute the context anew, and what comes now is another segment.
    """
    request = state.request
    going_on = [one for one in request.begun if one.sample_index not in state.rollouts]
    samples = [_sample(state, rollout, tables.free.pop()) for rollout in going_on]
    length = len(request.prompt.token_ids)
    tables.take(samples, [], length)
    for sample, rollout in zip(samples, going_on, strict=True):
        sampled = sampled_tokens(rollout)
        tables.restore(sample.row, sampled, length)
        if int(sampled.versions[-1]) != weight_version:
            sample.cut(len(sampled.token_ids), None)
    return samples


def ended_before(state: GroupState) -> None:
    """Take over samples that had ended when the group was interrupted."""
    for rollout in state.request.begun:
        if has_ended(rollout):
            state.rollouts[rollout.sample_index] = rollout


def progress(samples: Sequence[SampleState], cache: SlotCache, tables: SampleRows) -> list[Progress]:
    """What the samples, and those of their groups that have ended, drew since the last call, of groups that come back whole."""
    samples = [sample for sample in samples if not sample.group.request.apart]
    fresh = [sample for sample in samples if tables.drawn_R[sample.row] > sample.told.drawn]
    records = _records(fresh, cache, tables)
    by_group: dict[int, tuple[GroupState, list[Drawn]]] = {}
    for sample in samples:
        by_group.setdefault(id(sample.group), (sample.group, []))
    for sample, record in zip(fresh, records, strict=True):
        by_group[id(sample.group)][1].extend(_told(sample, record, tables))
    made = []
    for state, drawn in by_group.values():
        ended = tuple(state.rollouts[index] for index in state.fresh_ends)
        state.fresh_ends.clear()
        if drawn or ended:
            made.append(Progress(group_id=state.request.group_id, drawn=tuple(drawn), ended=ended))
    return made


def _sample(state: GroupState, rollout: Rollout, row: int) -> SampleState:
    """As it was: what was recorded in segments before the last is kept as their cuts', of the last as that of rows that have run."""
    length, last = len(state.request.prompt.token_ids), rollout.segments[-1]
    cuts = [Cut(drawn=len(one.token_ids) - length, record=_record(one)) for one in rollout.segments[:-1]]
    supports = [ids for segment in rollout.segments for ids in _candidates(segment)]
    record = _record(last)
    told = Told(segment=len(cuts), rows=len(record.routes), drawn=len(last.token_ids) - length)
    return SampleState(
        group=state,
        index=rollout.sample_index,
        row=row,
        pages=[],
        supports=supports,
        kept=record,
        cuts=cuts,
        told=told,
    )


def _record(segment: Segment) -> SlotRecord:
    assert segment.selection_fingerprint is not None
    return SlotRecord(routes=segment.routes[:-1], fingerprints=segment.selection_fingerprint[:-1])


def _candidates(segment: Segment) -> Iterable[np.ndarray]:
    if segment.support is None:
        return []
    return np.split(segment.support.ids, np.cumsum(segment.support.counts)[:-1])


def _records(samples: Sequence[SampleState], cache: SlotCache, tables: SampleRows) -> list[SlotRecord]:
    """Of each sample's present context the rows that were not told: all read from the cache in one go."""
    slots, firsts = [], []
    for sample in samples:
        first = sample.told.rows if sample.told.segment == len(sample.cuts) else 0
        kept = 0 if sample.kept is None else len(sample.kept.routes)
        stop = int(tables.lengths_R[sample.row]) if sample.pages else kept
        slots.append(tables.slots_RS[sample.row, max(first, kept) : max(first, kept, stop)])
        firsts.append(first)
    read = read_slots(cache, slots) if samples else []
    return [
        record if sample.kept is None else sample.kept.from_row(first, record)
        for sample, first, record in zip(samples, firsts, read, strict=True)
    ]


def _told(sample: SampleState, present: SlotRecord, tables: SampleRows) -> list[Drawn]:
    """What is new of each segment; `present` has the new rows of the present one. Moves the sample's mark."""
    sampled, told = tables.sampled(sample.row), sample.told
    total, made = len(sampled.token_ids), []
    for number in range(told.segment, len(sample.cuts) + 1):
        before = sample.cuts[number - 1].drawn if number else 0
        own = number < len(sample.cuts)
        end = sample.cuts[number].drawn if own else total
        first = max(told.drawn, before)
        if end == first:
            continue
        record = sample.cuts[number].record if own else present
        if own and number == told.segment:
            record = record.after(told.rows)
        support = None
        if sample.group.request.sampling.truncates:
            support = support_rows(sample.supports[first:end])
        length = len(sample.group.request.prompt.token_ids)
        sample.told = Told(segment=number, rows=length + end - 1, drawn=end)
        made.append(
            Drawn(
                index=sample.index,
                segment=number,
                token_ids=sampled.token_ids[first:end].copy(),
                logprobs=sampled.logprobs[first:end].copy(),
                versions=sampled.versions[first:end].copy(),
                support=support,
                routes=record.routes,
                fingerprints=record.fingerprints,
            )
        )
    return made
