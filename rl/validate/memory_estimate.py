"""Bytes that training and sampling need, by arithmetic from a model's sizes: pure functions, nothing is built or measured.

docs/memory.md works the formulas for the recipes. Letters: D width, F feed-forward width, L layers, E experts, X experts chosen.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from samepath.kernels.head.logprob import CHUNK_ELEMENTS
from samepath.model.files.model_sizes import PublishedSizes

LEARNER_SHARE = 0.8
"""Part of a device that a learner's estimate may fill: the backward pass has temporaries that no formula here counts (activations:
up to 1.5 times, docs/memory.md), and driver, communication and fragmentation take their part."""
ENGINE_SHARE = 0.9
"""Part of a device that an engine may fill with weights and cache."""
MAX_DEVICES = 1 << 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Bytes of each number.

    Example: MIXED, as FSDP trains: float32 master weights, gradients and moments, bfloat16 in the passes.
    """

    weights: int
    """Bytes of a weight as it is held between passes."""
    master: int
    """Bytes of its master copy, on which the optimiser steps; 0 where the weight itself is that."""
    gradients: int
    """Bytes of its gradient."""
    moments: int
    """Bytes of AdamW's two moments together."""
    reference: int
    """Bytes of a weight of the frozen reference."""
    compute: int
    """Bytes of a number in the passes: activations, and weights gathered for a layer."""


