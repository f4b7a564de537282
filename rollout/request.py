"""What is asked of an engine, and what it keeps of a group of samples while it works on it."""

from dataclasses import dataclass, field

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

    begun: tuple[Rollout, ...] = ()
    """Samples that were interrupted, in sample order, one for each seed: those whose last segment ends with `abort` go on behind their tokens, the
    others have ended. None: all begin with their first token. An engine that cannot (Capability.GO_ON) raises ValueError."""

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError(f"a group needs at least one seed, one for each sample; {self.group_id} has none")
        if self.begun and (len(self.begun) != len(self.seeds) or not all(one.num_trained for one in self.begun)):
            raise ValueError(
                f"{self.group_id}: either no sample has begun, or each of the {len(self.seeds)} has a token; got "
                f"{[one.num_trained for one in self.begun]} tokens"
            )
        object.__setattr__(self, "sampling", resolve_sampling(self.sampling, self.prompt.sampling))


@dataclass(slots=True, kw_only=True)
class GroupState:
    """A group being prefilled or sampled."""

    request: GroupRequest
    """What was asked."""
    submitted_s: float
    """Monotonic time of submission."""
    publishable: bool = True
    """False once the weights change while the group is in the cache: its keys are then not the new weights' own."""
    rollouts: dict[int, Rollout] = field(default_factory=dict)
    """Finished samples by index."""
    fresh_ends: list[int] = field(default_factory=list)
    """Of these, the ones that `Engine.progress` has not told yet."""

    @property
    def complete(self) -> bool:
        """True when every sample has ended."""
        return len(self.rollouts) == len(self.request.seeds)
