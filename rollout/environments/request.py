"""What a worker is asked: a prompt to be answered, or a conversation to be led with an environment."""

from dataclasses import dataclass
from typing import TypeAlias

from samepath.rollout.environments.protocol import EnvironmentRow
from samepath.rollout.environments.settings import EnvironmentSettings, EpisodeSettings
from samepath.rollout.request import GroupRequest
from samepath.rollout.sampling_settings import SamplingSettings, resolve_sampling
from samepath.rollout.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeRequest:
    """One task of an environment to be worked `len(seeds)` times, each in a conversation of its own.

    Example:
        EpisodeRequest(group_id="s3-g0", prompt=prompt, sampling=SamplingSettings(), seeds=(11, 12), row=row,
                       environment=EnvironmentSettings(environment="my_store:Store"), episode=EpisodeSettings())
    """

    group_id: str
    """Unique among the requests in flight."""
    prompt: Prompt
    """The row as people and records know it; it has no ids: the conversation's first context is encoded where it is led."""
    sampling: SamplingSettings
    """How each message is drawn; `max_new_tokens` is one message's."""
    seeds: tuple[int, ...]
    """One 64-bit seed a sample: of its session, and of all its messages."""
    environment: EnvironmentSettings
    """Which environment."""
    row: EnvironmentRow
    """Its task."""
    episode: EpisodeSettings
    """Form, budgets, and what a malformed message leads to."""
    one_version: bool = False
    """True with `rl.on_new_weights: recompute`: each segment is of one weight version, cut wherever new weights came (`joined_segments`)."""

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError(f"a group needs at least one seed, one for each sample; {self.group_id} has none")
        object.__setattr__(self, "sampling", resolve_sampling(self.sampling, self.prompt.sampling))


Request: TypeAlias = GroupRequest | EpisodeRequest
"""What a pool samples."""