FLOAT32 = Precision(weights=4, master=0, gradients=4, moments=8, reference=4, compute=4)
MIXED = Precision(weights=4, master=0, gradients=4, moments=8, reference=2, compute=2)
MASTERS = Precision(weights=2, master=4, gradients=4, moments=8, reference=2, compute=2)
"""The own network in bfloat16: its weights, and float32 masters beside them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerMemory:
    """What one learner needs.

    Example: 1e9 parameters in float32 hold sharded={"weights": 4e9, "gradients": 4e9, "AdamW moments": 8e9, "reference": 4e9}.
    """

    sharded: Mapping[str, int]
    """Bytes by part that full sharding divides by the number of devices."""
    each: Mapping[str, int]
    """Bytes by part that every device needs for itself: its pass, and layers gathered for it."""

    def per_device(self, num_devices: int) -> int:
        """Bytes of one of so many devices. One device holds whole layers anyway and gathers none."""
        own = sum(size for name, size in self.each.items() if num_devices > 1 or name != GATHERED)
        return -(-sum(self.sharded.values()) // num_devices) + own

    def least_devices(self, device_bytes: int) -> int | None:
        """The fewest devices of that size; None if what each needs for itself does not leave room on any number."""
        usable = int(device_bytes * LEARNER_SHARE)
        if self.per_device(1) <= usable:
            return 1
        room = usable - sum(self.each.values())
        if room <= 0:
            return None
        devices = max(2, -(-sum(self.sharded.values()) // room))
        return devices if devices <= MAX_DEVICES else None


GATHERED = "gathered layers"


def learner_memory(
    sizes: PublishedSizes,
    precision: Precision,
    *,
    pass_tokens: int,
    checkpointing: bool,
    reference: bool,
    frozen: int = 0,
    gather_experts: bool = True,
) -> LearnerMemory:
    """Memory of a learner that trains all but `frozen` parameters, with passes of `pass_tokens` tokens on each device.

    `gather_experts` False leaves routed experts where they are (expert parallelism) instead of gathering each layer whole.
    """
    trained = sizes.parameters - frozen
    sharded = {
        "weights": sizes.parameters * precision.weights,
        "master copy": trained * precision.master,
        "gradients": trained * precision.gradients,
        "AdamW moments": trained * precision.moments,
        "reference": sizes.parameters * precision.reference if reference else 0,
    }
    layer = sizes.largest_layer if gather_experts else sizes.largest_layer_without_experts
    each = {
        "activations": activation_bytes(
            sizes, precision.compute, pass_tokens, checkpointing, exchanged=not gather_experts
        ),
        "logits": logit_bytes(sizes.vocab_size),
        # The layer at work, the one fetched ahead, and the gradient of the first before it is scattered.
        GATHERED: 3 * layer * precision.compute,
    }
    return LearnerMemory(sharded=sharded, each=each)


def layer_elements(sizes: PublishedSizes, *, moe: bool, compute_bytes: int, exchanged: bool = False) -> int:
    """Elements of one token that one layer keeps for its backward pass.

    Norms and residuals 6·D (8·D below float32, because norms compute in float32), attention as counted in its sizes, dense
    feed-forward 4·F (gate, its activation, up, product), experts X·(2·D + 4·F) and 4·E of the router. `exchanged` experts lie on other
    ranks: what they gave is kept here too, X·D, and this rank keeps as many rows of others as others of its own, if the load is even.
    """
    norms = (6 if compute_bytes >= 4 else 8) * sizes.width
    if not moe:
        return norms + sizes.attention_elements + 4 * sizes.dense_width
    rows = 3 if exchanged else 2
    experts = sizes.experts_per_token * (rows * sizes.width + 4 * sizes.expert_width) + 4 * sizes.num_experts
    return norms + sizes.attention_elements + experts + 4 * sizes.shared_width


def activation_bytes(
    sizes: PublishedSizes, compute_bytes: int, pass_tokens: int, checkpointing: bool, *, exchanged: bool = False
) -> int:
    """Activations of one pass that the backward pass needs.

    Without checkpointing every layer keeps its own; with it only the inputs of all layers are kept (L·D), and one layer at a
    time is computed again.
    """
    with_experts = sizes.num_moe_layers > 0
    moe = layer_elements(sizes, moe=True, compute_bytes=compute_bytes, exchanged=exchanged) if with_experts else 0
    num_dense = sizes.num_layers - sizes.num_moe_layers
    dense = layer_elements(sizes, moe=False, compute_bytes=compute_bytes) if num_dense else 0
    if checkpointing:
        elements = sizes.num_layers * sizes.width + max(moe, dense)
    else:
        elements = sizes.num_moe_layers * moe + num_dense * dense
    return elements * pass_tokens * compute_bytes


def logit_bytes(vocab_size: int) -> int:
    """The log-probability head's chunk: logits, softmax and gradient of its rows, float32, never of a whole pass."""
    rows = max(16, CHUNK_ELEMENTS // vocab_size // 16 * 16)
    return 3 * rows * vocab_size * 4


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMemory:
    """What one engine needs.

    Example: EngineMemory(weights=61e9, cache=3.2e9, cache_divides=True).
    """

    weights: int
    """Bytes of all weights."""
    cache: int
    """Bytes of the key/value cache for all tokens that may be held at once."""
    cache_divides: bool
    """True if tensor parallelism divides the cache among its devices; a latent cache is held whole by each."""

    def per_device(self, num_devices: int) -> int:
        """Bytes of one of so many tensor-parallel devices."""
        cache = -(-self.cache // num_devices) if self.cache_divides else self.cache
        return -(-self.weights // num_devices) + cache

    def least_devices(self, device_bytes: int) -> int | None:
        """The fewest devices of that size, a power of two as tensor parallelism asks for; None if the cache alone is too large."""
        devices = 1
        while devices <= MAX_DEVICES:
            if self.per_device(devices) <= int(device_bytes * ENGINE_SHARE):
                return devices
            devices *= 2
        return None


def engine_memory(
    sizes: PublishedSizes, weight_bytes: int, cache_tokens: int, *, unfolded: bool = False
) -> EngineMemory:
    """Memory of an engine, whose cache holds numbers of the weights' type, 2 bytes at least.

    `unfolded` runs latent attention as ordinary attention, with keys and values of all heads in the cache.
    """
    width = sizes.unfolded_cache_width if unfolded else sizes.cache_width
    return EngineMemory(
        weights=sizes.parameters * weight_bytes,
        cache=sizes.num_layers * width * cache_tokens * max(weight_bytes, 2),
        cache_divides=unfolded or not sizes.latent,
    )
