"""Memory by arithmetic: hand-worked numbers, what autograd really keeps, and the invariants of sharding."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from samepath.kernels.head.logprob import CHUNK_ELEMENTS
from samepath.model.files.published_sizes import published_sizes
from samepath.rl.validate.memory_estimate import (
    FLOAT32,
    GATHERED,
    MASTERS,
    MIXED,
    EngineMemory,
    LearnerMemory,
    activation_bytes,
    engine_memory,
    layer_elements,
    learner_memory,
    logit_bytes,
)
from tests.model.files.test_published_sizes import DEEPSEEK_V32, QWEN3_30B, SMOLLM2

GB = 10**9
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 32}
CHECKED = [LLAMA, {**LLAMA, **EXPERTS, "model_type": "qwen3_moe"}]


def kept_bytes(config: dict[str, Any], num_tokens: int) -> int:
    """Bytes of all tensors that autograd keeps for the backward pass of a network, weights left out."""
    sizes = {key: value for key, value in config.items() if key != "model_type"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **sizes)).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            # The tensor is held too, or its address could be given out again.
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(torch.randint(0, 64, (1, num_tokens)), use_cache=False)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("config", CHECKED, ids=lambda config: config["model_type"])
def test_activation_bytes_is_what_autograd_keeps(config: dict[str, Any]) -> None:
    """Within five per cent: ids, rotations and log-sums of the attention are not in the formula."""
    counted = activation_bytes(published_sizes(config), 4, 128, checkpointing=False)
    assert counted == pytest.approx(kept_bytes(config, 128), rel=0.05)


def test_layer_elements_hand_worked() -> None:
    """Llama: 6·128 + (2·128 + 2·64) + 4·320. Mixture: 6·128 + 4·(256 + 128) + 2·(2·128 + 4·64) + 4·8, heads normed."""
    dense, mixture = (published_sizes(config) for config in CHECKED)
    assert layer_elements(dense, moe=False, compute_bytes=4) == 768 + 384 + 1280
    assert layer_elements(dense, moe=False, compute_bytes=2) == 1024 + 384 + 1280
    assert layer_elements(mixture, moe=True, compute_bytes=4) == 768 + 1536 + 1024 + 32


def test_activation_bytes_checkpointing_keeps_layer_inputs_and_one_layer() -> None:
    sizes = published_sizes(LLAMA)
    assert activation_bytes(sizes, 4, 10, checkpointing=False) == 10 * 4 * 3 * 2432
    assert activation_bytes(sizes, 4, 10, checkpointing=True) == 10 * 4 * (3 * 128 + 2432)


def test_logit_bytes_never_exceeds_the_head_chunk_for_common_vocabularies() -> None:
    assert logit_bytes(49152) == 3 * 4 * 160 * 49152
    assert logit_bytes(129280) <= 3 * 4 * CHUNK_ELEMENTS


def test_learner_memory_smollm2_hand_worked() -> None:
    """134,515,008 parameters: 4 + 4 + 8 + 4 bytes each in float32."""
    memory = learner_memory(published_sizes(SMOLLM2), FLOAT32, pass_tokens=1024, checkpointing=False, reference=True)
    assert sum(memory.sharded.values()) == 134_515_008 * 20
    # Per layer 6·576 + 2·576 + 2·192 + 4·1536 elements.
    assert memory.each["activations"] == 30 * 1024 * 4 * (3456 + 1152 + 384 + 6144)
    assert memory.per_device(1) == sum(memory.sharded.values()) + memory.each["activations"] + memory.each["logits"]


def test_learner_memory_masters_stand_beside_bfloat16_weights() -> None:
    """2 + 4 + 4 + 8 + 2 bytes a parameter."""
    memory = learner_memory(published_sizes(SMOLLM2), MASTERS, pass_tokens=1024, checkpointing=False, reference=True)
    assert sum(memory.sharded.values()) == 134_515_008 * 20
    assert memory.sharded["master copy"] == 134_515_008 * 4


def test_learner_memory_frozen_parameters_have_no_gradient_and_no_moments() -> None:
    sizes = published_sizes(DEEPSEEK_V32)
    indexer = sizes.parts["indexer"]
    every = learner_memory(sizes, MIXED, pass_tokens=1, checkpointing=True, reference=False)
    frozen = learner_memory(sizes, MIXED, pass_tokens=1, checkpointing=True, reference=False, frozen=indexer)
    assert sum(every.sharded.values()) - sum(frozen.sharded.values()) == 12 * indexer
    assert every.sharded["reference"] == 0


def test_learner_memory_experts_in_place_are_not_gathered() -> None:
    sizes = published_sizes(DEEPSEEK_V32)
    gathered, in_place = (
        learner_memory(sizes, MIXED, pass_tokens=8192, checkpointing=True, reference=True, gather_experts=gather)
        for gather in (True, False)
    )
    assert gathered.sharded == in_place.sharded
    # Of the one layer that is computed again, what 8 experts of a token gave, which came back from other ranks.
    assert in_place.each["activations"] - gathered.each["activations"] == 8192 * 8 * 7168 * 2
    around = sizes.moe_layer.attention + sizes.moe_layer.indexer + 2 * 7168
    assert gathered.each[GATHERED] == 3 * 2 * (around + 257 * 44_040_192 + 256 * 7168)
    # Then the dense layers, of 3·7168·18432, are the largest that travel.
    assert in_place.each[GATHERED] == 3 * 2 * (around + 3 * 7168 * 18_432)
    # Three layers of 256 experts are more than an 80 GB device has beside its activations.
    assert gathered.least_devices(80 * GB) is None
    assert in_place.least_devices(80 * GB) is not None


def test_least_devices_is_enough_and_one_less_is_not() -> None:
    memory = learner_memory(published_sizes(QWEN3_30B), MIXED, pass_tokens=8192, checkpointing=True, reference=True)
    for size in (80 * GB, 141 * GB):
        count = memory.least_devices(size)
        assert count is not None
        assert count > 1
        assert memory.per_device(count) <= 0.8 * size < memory.per_device(count - 1)


def test_least_devices_hand_worked() -> None:
    """100 GB to divide and 10 GB on each: (64 − 10) GB of 80 GB hold half; alone it needs no gathered layer."""
    memory = LearnerMemory(sharded={"weights": 100 * GB}, each={"activations": 4 * GB, GATHERED: 6 * GB})
    assert memory.least_devices(80 * GB) == 2
    assert (memory.per_device(1), memory.per_device(2)) == (104 * GB, 60 * GB)
    assert memory.least_devices(130 * GB) == 1
    assert memory.least_devices(12 * GB) is None


def test_engine_memory_grouped_cache_divides_and_latent_does_not() -> None:
    """Qwen3-30B-A3B: 48 layers · 2·4·128 numbers · 2 bytes = 98,304 bytes per token. DeepSeek-V3.2: 61 · 704 · 2 = 85,888."""
    qwen, deepseek = (engine_memory(published_sizes(config), 2, 1000) for config in (QWEN3_30B, DEEPSEEK_V32))
    assert (qwen.cache, deepseek.cache) == (98_304_000, 85_888_000)
    assert qwen.per_device(4) == -(-qwen.weights // 4) + 24_576_000
    assert deepseek.per_device(4) == -(-deepseek.weights // 4) + 85_888_000


def test_engine_memory_latent_attention_unfolded_holds_all_heads_and_divides() -> None:
    """61 layers · 2·128·(128 + 64) numbers · 2 bytes: 70 times the latent cache."""
    memory = engine_memory(published_sizes(DEEPSEEK_V32), 2, 1000, unfolded=True)
    assert memory.cache == 61 * 2 * 128 * 192 * 2 * 1000
    assert memory.per_device(8) == -(-memory.weights // 8) + memory.cache // 8


def test_engine_least_devices_is_a_power_of_two() -> None:
    memory = EngineMemory(weights=300 * GB, cache=10 * GB, cache_divides=False)
    # 300/4 + 10 = 85 GB are too much for 72; 300/8 + 10 = 47.5 GB fit.
    assert memory.least_devices(80 * GB) == 8
    assert EngineMemory(weights=GB, cache=90 * GB, cache_divides=False).least_devices(80 * GB) is None
