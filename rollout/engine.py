"""What every engine can do, and the one place that starts the one a recipe asks for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from samepath.model.placement import ON_CPU, Placement
from samepath.model.text.tokenizer import Tokenizer
from samepath.rollout.begun import Progress
from samepath.rollout.counters import EngineCounters
from samepath.rollout.engine_settings import AnyEngine, describe
from samepath.rollout.request import GroupRequest
from samepath.rollout.types import Group


class Engine(Protocol):
    """Turns group requests into finished groups. Not thread-safe: one caller steps it."""

    counters: EngineCounters
    weight_version: int
    tokenizer: Tokenizer

    @property
    def longest_sequence(self) -> int:
        """Tokens of prompt and response together that a request of one sample may have."""
        ...

    @property
    def busy(self) -> bool:
        """True while any submitted group is unfinished."""
        ...

    def submit(self, request: GroupRequest) -> Group | None:
        """Queue a group. A request that can never run comes back at once as a group of failed rollouts.

        Raises ValueError for `keep_keys` where no key can be found again, and for `begun` without `Capability.GO_ON`.
        """
        ...

    def step(self) -> list[Group]:
        """One forward pass; returns the groups it finished, of samples that come apart each by itself. Does nothing when idle."""
        ...

    def run(self, requests: Sequence[GroupRequest]) -> list[Group]:
        """Submit all, step until done, return the groups whole and in request order."""
        ...

    def abort(self) -> list[Group]:
        """Drop all unfinished work; groups come back with what was sampled so far, finish reason `abort`.

        Of samples that come apart those that had not come back yet, each by itself.
        """
        ...

    def progress(self) -> list[Progress]:
        """What samples under way drew since the last call, of groups whose samples do not come apart; nothing without `Capability.GO_ON`."""
        ...

    def load_weights(self, tensors: Mapping[str, Tensor], version: int, *, recompute: bool = False) -> None:
        """Take new weights (published names) without a restart and drop every cached prefix of the old ones.

        `recompute` computes the context of samples in flight anew, and gives each version's tokens a segment of their own
        (`Capability.RECOMPUTE`; without it a ValueError).
        """
        ...

    def held_weights(self) -> Mapping[str, Tensor] | None:
        """The weights that it samples with under their published names, to be read; None where it keeps them in a form of its own."""
        ...

    def share_weights(self, policy: nn.Module, version: int) -> bool:
        """Sample from the tensors of a policy of this process themselves from now on, and drop every cached prefix; False if it has to copy."""
        ...


def build_engine(folder: Path, settings: AnyEngine, placement: Placement = ON_CPU) -> Engine:
    """Start the engine on a checkpoint folder; `placement` is the learner's, which an engine in the same process takes too.

    Raises EngineUnavailableError, PlacementError, ValueError or FileNotFoundError.
    """
    engine: Engine = describe(settings).build(folder, settings, placement)
    return engine
