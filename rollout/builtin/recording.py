"""What the built-in engine knows of a sample at its end: why it ends, and what the cache holds of its tokens."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from samepath.model.key_store import SlotCache
from samepath.model.text.tokenizer import Tokenizer
from samepath.rollout.builtin.sample import SampleState, SlotRecord
from samepath.rollout.record import SampledTokens, SegmentParts, sampled_rollout, support_rows
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.stop_strings import completes_stop
from samepath.rollout.types import MISSING_ROUTE, WEIGHTS, Rollout


def finish_reason(sampling: SamplingSettings, token_ids: NDArray[np.int32], tokenizer: Tokenizer) -> str:
    """Why a response of these tokens ends with the last of them: `stop`, `length`, or empty if it goes on. To be asked after each token."""
    last = int(token_ids[-1])
    if not sampling.ignore_stop:
        if last in tokenizer.end_ids or last in sampling.stop_token_ids:
            return "stop"
        if sampling.stop_strings and completes_stop(tokenizer.text, token_ids, sampling.stop_strings):
            return "stop"
    return "length" if len(token_ids) >= sampling.max_new_tokens else ""


def read_slots(cache: SlotCache, slots: Sequence[NDArray[np.int64]]) -> list[SlotRecord]:
    """Routes and fingerprints of each sequence's slots, all brought to the host in one go."""
    together = torch.from_numpy(np.concatenate(slots)).to(cache.routes.device)
    ends = np.cumsum([len(own) for own in slots])[:-1]
    routes = np.split(cache.routes[together].cpu().numpy(), ends)
    fingerprints = np.split(cache.fingerprints[together].cpu().numpy().view(np.uint64), ends)
    return [SlotRecord(routes=own, fingerprints=prints) for own, prints in zip(routes, fingerprints, strict=True)]


def finished_rollout(
    sample: SampleState, reason: str, sampled: SampledTokens, record: SlotRecord, tokenizer: Tokenizer
) -> Rollout:
    """Collect tokens, log-probabilities, routes, supports and fingerprints of a sample: a segment for all, or one for each of its weights
    where these computed its context anew."""
    drawn = len(sampled.token_ids)
    parts: list[SegmentParts] = []
    for cut in sample.cuts:
        parts.append(_parts(sample, _drawn_by(sample, len(parts)), cut.drawn, cut.record, WEIGHTS))
    first = _drawn_by(sample, len(parts))
    if parts and first == drawn:
        # Aborted before the new weights drew anything.
        parts[-1] = replace(parts[-1], finish_reason=reason)
    else:
        parts.append(_parts(sample, first, drawn, record, reason))
    return sampled_rollout(sample.group, sample.index, sampled, parts, tokenizer)


def _drawn_by(sample: SampleState, cuts: int) -> int:
    """Tokens that had been drawn when the first `cuts` cuts were made."""
    return sample.cuts[cuts - 1].drawn if cuts else 0


def _parts(sample: SampleState, first: int, drawn: int, record: SlotRecord, reason: str) -> SegmentParts:
    """What a segment records that ends with the sample's `drawn`-th token and trains those from its `first`-th, counted from 0."""
    request = sample.group.request
    total = len(request.prompt.token_ids) + drawn
    run = min(len(record.routes), total)
    routes = np.full((total, *record.routes.shape[1:]), MISSING_ROUTE, np.int16)
    fingerprints = np.zeros((total, record.fingerprints.shape[1]), np.uint64)
    routes[:run], fingerprints[:run] = record.routes[:run], record.fingerprints[:run]
    # The last sampled token is never run, whatever stood in the cache.
    routes[-1], fingerprints[-1] = MISSING_ROUTE, 0
    return SegmentParts(
        routes_TLX=routes,
        fingerprints_TL=fingerprints,
        support=support_rows(sample.supports[first:drawn]) if request.sampling.truncates else None,
        finish_reason=reason,
    )
