"""What every engine can do of what a recipe may ask: the one table that the recipe check and docs/engines.md are made from.

`python -m samepath.rollout.capabilities` prints the Markdown table.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from samepath.rollout.engine_settings import BuiltinSettings, VllmSettings

EngineKind = Literal["builtin", "vllm"]


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
    CHUNKED_PREFILL = "long prompts in chunks beside decoding"
    UPDATE = "new weights without a restart, old prefixes dropped"
    VERSIONS = "weight version of every token, updates in mid-response included"
    ABORT = "abort gives back what was sampled"
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


TABLE: Mapping[Capability, Mapping[EngineKind, Cell]] = {
    Capability.ROUTES: {
        "builtin": yes(),
        "vllm": needs("return_routes", True, "bound to layers by module; a dense model has none"),
    },
    Capability.CANDIDATES: {
        "builtin": yes(),
        "vllm": needs("return_sampling_mask", True, "without it a truncated request is refused"),
    },
    Capability.CANDIDATE_CAP: {"builtin": yes(), "vllm": no("vLLM records every candidate, however many")},
    Capability.LOGPROBS: {"builtin": yes(), "vllm": yes("after temperature and truncation")},
    Capability.FINGERPRINTS: {
        "builtin": yes(),
        "vllm": no("its records have no place for them; `selection/…` metrics are left out"),
    },
    Capability.ZERO_GAP: {
        "builtin": yes(),
        "vllm": needs("network", "own", "vLLM's own kernels differ by rounding"),
    },
    Capability.BATCH_INVARIANT: {
        "builtin": yes(),
        "vllm": no(
            "a row's last bits may depend on its batch (not with the own network), and a near-tie then draws another token"
        ),
    },
    Capability.SEEDS: {"builtin": yes(), "vllm": yes("vLLM's own generator: not the built-in engine's samples")},
    Capability.GREEDY: {
        "builtin": yes(),
        "vllm": yes("with `return_sampling_mask` as top-k 1, whose log-probabilities are 0"),
    },
    Capability.ANY_TEMPERATURE: {"builtin": yes(), "vllm": no("vLLM raises the former to 0.01 and refuses the latter")},
    Capability.STOPS: {"builtin": yes(), "vllm": yes()},
    Capability.PREFIX_CACHE: {
        "builtin": needs("prefix_cache", True),
        "vllm": needs("prefix_cache", True, "cannot be off while routes are returned"),
    },
    Capability.CHUNKED_PREFILL: {"builtin": yes(), "vllm": yes()},
    Capability.UPDATE: {
        "builtin": yes(),
        "vllm": yes("names, shapes and types are checked before anything is written"),
    },
    Capability.VERSIONS: {
        "builtin": yes("samples in flight keep their keys"),
        "vllm": yes("keys of samples in flight are computed anew with the new weights"),
    },
    Capability.ABORT: {"builtin": yes(), "vllm": yes()},
    Capability.OWN_NETWORK: {"builtin": yes(), "vllm": needs("network", "own", "on CPU in float32")},
    Capability.PUBLISHED_MODELS: {
        "builtin": no("it runs this package's network"),
        "vllm": yes("tested: Qwen3-MoE, OLMoE, Mixtral, DeepSeek-V3, Llama; on CPU head sizes are multiples of 32"),
    },
    Capability.LOW_PRECISION: {
        "builtin": yes("with `model.dtype: bfloat16`, float32 masters in the optimiser"),
        "vllm": needs("dtype", "bfloat16"),
    },
    Capability.INLINE: {"builtin": yes("in the driver's process"), "vllm": yes("in a child process")},
    Capability.GPU: {
        "builtin": yes("with `model.device: cuda`, one a process"),
        "vllm": needs("device", "cuda", "written, not run"),
    },
}


def refusal(capability: Capability, engine: BuiltinSettings | VllmSettings) -> str:
    """Why this engine does not offer it with these settings, or empty."""
    cell = TABLE[capability][engine.kind]
    if not cell.supported:
        return f"engine.kind {engine.kind} does not offer it: {cell.note}"
    if cell.setting is not None and getattr(engine, cell.setting[0]) != cell.setting[1]:
        name, value = cell.setting
        return f"it needs engine.{name}={_as_yaml(value)}" + (f" ({cell.note})" if cell.note else "")
    return ""


def capability_table() -> str:
    """The Markdown table of docs/engines.md."""
    lines = ["| | `builtin` | `vllm` |", "|---|---|---|"]
    for capability in Capability:
        cells = TABLE[capability]
        lines.append(f"| {capability.value} | {_words(cells['builtin'])} | {_words(cells['vllm'])} |")
    return "\n".join(lines) + "\n"


def _words(cell: Cell) -> str:
    if not cell.supported:
        return f"no: {cell.note}"
    words = "yes" if cell.setting is None else f"with `{cell.setting[0]}: {_as_yaml(cell.setting[1])}`"
    return f"{words}; {cell.note}" if cell.note else words


def _as_yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    sys.stdout.write(capability_table())
