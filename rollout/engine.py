"""What every engine can do, and the one place that starts the one a recipe asks for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from samepath.model.files.checkpoint import load_checkpoint
from samepath.model.network.placement import place
from samepath.model.placement import ON_CPU, Placement
from samepath.model.text.tokenizer import load_tokenizer
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.counters import EngineCounters
from samepath.rollout.engine_settings import BuiltinSettings, VllmSettings
from samepath.rollout.request import GroupRequest
from samepath.rollout.types import Group
from samepath.rollout.vllm.version import require_vllm


class Engine(Protocol):
    """Turns group requests into finished groups. Not thread-safe: one caller steps it."""

    counters: EngineCounters
    weight_version: int

    @property
    def busy(self) -> bool:
        """True while any submitted group is unfinished."""
        ...

    def submit(self, request: GroupRequest) -> Group | None:
        """Queue a group. A request that can never run comes back at once as a group of failed rollouts."""
        ...

    def step(self) -> list[Group]:
        """One forward pass; returns the groups it finished. Does nothing when idle."""
        ...

    def run(self, requests: Sequence[GroupRequest]) -> list[Group]:
        """Submit all, step until done, return the groups in request order."""
        ...

    def abort(self) -> list[Group]:
        """Drop all unfinished work; groups come back with what was sampled so far, finish reason `abort`."""
        ...

    def load_weights(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Take new weights (published names) without a restart and drop every cached prefix of the old ones."""
        ...


def build_engine(folder: Path, settings: BuiltinSettings | VllmSettings, placement: Placement = ON_CPU) -> Engine:
    """Start the engine on a checkpoint folder; `placement` is the built-in one's, vLLM has settings of its own.

    Raises EngineUnavailableError, PlacementError, ValueError or FileNotFoundError.
    """
    match settings:
        case BuiltinSettings():
            model = place(load_checkpoint(folder, placement.backend), placement)
            return BuiltinEngine(model, load_tokenizer(folder), settings)
        case VllmSettings():
            require_vllm(settings)
            # Late: an optional dependency, slow to import, that patches the process it is imported into.
            from samepath.rollout.vllm.engine import VllmEngine

            return VllmEngine(folder, load_tokenizer(folder), settings)
