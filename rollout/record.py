"""From what an engine sampled to the typed records that leave it: one form for every engine.

Axes: T tokens of prompt and response, L mixture-of-experts or sparse layers, X experts chosen.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from samepath.model.text.tokenizer import Tokenizer
from samepath.rollout.request import GroupState
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.token_digest import token_digest
from samepath.rollout.types import CallSpan, Group, Prompt, Rollout, Segment, Support


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTokens:
    """What was sampled for one response: an entry a token.

    Example:
        SampledTokens(token_ids=np.array([7, 1], np.int32), logprobs=np.array([-0.4, -1.2], np.float32), versions=np.array([3, 3], np.int32))
    """

    token_ids: NDArray[np.int32]
    """Ids."""
    logprobs: NDArray[np.float32]
    """Log-probability of each under the sampling distribution, nats."""
    versions: NDArray[np.int32]
    """Weight version that sampled each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentParts:
    """What is not a number a sampled token: see `Segment`."""

    routes_TLX: NDArray[np.int16]
    """Experts of every token, −1 for the last."""
    fingerprints_TL: NDArray[np.uint64] | None
    """Of every token's selected keys, 0 for the last; None if the engine records none."""
    support: Support | None
    """Candidates of each sampled token, None if nothing was truncated."""
    finish_reason: str
    """`stop`, `length` or `abort`; `weights` where the answer goes on in another segment."""


def sampled_rollout(
    state: GroupState,
    index: int,
    sampled: SampledTokens,
    parts: Sequence[SegmentParts],
    tokenizer: Tokenizer,
) -> Rollout:
    """Lay the tokens behind their prompt: the record of one sample that ended now.

    A segment for each of `parts`, which are as long as their routes: every one but the first holds what those before it drew as context, and
    trains what came behind that.
    """
    request = state.request
    seconds = time.monotonic() - state.submitted_s
    segments = laid_out(request.prompt.token_ids, sampled, parts)
    last = replace(segments[-1].calls[0], seconds=seconds)
    segments[-1] = replace(segments[-1], calls=(last,))
    return Rollout(
        prompt_id=request.prompt.prompt_id,
        group_id=request.group_id,
        sample_index=index,
        segments=tuple(segments),
        text=_response_text(sampled.token_ids.tolist(), request.sampling, tokenizer),
        generate_s=seconds,
    )


def laid_out(prompt_ids: Sequence[int], sampled: SampledTokens, parts: Sequence[SegmentParts]) -> list[Segment]:
    """A segment for each of `parts`: see `sampled_rollout`."""
    segments: list[Segment] = []
    for part in parts:
        first = len(segments[-1].token_ids) if segments else len(prompt_ids)
        segments.append(_segment(prompt_ids, first, sampled, part))
    return segments


def _segment(prompt_ids: Sequence[int], first: int, sampled: SampledTokens, parts: SegmentParts) -> Segment:
    """Prompt and drawn tokens as far as the part's routes go; those from position `first` on are trained."""
    total = len(parts.routes_TLX)
    drawn = total - len(prompt_ids)
    token_ids = np.concatenate([np.array(prompt_ids, np.int32), sampled.token_ids[:drawn]])
    trained = np.arange(total) >= first
    logprobs, versions = np.zeros(total, np.float32), np.full(total, -1, np.int32)
    own = slice(first - len(prompt_ids), drawn)
    logprobs[trained], versions[trained] = sampled.logprobs[own], sampled.versions[own]
    call = CallSpan(index=0, first=first, end=total, finish_reason=parts.finish_reason, digest=token_digest(token_ids))
    return Segment(
        token_ids=token_ids,
        trained=trained,
        sampler_logprobs=logprobs,
        routes=parts.routes_TLX,
        support=parts.support,
        selection_fingerprint=parts.fingerprints_TL,
        weight_version=versions,
        finish_reason=parts.finish_reason,
        calls=(call,),
    )


def _response_text(ids: list[int], sampling: SamplingSettings, tokenizer: Tokenizer) -> str:
    """Text for people and reward functions: everything that was sampled but the special token that ended it."""
    if ids and ids[-1] in sampling.stop_token_ids and ids[-1] in tokenizer.control_ids:
        return tokenizer.text(ids[:-1])
    return tokenizer.decode(ids)


def support_rows(rows: Sequence[NDArray[np.int32]]) -> Support:
    """Candidates of each sampled token, ascending; an empty row stands for the full vocabulary."""
    counts = np.array([len(ids) for ids in rows], np.int32)
    return Support(counts=counts, ids=np.concatenate(rows, dtype=np.int32))


class Asked(Protocol):
    """What every request has in common."""

    @property
    def group_id(self) -> str: ...

    @property
    def prompt(self) -> Prompt: ...

    @property
    def sampling(self) -> SamplingSettings: ...

    @property
    def seeds(self) -> tuple[int, ...]: ...


def failed_rollouts(request: Asked, failure: str, detail: str = "") -> Group:
    """A group whose samples all carry `failure`: counted by the caller, never trained on."""
    rollouts = tuple(
        Rollout(
            prompt_id=request.prompt.prompt_id,
            group_id=request.group_id,
            sample_index=index,
            segments=(),
            text="",
            failure=failure,
            failure_detail=detail,
        )
        for index in range(len(request.seeds))
    )
    return Group(group_id=request.group_id, prompt=request.prompt, sampling=request.sampling, rollouts=rollouts)


def whole_group(state: GroupState) -> Group:
    """All samples that have ended, in order."""
    return Group(
        group_id=state.request.group_id,
        prompt=state.request.prompt,
        sampling=state.request.sampling,
        rollouts=tuple(state.rollouts[number] for number in sorted(state.rollouts)),
    )


def groups_at_end(state: GroupState, index: int) -> list[Group]:
    """What the end of sample `index`, now in `state.rollouts`, gives back: that sample if they come apart, else the group with its last one."""
    whole = whole_group(state)
    if state.request.apart:
        return [replace(whole, rollouts=(state.rollouts[index],))]
    return [whole] if state.complete else []


def groups_at_abort(state: GroupState) -> list[Group]:
    """What an abort gives back of a group that is not complete: samples without a rollout are marked as aborted.

    Of samples that come apart only these, each in a group of its own: the others were given back at their ends.
    """
    group = failed_rollouts(state.request, "aborted")
    # What had begun elsewhere and has not gone on here stands as it was.
    known = {**{one.sample_index: one for one in state.request.begun}, **state.rollouts}
    if state.request.apart:
        return [replace(group, rollouts=(one,)) for one in group.rollouts if one.sample_index not in state.rollouts]
    return [replace(group, rollouts=tuple(known.get(one.sample_index, one) for one in group.rollouts))]


def joined_group(parts: Sequence[Group]) -> Group:
    """One group of what came back of it at different times, samples in order."""
    rollouts = sorted((rollout for part in parts for rollout in part.rollouts), key=lambda one: one.sample_index)
    return replace(parts[0], rollouts=tuple(rollouts))
