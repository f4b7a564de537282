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
    """Times one call of the learner and says what it did with its cards: the rate of all, the share of their joint peak, the memory of this one."""

    def __init__(self, gpus: int = 1) -> None:
        """`gpus` is how many cards share the call: one for each rank of the learner."""
        self._gpus = gpus
        self.metrics: dict[str, float] = {}

    @contextmanager
    def measured(self, policy: Policy, num_tokens: int) -> Iterator[None]:
        """`learner/…` numbers of what runs inside, 6 FLOP a weight and token: forward and backward, attention scores left out.

        `num_tokens` is rows that were trained through, on all cards; a shared prompt counts once for each sample, though it runs once.
        """
        self.metrics = {}
        if not isinstance(policy, CausalLM) or policy.embedding.device.type != "cuda":
            yield
            return
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        flop = 6 * multiplied_parameters(policy) * num_tokens
        self.metrics = {
            **rates(flop, max(seconds, 1e-9), self._gpus, torch.cuda.get_device_name()),
            "learner/gpu_peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        }


def rates(flop: float, seconds: float, gpus: int, card: str) -> dict[str, float]:
    """10¹² FLOP/s of all `gpus` together and, where the datasheet of `card` is known, their share of what so many can do."""
    rate = flop / seconds
    peak = next((flops for word, flops in PEAK_FLOPS.items() if word in card), None)
    share = {} if peak is None else {"learner/mfu": rate / (gpus * peak)}
    return {"learner/tflops": rate / 1e12, **share}
