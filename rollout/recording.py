"""From the engine's state to the typed record of a finished (or failed) sample."""

import time

import numpy as np
from torch import Tensor

from samepath.model.key_store import SlotCache
from samepath.model.tokenizer import Tokenizer
from samepath.rollout.request import GroupRequest, GroupState, SampleState
from samepath.rollout.types import MISSING_ROUTE, Group, Rollout, Segment, Support


def finish_reason(sample: SampleState, token: int, tokenizer: Tokenizer) -> str:
    """Why the sample ends with `token`, its last one: `stop`, `length`, or empty if it goes on."""
    sampling = sample.group.request.sampling
    if not sampling.ignore_stop:
        if token in tokenizer.end_ids or token in sampling.stop_token_ids:
            return "stop"
        if sampling.stop_strings:
            text = tokenizer.decode(sample.tokens)
            if any(stop in text for stop in sampling.stop_strings):
                return "stop"
    return "length" if len(sample.tokens) >= sampling.max_new_tokens else ""


def finished_rollout(
    sample: SampleState, reason: str, cache: SlotCache, slots: Tensor, tokenizer: Tokenizer
) -> Rollout:
    """Collect tokens, log-probabilities, routes, supports and fingerprints of a sample whose run rows stand in `slots`."""
    request = sample.group.request
    prompt_ids = request.prompt.token_ids
    total = len(prompt_ids) + len(sample.tokens)
    routes = np.full((total, *cache.routes.shape[1:]), MISSING_ROUTE, np.int16)
    slots = slots.to(cache.routes.device)
    routes[: len(slots)] = cache.routes[slots].cpu().numpy()
    fingerprints = np.zeros((total, cache.fingerprints.shape[1]), np.uint64)
    fingerprints[: len(slots)] = cache.fingerprints[slots].cpu().numpy().view(np.uint64)
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
