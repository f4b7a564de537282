"""What there is to say about the built-in engine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from samepath.kernels.backend import CAPABILITIES, backends_that
from samepath.model.placement import Placement
from samepath.rollout.builtin.page_demand import most_pages
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.engine_description import Capability, Cell, EngineDescription, needs, no, yes


class BuiltinEngineDescription(EngineDescription[BuiltinSettings]):
    """This package's engine: it lives beside the learner, with the learner's placement."""

    kind = "builtin"
    settings = BuiltinSettings
    own_process = False
    cells: ClassVar[Mapping[Capability, Cell]] = {
        Capability.ROUTES: yes(),
        Capability.CANDIDATES: yes(),
        Capability.CANDIDATE_CAP: yes(),
        Capability.LOGPROBS: yes(),
        Capability.FINGERPRINTS: yes(),
        Capability.ZERO_GAP: needs("dtype", "model"),
        Capability.BATCH_INVARIANT: yes(),
        Capability.SEEDS: yes(),
        Capability.GREEDY: yes(),
        Capability.ANY_TEMPERATURE: yes(),
        Capability.STOPS: yes(),
        Capability.PREFIX_CACHE: needs("prefix_cache", True),
        Capability.CONVERSATIONS: needs("prefix_cache", True),
        Capability.CHUNKED_PREFILL: yes(),
        Capability.UPDATE: yes(),
        Capability.VERSIONS: yes("samples in flight keep their keys"),
        Capability.FINISH: yes(),
        Capability.CONTINUE: yes(),
        Capability.RECOMPUTE: yes("a segment for each version, each with a gap of exactly 0"),
        Capability.ABORT: yes(),
        Capability.GO_ON: yes("behind a context that is prefilled anew"),
        Capability.OWN_NETWORK: yes(),
        Capability.PUBLISHED_MODELS: no("it runs this package's network"),
        Capability.LOW_PRECISION: yes(
            "with `model.dtype: bfloat16`, float32 masters in the optimiser; `engine.dtype` for the engine alone"
        ),
        Capability.INLINE: yes("in the driver's process"),
        Capability.GPU: yes("with `model.device: cuda`, one a process"),
    }

    def build(self, folder: Path, settings: BuiltinSettings, placement: Placement) -> Any:
        """See `EngineDescription.build`."""
        # Late: a description comes without torch.
        from samepath.model.files.checkpoint import load_checkpoint
        from samepath.model.network.placement import place, rounded
        from samepath.model.text.tokenizer import load_tokenizer
        from samepath.rollout.builtin.builtin_engine import BuiltinEngine

        model = place(load_checkpoint(folder, placement.backend), placement)
        if settings.dtype != "model":
            model = rounded(model, settings.dtype)
        return BuiltinEngine(model, load_tokenizer(folder), settings)

    def computes_on(self, settings: BuiltinSettings, placement: Placement) -> tuple[str, str]:
        """The learner's own, unless the type is set."""
        return placement.device, placement.dtype if settings.dtype == "model" else settings.dtype

    def cache_tokens(self, settings: BuiltinSettings, longest: int) -> int:
        """As set."""
        return settings.cache_tokens

    def problems(self, settings: BuiltinSettings, group_size: int, placement: Placement) -> list[str]:
        """A group is decoded together, and CUDA graphs have their own demands."""
        problems = []
        if group_size > settings.max_sequences:
            problems.append(
                f"engine.max_sequences={settings.max_sequences} must hold a whole group: rl.group_size={group_size}"
            )
        if settings.dtype != "model" and not CAPABILITIES[placement.backend].narrow_sampling:
            problems.append(
                f"engine.dtype={settings.dtype} needs model.backend={backends_that('narrow_sampling')}, which add in float32; got {placement.backend}"
            )
        problems += filter(None, [settings.graph_problem(placement.device, placement.backend)])
        return problems

    def too_large(self, settings: BuiltinSettings, prompt_tokens: int, max_new_tokens: int, group_size: int) -> str:
        """Samples give their pages back to older ones where there are too few, so that one must fit."""
        needed = most_pages(prompt_tokens, max_new_tokens, settings.page_size)
        if needed <= settings.cache_tokens // settings.page_size:
            return ""
        return (
            f"engine.cache_tokens={settings.cache_tokens} must hold a sample at its longest, in pages of {settings.page_size}; it needs "
            f"{needed * settings.page_size}"
        )
