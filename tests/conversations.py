"""Conversations as an engine would return them call by call: made by hand or drawn by hypothesis, without a model."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from samepath.model.text.renderer import PieceKind
from samepath.rollout.segments import as_call, as_calls
from samepath.rollout.token_digest import token_digest
from samepath.rollout.types import WEIGHTS, CallSpan, Segment, Support

LAYERS, CHOSEN, EXPERTS, SPARSE = 2, 2, 8, 3
"""As in `tests.conftest.tiny_config`."""
LAST_ID = 17


def drawn_call(prompt: Sequence[int], drawn: Sequence[int], *, version: int = 0, truncated: bool = False) -> Segment:
    """What an exact engine returns: the records of a row depend on the tokens up to it and the weights alone."""
    ids = np.array([*prompt, *drawn], np.int32)
    total, first = len(ids), len(prompt)
    seeds = [token_digest(ids[: row + 1]) + version for row in range(total)]
    rows = [np.random.default_rng(seed) for seed in seeds]
    routes = np.array(
        [[rng.choice(EXPERTS, CHOSEN, replace=False) for _ in range(LAYERS)] for rng in rows], np.int16
    ).reshape(total, LAYERS, CHOSEN)
    prints = np.array([[rng.integers(2**63) for _ in range(SPARSE)] for rng in rows], np.uint64).reshape(total, SPARSE)
    routes[-1], prints[-1] = -1, 0
    trained = np.arange(total) >= first
    logprobs = np.array([-rng.random() - 0.1 for rng in rows], np.float32)
    kept = [np.unique([ids[place], (ids[place] + 3) % LAST_ID]).astype(np.int32) for place in range(first, total)]
    return Segment(
        token_ids=ids,
        trained=trained,
        sampler_logprobs=np.where(trained, logprobs, 0).astype(np.float32),
        routes=routes,
        support=Support(
            counts=np.array([len(row) for row in kept], np.int32), ids=np.concatenate([np.zeros(0, np.int32), *kept])
        )
        if truncated
        else None,
        selection_fingerprint=prints,
        weight_version=np.where(trained, version, -1).astype(np.int32),
        finish_reason="stop",
        calls=(CallSpan(index=0, first=first, end=total, finish_reason="stop", digest=token_digest(ids)),),
    )


def numbered(calls: Sequence[Segment], epochs: Sequence[int]) -> list[Segment]:
    """The calls of one conversation in their order."""
    return [
        as_call(call, index=index, epoch=epoch) for index, (call, epoch) in enumerate(zip(calls, epochs, strict=True))
    ]


def recomputed_call(
    prompt: Sequence[int], drawn: Sequence[tuple[int, Sequence[int]]], *, truncated: bool = False
) -> list[Segment]:
    """What an engine returns that computes contexts anew: a segment for each (version, tokens that it drew)."""
    context, made = list(prompt), []
    for place, (version, ids) in enumerate(drawn):
        one = drawn_call(context, ids, version=version, truncated=truncated)
        reason = "stop" if place == len(drawn) - 1 else WEIGHTS
        made.append(replace(one, finish_reason=reason, calls=(replace(one.calls[0], finish_reason=reason),)))
        context += ids
    return made


tokens = st.lists(st.integers(2, LAST_ID), min_size=1, max_size=4)


@st.composite
def conversations(
    draw: st.DrawFn, *, max_epochs: int = 3, max_calls: int = 3, truncated: bool = False
) -> list[Segment]:
    """Calls of a few epochs: in an epoch the prompt goes on with what was drawn and some tokens more, a new one keeps a part of the text."""
    ids, calls, epochs, version = draw(tokens), [], [], 0
    for epoch in range(draw(st.integers(1, max_epochs))):
        if epoch:
            # What is left may be any beginning, so that epochs share rows; the rest is dropped.
            ids = [*ids[: draw(st.integers(1, len(ids)))], *draw(tokens)]
        for place in range(draw(st.integers(1, max_calls))):
            ids = [*ids, *draw(tokens)] if place else ids
            version += draw(st.integers(0, 1))
            drawn = draw(tokens)
            calls.append(drawn_call(ids, drawn, version=version, truncated=truncated))
            epochs.append(epoch)
            ids = [*ids, *drawn]
    return numbered(calls, epochs)


def one_segment_a_call(calls: Sequence[Segment]) -> tuple[Segment, ...]:
    """The same conversation cut at every call, as if each began an epoch."""
    return tuple(replace(call, epoch=index) for index, call in enumerate(calls))


@st.composite
def recomputed_conversations(
    draw: st.DrawFn, *, max_epochs: int = 3, max_calls: int = 3, truncated: bool = False
) -> list[Segment]:
    """Calls of a few epochs; new weights come anywhere, within calls and between them, some without drawing a token."""
    ids, calls, index, version = draw(tokens), [], 0, 0
    kinds: list[PieceKind] = ["content"] * len(ids)
    for epoch in range(draw(st.integers(1, max_epochs))):
        for place in range(draw(st.integers(1, max_calls))):
            if place or epoch:
                kept = len(ids) if place else draw(st.integers(1, len(ids)))
                said = draw(tokens)
                ids, kinds = [*ids[:kept], *said], [*kinds[:kept], *["content"] * len(said)]
            version += draw(st.integers(0, 1))
            drawn = [(version, draw(tokens))]
            for _ in range(draw(st.integers(0, 2))):
                version += draw(st.integers(1, 2))
                drawn.append((version, draw(tokens)))
            made = recomputed_call(ids, drawn, truncated=truncated)
            calls += as_calls(made, index=index, epoch=epoch, kinds=kinds)
            kinds = [*kinds, *["sampled"] * (len(made[-1].token_ids) - len(ids))]
            ids, index = made[-1].token_ids.tolist(), index + 1
    return calls
