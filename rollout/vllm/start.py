"""From a recipe's settings to a running vLLM engine in this process."""

import json
from pathlib import Path
from typing import Any

from vllm import EngineArgs, LLMEngine
from vllm.platforms import current_platform

from samepath.rollout.engine_errors import EngineUnavailableError
from samepath.rollout.vllm.plugin import CPU_WORKER, OWN_MODEL, register
from samepath.rollout.vllm.settings import VllmSettings

WEIGHT_EXTENSION = "samepath.rollout.vllm.weights.WeightExtension"
EXPERT_COUNTS = ("num_experts", "n_routed_experts", "num_local_experts")
"""Names under which published configurations give the number of routed experts."""
GPU_ONLY = ("deepseek_v32", "glm_moe_dsa")
"""Model types with an indexer, whose classes in vLLM run on GPUs only."""


def start_vllm(folder: Path, settings: VllmSettings) -> LLMEngine:
    """Start an engine on a checkpoint folder. Raises EngineUnavailableError with vLLM's own reason."""
    if current_platform.is_cpu() != (settings.device == "cpu"):
        raise EngineUnavailableError(
            f"engine.device={settings.device}, but vLLM runs on {current_platform.device_name} here. Set engine.device to what the workers have."
        )
    config = json.loads((folder / "config.json").read_text())
    if settings.device == "cpu" and settings.network == "vllm" and config.get("model_type") in GPU_ONLY:
        raise EngineUnavailableError(
            f"vLLM runs {config['model_type']} on GPUs only. Set engine.network=own engine.dtype=float32: this package's network in vLLM."
        )
    register()
    try:
        return LLMEngine.from_engine_args(EngineArgs(**engine_arguments(folder, settings, config)))
    except (ValueError, RuntimeError, KeyError, OSError, AssertionError) as error:
        raise EngineUnavailableError(
            f"vLLM cannot serve {folder}: {type(error).__name__}: {error}. If it is the cache, raise engine.cache_bytes="
            f"{settings.cache_bytes} or lower engine.max_model_tokens."
        ) from error


def engine_arguments(folder: Path, settings: VllmSettings, config: dict[str, Any]) -> dict[str, Any]:
    """vLLM's arguments. Everything that changes what is sampled is said here, and nothing is left to files of the checkpoint."""
    arguments: dict[str, Any] = {
        "model": str(folder),
        "dtype": settings.dtype,
        "seed": 0,
        "max_num_seqs": settings.max_sequences,
        "max_num_batched_tokens": settings.max_batch_tokens,
        "kv_cache_memory_bytes": settings.cache_bytes,
        "block_size": settings.page_size,
        "enable_prefix_caching": settings.prefix_cache,
        "enforce_eager": settings.eager,
        "tensor_parallel_size": settings.tensor_parallel,
        # A step must end before the next is planned: weights change and requests are aborted between two steps.
        "async_scheduling": False,
        # Log-probabilities of the distribution that was sampled from: after temperature and truncation.
        "logprobs_mode": "processed_logprobs",
        "return_sampling_mask": settings.return_sampling_mask,
        "enable_return_routed_experts": settings.return_routes and has_experts(config),
        # Neither a generation_config.json nor a statistics thread may change what the recipe says.
        "generation_config": "vllm",
        "disable_log_stats": True,
        "worker_extension_cls": WEIGHT_EXTENSION,
    }
    if settings.max_model_tokens:
        arguments["max_model_len"] = settings.max_model_tokens
    if settings.device == "cpu":
        arguments["worker_cls"] = CPU_WORKER
        # The CPU kernel of plain rotary embedding is wrong for queries of three axes, as latent attention has them.
        arguments["compilation_config"] = {"custom_ops": ["all", "-rotary_embedding"]}
    if settings.network == "own":
        arguments["hf_overrides"] = {"architectures": [OWN_MODEL]}
    return arguments


def has_experts(config: dict[str, Any]) -> bool:
    """True for a mixture-of-experts checkpoint."""
    sizes = {**config, **config.get("text_config", {})}
    return any((sizes.get(name) or 0) > 1 for name in EXPERT_COUNTS)
