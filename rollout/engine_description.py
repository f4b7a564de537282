"""What there is to say about an engine, so that nothing outside its own room asks which one it is. Comes without torch."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel

from samepath.model.placement import Placement

S = TypeVar("S", bound=BaseModel)


class Capability(StrEnum):
    """What a recipe, or a person, may want of an engine; the value is its name in the documentation."""

    ROUTES = "keep routing: experts of every prompt and response token"
    CANDIDATES = "keep sampling mask: candidates left by top-k, top-p and min-p"
    CANDIDATE_CAP = "`sampling.support_cap`"
    LOGPROBS = "log-probabilities of the sampled distribution"
    FINGERPRINTS = "fingerprints of the keys that sparse attention selected"
    ZERO_GAP = "gap of exactly 0 to the learner at equal weights"
    BATCH_INVARIANT = "equal seeds give equal samples in any batch"
    SEEDS = "a seed for each sample"
    GREEDY = "best-token evaluation (temperature 0)"
    ANY_TEMPERATURE = "temperatures below 0.01 (but 0) and above 2"
    STOPS = "stop ids and stop strings"
    PREFIX_CACHE = "prefix cache, with the routes of cached tokens"
    CONVERSATIONS = "keys of prompt and response kept between the calls of a conversation"
    CHUNKED_PREFILL = "long prompts in chunks beside decoding"
    UPDATE = "new weights without a restart, old prefixes dropped"
    VERSIONS = "weight version of every token, updates in mid-response included"
    FINISH = "`rl.on_new_weights: finish`: answers end on the weights that they began with"
    CONTINUE = "`rl.on_new_weights: continue`: answers go on with new weights behind the keys of the old ones"
    RECOMPUTE = "`rl.on_new_weights: recompute`: answers go on behind a context that new weights computed anew"
    ABORT = "abort gives back what was sampled"
    GO_ON = "a sample that was interrupted goes on from its tokens, also in another process"
    OWN_NETWORK = "this package's network: models with an indexer, and the families it knows"
    PUBLISHED_MODELS = "Hugging Face checkpoints of any other family"
    LOW_PRECISION = "bfloat16"
    INLINE = "`runtime: inline`"
    GPU = "GPUs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What one engine makes of one capability.

    Example:
        Cell(supported=True, setting=("return_sampling_mask", True), note="recorded by vLLM's sampler")
    """

    supported: bool
    """False: never."""
    setting: tuple[str, object] | None = None
    """Field of the engine's settings and the value that it needs for this; None: always there."""
    note: str = ""
    """How, with what limits, or why not."""


def yes(note: str = "") -> Cell:
    """Always there."""
    return Cell(supported=True, note=note)


def needs(name: str, value: object, note: str = "") -> Cell:
    """There with `engine.<name>=<value>`."""
    return Cell(supported=True, setting=(name, value), note=note)


def no(note: str) -> Cell:
    """Refused, because."""
    return Cell(supported=False, note=note)


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedCache:
    """A key cache of a fixed size on devices of the engine's own.

    Example:
        FixedCache(size_bytes=1 << 28, num_devices=2, gpu=True)
    """

    size_bytes: int
    """Bytes of the cache on each device."""
    num_devices: int
    """Devices that share weights and cache of one engine."""
    gpu: bool
    """False: they are this machine's CPU."""


class EngineDescription(ABC, Generic[S]):
    """One engine; a subclass in the engine's room says what differs. `describe` finds it by a recipe's settings."""

    kind: ClassVar[str]
    """Name in a recipe."""
    settings: type[S]
    """Class of its settings, with `kind`, `max_sequences` and `max_batch_tokens` among them."""
    cells: ClassVar[Mapping[Capability, Cell]]
    """What it makes of each capability."""
    own_process: ClassVar[bool]
    """True if it changes the process that it lives in, so that no learner may live there too; its threads come from OMP_NUM_THREADS."""
    distributions: ClassVar[tuple[str, ...]] = ()
    """Installed packages whose version changes what it samples."""

    @abstractmethod
    def build(self, folder: Path, settings: S, placement: Placement) -> Any:
        """Start it on a checkpoint folder: an `Engine`. `placement` is the learner's. Imports what it needs late."""

    @abstractmethod
    def computes_on(self, settings: S, placement: Placement) -> tuple[str, str]:
        """(device, dtype) that it computes on and in, beside a learner with this placement."""

    @abstractmethod
    def cache_tokens(self, settings: S, longest: int) -> int:
        """Tokens of key cache that it holds, or may come to need, for sequences of at most `longest` tokens."""

    def environment(self, settings: S) -> Mapping[str, str]:
        """Variables that must stand in a worker's process before it is imported."""
        return {}

    def require(self, settings: S) -> None:
        """Raise EngineUnavailableError, naming the command that helps, if it cannot run in this environment."""

    def installed(self) -> str:
        """What of it is installed here, in words. Raises EngineUnavailableError if it cannot be used."""
        return "part of this package"

    def problems(self, settings: S, group_size: int, placement: Placement) -> list[str]:
        """What a recipe with these settings must change for it."""
        return []

    def too_large(self, settings: S, prompt_tokens: int, max_new_tokens: int, group_size: int) -> str:
        """Why such a group can never run, whatever else does, as the end of a message; empty if it can."""
        return ""

    def longest_sequence(self, settings: S) -> int | None:
        """Tokens of prompt and response together that `engine.max_model_tokens` allows; None: as many as the model."""
        return None

    def unfolds_latents(self, settings: S) -> bool:
        """True if the keys of latent attention are cached as those of ordinary attention."""
        return False

    def fixed_cache(self, settings: S) -> FixedCache | None:
        """Its cache where that has a size and devices of its own; None: it grows with `cache_tokens` beside the learner."""
        return None
