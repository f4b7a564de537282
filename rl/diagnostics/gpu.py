"""How well the learner used its GPU: arithmetic rate, share of the card's peak, memory. Nothing is reported on a CPU."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from samepath.model.network.network import CausalLM
from samepath.model.policy import Policy

PEAK_FLOPS: Mapping[str, float] = {"H100": 989e12, "H200": 989e12, "GH200": 989e12, "A100": 312e12}
"""Dense bfloat16 products per second, as the makers' datasheets give it (SXM parts), by a word of the card's name."""


def multiplied_parameters(policy: CausalLM) -> int:
    """Weights that one token is multiplied with: every matrix but the embedding's look-up, and the chosen share of the experts."""
    config = policy.config
    chosen = config.num_experts_per_tok / config.n_routed_experts if config.n_routed_experts else 0.0
    total = sum(
        parameter.numel() * (chosen if parameter.ndim == 3 else 1)
        for parameter in policy.parameters()
        if parameter.ndim > 1
    )
    looked_up = 0 if config.tie_word_embeddings else policy.embedding.numel()
    return round(total) - looked_up


class GpuMeter:
    """Times one call of the learner and says what it did with the card."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    @contextmanager
    def measured(self, policy: Policy, num_tokens: int) -> Iterator[None]:
        """`learner/…` numbers of what runs inside, 6 FLOP a weight and token: forward and backward, attention scores left out.

        `num_tokens` is rows that were trained through; a shared prompt counts once for each sample, though it runs once.
        """
        self.metrics = {}
        if not isinstance(policy, CausalLM) or policy.embedding.device.type != "cuda":
            yield
            return
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        rate = 6 * multiplied_parameters(policy) * num_tokens / max(seconds, 1e-9)
        self.metrics = {
            "learner/tflops": rate / 1e12,
            "learner/gpu_peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        }
        name = torch.cuda.get_device_name()
        peak = next((flops for word, flops in PEAK_FLOPS.items() if word in name), None)
        if peak is not None:
            self.metrics["learner/mfu"] = rate / peak
