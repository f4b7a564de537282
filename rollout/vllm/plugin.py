"""What vLLM must know of this package before it builds an engine; also its entry point in `vllm.general_plugins`.

vLLM calls `register` in every process of an engine; the adapter calls it as well, for a source tree that is not installed.
"""

from typing import Any

from vllm import ModelRegistry
from vllm.config import VllmConfig

from samepath.rollout.vllm.amx import allow_matrix_tiles
from samepath.rollout.vllm.network import SamepathForCausalLM

CPU_WORKER = "samepath.rollout.vllm.worker.RecordingWorker"
OWN_MODEL = "SamepathForCausalLM"


def register() -> None:
    """Allow the processor's matrix tiles, make the own network known, let our CPU worker record. May be called again."""
    allow_matrix_tiles()
    if OWN_MODEL not in ModelRegistry.get_supported_archs():
        # The class itself: by a name, vLLM would start a process to look at it, which takes longer than the rest of the start.
        ModelRegistry.register_model(OWN_MODEL, SamepathForCausalLM)
    _let_our_worker_pass("_verify_aux_output_compatibility")
    _let_our_worker_pass("_verify_sampling_replay_config")


def _let_our_worker_pass(name: str) -> None:
    """Skip a check of vLLM's configuration for our CPU worker alone.

    Both checks refuse every runner but the second-generation one, which needs Triton, because only that one records; ours does too. What
    else they refuse (pipelines, speculation, foreign logits processors, raw log-probabilities) the adapter never asks for.
    """
    check = getattr(VllmConfig, name)
    if getattr(check, "lets_samepath_pass", False):
        return

    def verify(self: Any) -> None:
        if str(self.parallel_config.worker_cls) != CPU_WORKER:
            check(self)

    verify.lets_samepath_pass = True  # type: ignore[attr-defined]
    setattr(VllmConfig, name, verify)
