"""Samples on their way: what each has drawn since somebody looked last, and from that the rollouts as far as they are.

What is told of a group in one `Progress` is of one moment. All of them together, in order, are its samples with everything that was recorded, so
that another engine goes on behind their last tokens (`GroupRequest.begun`). Axes: T rows of a context, L layers, X experts chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from samepath.rollout.record import SampledTokens, SegmentParts, laid_out
from samepath.rollout.request import GroupRequest
from samepath.rollout.types import MISSING_ROUTE, WEIGHTS, Rollout, Segment, Support


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What one sample drew in one of its segments, and what was recorded of further rows of that segment's context.

    Example: the second and third token of a sample whose prompt has four:
        Drawn(index=2, segment=0, token_ids=[7, 9], logprobs=[-0.4, -1.2], versions=[3, 3], support=None, routes=routes[4:6],
              fingerprints=fingerprints[4:6])
    """

    index: int
    """Sample."""
    segment: int
    """Which of its segments, from 0: a new one where new weights computed the context anew."""
    token_ids: NDArray[np.int32]
    """Tokens that follow those told before."""
    logprobs: NDArray[np.float32]
    """Of each, nats."""
    versions: NDArray[np.int32]
    """Weights that drew each."""
    support: Support | None
    """Candidates of each; None if nothing was truncated."""
    routes: NDArray[np.int16]
    """[T, L, X] of the rows that follow those told before."""
    fingerprints: NDArray[np.uint64]
    """[T, L]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a group's samples have drawn since the last one.

    Example:
        Progress(group_id="s3-g0", drawn=(drawn,), ended=(rollout,))
    """

    group_id: str
    """Group."""
    drawn: tuple[Drawn, ...]
    """Of samples that go on."""
    ended: tuple[Rollout, ...]
    """Samples that have ended meanwhile, whole, while others of their group have not."""

    @property
    def newest_version(self) -> int:
        """Of the weights that drew a token of it; −1 without tokens."""
        versions = [int(one.versions.max()) for one in self.drawn if len(one.versions)]
        versions += [int(part.weight_version.max()) for one in self.ended for part in one.segments]
        return max(versions, default=-1)


@dataclass(slots=True)
class _Part:
    """One segment of a sample while it is put together."""

    token_ids: list[NDArray[np.int32]] = field(default_factory=list)
    logprobs: list[NDArray[np.float32]] = field(default_factory=list)
    versions: list[NDArray[np.int32]] = field(default_factory=list)
    supports: list[Support] = field(default_factory=list)
    routes: list[NDArray[np.int16]] = field(default_factory=list)
    fingerprints: list[NDArray[np.uint64]] = field(default_factory=list)

    def add(self, drawn: Drawn) -> None:
        self.token_ids.append(drawn.token_ids)
        self.logprobs.append(drawn.logprobs)
        self.versions.append(drawn.versions)
        self.supports += [] if drawn.support is None else [drawn.support]
        self.routes.append(drawn.routes)
        self.fingerprints.append(drawn.fingerprints)

    def parts(self, finish_reason: str) -> SegmentParts:
        routes_TLX, prints_TL = np.concatenate(self.routes), np.concatenate(self.fingerprints)
        support = None
        if self.supports:
            support = Support(
                counts=np.concatenate([one.counts for one in self.supports]),
                ids=np.concatenate([one.ids for one in self.supports]),
            )
        # The last token is never run.
        return SegmentParts(
            routes_TLX=np.concatenate([routes_TLX, np.full((1, *routes_TLX.shape[1:]), MISSING_ROUTE, np.int16)]),
            fingerprints_TL=np.concatenate([prints_TL, np.zeros((1, prints_TL.shape[1]), np.uint64)]),
            support=support,
            finish_reason=finish_reason,
        )


def begun_rollouts(request: GroupRequest, progress: Sequence[Progress]) -> tuple[Rollout, ...]:
    """The samples of a group from all that was told of it since it was asked for, in order: `begun` of a request that goes on.

    Those that have not ended end with `abort`, and have no text. Nothing told gives what had begun before.
    """
    parts: dict[int, list[_Part]] = {}
    ended: dict[int, Rollout] = {}
    for rollout in request.begun:
        if has_ended(rollout):
            ended[rollout.sample_index] = rollout
        else:
            for number, segment in enumerate(rollout.segments):
                _part(parts, rollout.sample_index, number).add(_as_drawn(rollout.sample_index, number, segment))
    for one in progress:
        for drawn in one.drawn:
            _part(parts, drawn.index, drawn.segment).add(drawn)
        ended |= {rollout.sample_index: rollout for rollout in one.ended}
    open_ones = {
        index: Rollout(
            prompt_id=request.prompt.prompt_id,
            group_id=request.group_id,
            sample_index=index,
            segments=_segments(request.prompt.token_ids, own),
            text="",
        )
        for index, own in parts.items()
        if index not in ended
    }
    return tuple(one for _, one in sorted({**open_ones, **ended}.items()))


def going_on(request: GroupRequest, progress: Sequence[Progress]) -> GroupRequest:
    """The request, to go on behind all that was told of it."""
    return replace(request, begun=begun_rollouts(request, progress)) if progress else request


def has_ended(rollout: Rollout) -> bool:
    """Whether a sample of `GroupRequest.begun` has ended: it does not go on."""
    return bool(rollout.failure) or rollout.segments[-1].finish_reason != "abort"


def sampled_tokens(rollout: Rollout) -> SampledTokens:
    """What was drawn for a single answer, over all its segments."""
    own = [(one, one.trained) for one in rollout.segments]
    return SampledTokens(
        token_ids=np.concatenate([one.token_ids[trained] for one, trained in own]),
        logprobs=np.concatenate([one.sampler_logprobs[trained] for one, trained in own]),
        versions=np.concatenate([one.weight_version[trained] for one, trained in own]),
    )


def _part(parts: dict[int, list[_Part]], index: int, segment: int) -> _Part:
    own = parts.setdefault(index, [])
    while len(own) <= segment:
        own.append(_Part())
    return own[segment]


def _as_drawn(index: int, number: int, segment: Segment) -> Drawn:
    assert segment.selection_fingerprint is not None
    trained = segment.trained
    return Drawn(
        index=index,
        segment=number,
        token_ids=segment.token_ids[trained],
        logprobs=segment.sampler_logprobs[trained],
        versions=segment.weight_version[trained],
        support=segment.support,
        routes=segment.routes[:-1],
        fingerprints=segment.selection_fingerprint[:-1],
    )


def _segments(prompt_ids: Sequence[int], parts: Sequence[_Part]) -> tuple[Segment, ...]:
    sampled = SampledTokens(
        token_ids=np.concatenate([ids for part in parts for ids in part.token_ids]),
        logprobs=np.concatenate([one for part in parts for one in part.logprobs]),
        versions=np.concatenate([one for part in parts for one in part.versions]),
    )
    last = len(parts) - 1
    made = [part.parts("abort" if number == last else WEIGHTS) for number, part in enumerate(parts)]
    return tuple(laid_out(prompt_ids, sampled, made))
