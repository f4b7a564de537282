"""What the built-in engine knows of a sample at its end: why it ends, and what the cache holds of its tokens."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from samepath.model.key_store import SlotCache
from samepath.model.text.tokenizer import Tokenizer
from samepath.rollout.builtin.sample import SampleState, SlotRecord
from samepath.rollout.record import SampledTokens, SegmentParts, sampled_rollout, support_rows
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.stop_strings import completes_stop
from samepath.rollout.types import MISSING_ROUTE, Rollout


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
    """Collect tokens, log-probabilities, routes, supports and fingerprints of a sample."""
    request = sample.group.request
    total = len(request.prompt.token_ids) + len(sampled.token_ids)
    run = len(record.routes)
    routes = np.full((total, *record.routes.shape[1:]), MISSING_ROUTE, np.int16)
    fingerprints = np.zeros((total, record.fingerprints.shape[1]), np.uint64)
    routes[:run], fingerprints[:run] = record.routes, record.fingerprints
    # The last sampled token is never run, whatever stood in the cache.
    routes[-1], fingerprints[-1] = MISSING_ROUTE, 0
    parts = SegmentParts(
        routes_TLX=routes,
        fingerprints_TL=fingerprints,
        support=support_rows(sample.supports) if request.sampling.truncates else None,
        finish_reason=reason,
    )
    return sampled_rollout(sample.group, sample.index, sampled, parts, tokenizer)
