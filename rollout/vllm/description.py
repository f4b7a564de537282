"""What there is to say about vLLM as an engine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from samepath.model.placement import Placement
from samepath.rollout.engine_description import Capability, Cell, EngineDescription, FixedCache, needs, no, yes
from samepath.rollout.vllm.settings import VllmSettings
from samepath.rollout.vllm.version import CPU_DISTRIBUTION, GPU_DISTRIBUTION, installed_words, require_vllm


class VllmEngineDescription(EngineDescription[VllmSettings]):
    """vLLM in a process of its own, on devices of its own."""

    kind = "vllm"
    settings = VllmSettings
    own_process = True
    distributions = (GPU_DISTRIBUTION, CPU_DISTRIBUTION)
    cells: ClassVar[Mapping[Capability, Cell]] = {
        Capability.ROUTES: needs("return_routes", True, "bound to layers by module; a dense model has none"),
        Capability.CANDIDATES: needs("return_sampling_mask", True, "without it a truncated request is refused"),
        Capability.CANDIDATE_CAP: no("vLLM records every candidate, however many"),
        Capability.LOGPROBS: yes("after temperature and truncation"),
        Capability.FINGERPRINTS: no("its records have no place for them; `selection/…` metrics are left out"),
        Capability.ZERO_GAP: needs("network", "own", "vLLM's own kernels differ by rounding"),
        Capability.BATCH_INVARIANT: no(
            "a row's last bits may depend on its batch (not with the own network), and a near-tie then draws another token"
        ),
        Capability.SEEDS: yes("vLLM's own generator: not the built-in engine's samples"),
        Capability.GREEDY: yes("with `return_sampling_mask` as top-k 1, whose log-probabilities are 0"),
        Capability.ANY_TEMPERATURE: no("vLLM raises the former to 0.01 and refuses the latter"),
        Capability.STOPS: yes(),
        Capability.PREFIX_CACHE: needs("prefix_cache", True, "cannot be off while routes are returned"),
        Capability.CONVERSATIONS: needs("prefix_cache", True, "vLLM's own, with the routes of both"),
        Capability.CHUNKED_PREFILL: yes(),
        Capability.UPDATE: yes("names, shapes and types are checked before anything is written"),
        Capability.VERSIONS: yes("keys of samples in flight are computed anew with the new weights"),
        Capability.FINISH: yes(),
        Capability.CONTINUE: no("it computes the keys of answers in flight anew with every new weights"),
        Capability.RECOMPUTE: no("its records hold one set of routes for all weights that an answer was drawn with"),
        Capability.ABORT: yes(),
        Capability.GO_ON: no("its records come at the end of a sample; it begins again from its seed"),
        Capability.OWN_NETWORK: needs("network", "own", "on CPU in float32"),
        Capability.PUBLISHED_MODELS: yes(
            "tested: Qwen3-MoE, OLMoE, Mixtral, DeepSeek-V3, Llama; on CPU head sizes are multiples of 32"
        ),
        Capability.LOW_PRECISION: needs("dtype", "bfloat16"),
        Capability.INLINE: yes("in a child process"),
        Capability.GPU: needs("device", "cuda", "written, not run"),
    }

    def build(self, folder: Path, settings: VllmSettings, placement: Placement) -> Any:
        """See `EngineDescription.build`; the placement is the learner's alone."""
        self.require(settings)
        # Late: an optional dependency, slow to import, that patches the process it is imported into.
        from samepath.model.text.tokenizer import load_tokenizer
        from samepath.rollout.vllm.engine import VllmEngine

        return VllmEngine(folder, load_tokenizer(folder), settings)

    def computes_on(self, settings: VllmSettings, placement: Placement) -> tuple[str, str]:
        """As set."""
        return settings.device, settings.dtype

    def cache_tokens(self, settings: VllmSettings, longest: int) -> int:
        """Every sequence at its longest."""
        return settings.max_sequences * (settings.max_model_tokens or longest)

    def environment(self, settings: VllmSettings) -> Mapping[str, str]:
        """vLLM reads them when it is imported."""
        variables = {
            # Engine, scheduler and model in the worker's own process: it is stepped and given weights between two steps.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_MLA_DISABLE": "0" if settings.latent_kernels else "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
            # The checkpoint is a local folder; nothing here may wait for a network.
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        if settings.device == "cpu":
            # Without the first, the first request waits for a C++ compiler; the second would bind every engine to core 0.
            variables |= {"TORCH_COMPILE_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        else:
            variables |= {"VLLM_USE_V2_MODEL_RUNNER": "1"}
        return variables

    def require(self, settings: VllmSettings) -> None:
        """The tested version, built for the recipe's device."""
        require_vllm(settings.device)

    def installed(self) -> str:
        """Version and device of the build."""
        return installed_words()

    def longest_sequence(self, settings: VllmSettings) -> int | None:
        """As set; 0 stands for the model's."""
        return settings.max_model_tokens or None

    def unfolds_latents(self, settings: VllmSettings) -> bool:
        """Without its latent kernels, vLLM's own network does."""
        return settings.network == "vllm" and not settings.latent_kernels

    def fixed_cache(self, settings: VllmSettings) -> FixedCache | None:
        """As set."""
        return FixedCache(
            size_bytes=settings.cache_bytes, num_devices=settings.tensor_parallel, gpu=settings.device == "cuda"
        )
