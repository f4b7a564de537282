"""Conversations with an engine: each call goes on from the one before, as an episode asks for it."""

from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from samepath.rollout.engine import Engine
from samepath.rollout.request import GroupRequest
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.segments import as_call, join_calls
from samepath.rollout.types import Group, Segment
from tests.engine_runs import SAMPLINGS
from tests.tiny_runs import random_prompt, request


@dataclass(frozen=True, kw_only=True)
class Talk:
    """What is said to the model: the opening, then what follows each of its answers."""

    name: str
    opening: tuple[int, ...]
    bridges: tuple[tuple[int, ...], ...]
    sampling: SamplingSettings

    def call(self, index: int, token_ids: tuple[int, ...], keep_keys: bool) -> GroupRequest:
        """The request of a call, with a seed of its own."""
        seeds = (1000 * index + int(self.name),)
        return replace(request(self.name, token_ids, self.sampling, seeds), keep_keys=keep_keys)


@st.composite
def talks(draw: st.DrawFn) -> tuple[Talk, ...]:
    """Up to three talks of one to four calls; openings share a beginning, and some begin alike altogether."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    stem = random_prompt(rng, 18, 30)
    sampling = draw(st.sampled_from(SAMPLINGS))
    return tuple(
        Talk(
            name=str(number),
            opening=(*stem[: draw(st.integers(1, 30))], *random_prompt(rng, 18, draw(st.integers(0, 3)))),
            bridges=tuple(random_prompt(rng, 18, length) for length in draw(st.lists(st.integers(0, 9), max_size=3))),
            sampling=sampling,
        )
        for number in range(draw(st.integers(1, 3)))
    )


def hold(engine: Engine, entries: tuple[Talk, ...], *, keep_keys: bool, exact: bool = True) -> list[Group]:
    """Hold all talks at once; each comes back as one group whose rollout is the joined segment of its calls."""
    named = {entry.name: entry for entry in entries}
    calls: dict[str, list[Segment]] = {entry.name: [] for entry in entries}
    last: dict[str, Group] = {}
    for entry in entries:
        assert engine.submit(entry.call(0, entry.opening, keep_keys)) is None
    while engine.busy:
        for group in engine.step():
            entry, made = named[group.group_id], calls[group.group_id]
            ((segment,),) = (rollout.segments for rollout in group.rollouts)
            made.append(as_call(segment, index=len(made), epoch=0))
            last[entry.name] = group
            if len(made) <= len(entry.bridges):
                prompt = (*segment.token_ids.tolist(), *entry.bridges[len(made) - 1])
                assert engine.submit(entry.call(len(made), prompt, keep_keys)) is None
    return [
        replace(
            last[entry.name],
            rollouts=(replace(last[entry.name].rollouts[0], segments=(join_calls(calls[entry.name], exact=exact),)),),
        )
        for entry in entries
    ]
