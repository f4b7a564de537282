"""What the engine keeps about a group of samples while it works on it."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from samepath.rollout.sampling_settings import SamplingSettings, resolve_sampling
from samepath.rollout.types import Prompt, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRequest:
    """One prompt to be answered `len(seeds)` times.

    Example:
        GroupRequest(group_id="s3-g0", prompt=prompt, sampling=SamplingSettings(top_p=0.9), seeds=(11, 12, 13, 14))
    """

    group_id: str
    """Unique among the requests in flight."""
    prompt: Prompt
    """What to answer."""
    sampling: SamplingSettings
    """How to draw it; once the request is made, with the prompt's own overrides applied. What samples and what learns read this alone."""
    seeds: tuple[int, ...]
    """One 64-bit seed a sample; equal seeds and weights give equal samples whatever else the engine does."""
    keep_keys: bool = False
    """Keep the keys of prompt *and* responses findable after their end: a later prompt that goes on from one of them runs only what is new.
    An engine that cannot (Capability.CONVERSATIONS) raises ValueError."""
    apart: bool = False
    """Samples come back as they end, each in a group of its own under this group's id, instead of all together. For who steps the engine
    itself: `run` puts them together again. A request that can never run comes back at once and whole."""

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError(f"a group needs at least one seed, one for each sample; {self.group_id} has none")
        object.__setattr__(self, "sampling", resolve_sampling(self.sampling, self.prompt.sampling))


@dataclass(slots=True, kw_only=True)
class GroupState:
    """A group being prefilled or sampled."""

    request: GroupRequest
    """What was asked."""
    submitted_s: float
    """Monotonic time of submission."""
    row: int = -1
    """Row of the engine's tables while the prompt runs; -1 before."""
    prompt_pages: list[int] = field(default_factory=list)
    """Pages that hold the prompt; released when every sample has its own references."""
    computed: int = 0
    """Prompt tokens whose keys are in the cache."""
    publishable: bool = True
    """False once the weights change while the group is in the cache: its keys are then not the new weights' own."""
    rollouts: dict[int, Rollout] = field(default_factory=dict)
    """Finished samples by index."""

    @property
    def complete(self) -> bool:
        """True when every sample has ended."""
        return len(self.rollouts) == len(self.request.seeds)


@dataclass(slots=True, kw_only=True)
class SampleState:
    """One sample being decoded; its row of the engine's tables is `row`."""

    group: GroupState
    """Group it belongs to."""
    index: int
    """Sample index."""
    row: int
    """Row of the engine's tables."""
    pages: list[int]
    """Pages it holds a reference to."""
    supports: list[NDArray[np.int32]] = field(default_factory=list)
    """Kept ids of each sampled token (empty: full vocabulary); unused when nothing truncates. Whatever has one entry a token stands in the tables."""
