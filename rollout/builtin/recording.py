"""From the engine's state to the typed record of a finished (or failed) sample."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from samepath.model.key_store import SlotCache
from samepath.model.text.tokenizer import Tokenizer
from samepath.rollout.request import GroupRequest, GroupState, SampleState
from samepath.rollout.types import MISSING_ROUTE, Group, Rollout, Segment, Support


def finish_reason(sample: SampleState, tokenizer: Tokenizer) -> str:
    """Why the sample ends with its last token: `stop`, `length`, or empty if it goes on."""
    sampling, token = sample.group.request.sampling, sample.tokens[-1]
    if not sampling.ignore_stop:
        if token in tokenizer.end_ids or token in sampling.stop_token_ids:
            return "stop"
        if sampling.stop_strings:
            text = tokenizer.decode(sample.tokens)
            if any(stop in text for stop in sampling.stop_strings):
                return "stop"
    return "length" if len(sample.tokens) >= sampling.max_new_tokens else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRecord:
    """What the cache says about a sequence's tokens."""

    routes: NDArray[np.int16]
    """[tokens run, L_moe, X]."""
    fingerprints: NDArray[np.uint64]
    """[tokens run, L_sparse]."""


def read_slots(cache: SlotCache, slots: Sequence[NDArray[np.int64]]) -> list[SlotRecord]:
    """Routes and fingerprints of each sequence's slots, all brought to the host in one go."""
    together = torch.from_numpy(np.concatenate(slots)).to(cache.routes.device)
    ends = np.cumsum([len(own) for own in slots])[:-1]
    routes = np.split(cache.routes[together].cpu().numpy(), ends)
    fingerprints = np.split(cache.fingerprints[together].cpu().numpy().view(np.uint64), ends)
    return [SlotRecord(routes=own, fingerprints=prints) for own, prints in zip(routes, fingerprints, strict=True)]


def finished_rollout(sample: SampleState, reason: str, record: SlotRecord, tokenizer: Tokenizer) -> Rollout:
    """Collect tokens, log-probabilities, routes, supports and fingerprints of a sample."""
    request = sample.group.request
    prompt_ids = request.prompt.token_ids
    total = len(prompt_ids) + len(sample.tokens)
    run = len(record.routes)
    routes = np.full((total, *record.routes.shape[1:]), MISSING_ROUTE, np.int16)
    fingerprints = np.zeros((total, record.fingerprints.shape[1]), np.uint64)
    routes[:run], fingerprints[:run] = record.routes, record.fingerprints
    # The last sampled token is never run, whatever stood in the cache.
    routes[-1], fingerprints[-1] = MISSING_ROUTE, 0
    trained = np.arange(total) >= len(prompt_ids)
    logprobs, versions = np.zeros(total, np.float32), np.full(total, -1, np.int32)
    logprobs[trained], versions[trained] = sample.logprobs, sample.versions
    segment = Segment(
        token_ids=np.array([*prompt_ids, *sample.tokens], np.int32),
        trained=trained,
        sampler_logprobs=logprobs,
        routes=routes,
        support=_support(sample),
        selection_fingerprint=fingerprints,
        weight_version=versions,
        finish_reason=reason,
    )
    return Rollout(
        prompt_id=request.prompt.prompt_id,
        group_id=request.group_id,
        sample_index=sample.index,
        segments=(segment,),
        text=tokenizer.decode(sample.tokens),
        generate_s=time.monotonic() - sample.group.submitted_s,
    )


def _support(sample: SampleState) -> Support | None:
    if not sample.group.request.sampling.truncates:
        return None
    counts = np.array([len(ids) for ids in sample.supports], np.int32)
    return Support(counts=counts, ids=np.concatenate(sample.supports, dtype=np.int32))


def failed_rollouts(request: GroupRequest, failure: str) -> Group:
    """A group whose samples all carry `failure`: counted by the caller, never trained on."""
    rollouts = tuple(
        Rollout(
            prompt_id=request.prompt.prompt_id,
            group_id=request.group_id,
            sample_index=index,
            segments=(),
            text="",
            failure=failure,
        )
        for index in range(len(request.seeds))
    )
    return Group(group_id=request.group_id, prompt=request.prompt, rollouts=rollouts)


def group_so_far(state: GroupState) -> Group:
    """The group as far as it got, samples without a rollout marked as aborted."""
    missing = failed_rollouts(state.request, "aborted").rollouts
    rollouts = tuple(state.rollouts.get(index, missing[index]) for index in range(len(missing)))
    return Group(group_id=state.request.group_id, prompt=state.request.prompt, rollouts=rollouts)
