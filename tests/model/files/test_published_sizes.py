"""Parameter counts from config.json alone, against networks that transformers lays out without memory."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from samepath.model.files.config_file import write_config
from samepath.model.files.published_sizes import KNOWN_TYPES, SizesError, published_sizes
from samepath.model.network.network import CausalLM
from tests.conftest import tiny_config
from tests.families import FAMILIES, family_model

GROUPED = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "n_group": 4,
    "topk_group": 2,
    "max_position_embeddings": 128,
}
SMOLLM2 = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
QWEN3_30B = {
    "model_type": "qwen3_moe",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 40960,
}
DEEPSEEK_V32 = {
    "model_type": "deepseek_v32",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "first_k_dense_replace": 3,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "n_group": 8,
    "topk_group": 4,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 2048,
    "max_position_embeddings": 163840,
}
GLM_EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
}
CASES: list[dict[str, Any]] = [
    {"model_type": "llama", **GROUPED},
    {"model_type": "llama", **GROUPED, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    {"model_type": "mistral", **GROUPED, "head_dim": 32},
    {"model_type": "qwen2", **GROUPED},
    {"model_type": "qwen3", **GROUPED, "head_dim": 32},
    {"model_type": "qwen2_moe", **GROUPED, **EXPERTS, "shared_expert_intermediate_size": 48, "decoder_sparse_step": 2},
    {"model_type": "qwen3_moe", **GROUPED, **EXPERTS, "head_dim": 32, "mlp_only_layers": [1]},
    {"model_type": "mixtral", **GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    {"model_type": "olmoe", **GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "pad_token_id": 2},
    {"model_type": "glm4_moe", **GROUPED, **GLM_EXPERTS, "head_dim": 32, "attention_bias": True, "use_qk_norm": True},
    {"model_type": "glm4_moe", **GROUPED, **GLM_EXPERTS, "head_dim": 32, "first_k_dense_replace": 2},
    {"model_type": "deepseek_v2", **LATENT},
    {"model_type": "deepseek_v2", **LATENT, "q_lora_rank": None},
    {"model_type": "deepseek_v3", **LATENT},
    {"model_type": "deepseek_v32", **LATENT, "index_n_heads": 4, "index_head_dim": 16, "index_topk": 8},
    SMOLLM2,
    QWEN3_30B,
    DEEPSEEK_V32,
]


def test_every_known_type_is_compared() -> None:
    assert {case["model_type"] for case in CASES} == set(KNOWN_TYPES) - {"samepath_grouped"}


@pytest.mark.parametrize("config", CASES, ids=lambda case: case["model_type"])
def test_parameters_are_those_that_transformers_lays_out(config: dict[str, Any]) -> None:
    sizes = {key: value for key, value in config.items() if key != "model_type"}
    # On the meta device nothing is allocated, so even 671 billion parameters are laid out in a moment.
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **sizes))
    assert published_sizes(config).parameters == sum(parameter.numel() for parameter in model.parameters())


def test_parameters_of_the_own_network_are_counted_alike() -> None:
    config = tiny_config()
    counted = published_sizes({"model_type": "deepseek_v32", **config.model_dump()})
    model = CausalLM(config)
    assert counted.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert counted.parts["indexer"] == sum(parameter.numel() for parameter in model.indexer_parameters())
    assert counted.cache_width == config.key_width + config.index_head_dim


@pytest.mark.parametrize("name", [name for name in FAMILIES if name.startswith("samepath_grouped")])
def test_parameters_of_the_own_family_are_counted_alike(name: str) -> None:
    model = family_model(name)
    config = model.config
    counted = published_sizes(write_config(config))
    assert counted.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert counted.parts["indexer"] == sum(parameter.numel() for parameter in model.indexer_parameters()) > 0
    assert counted.cache_width == config.key_heads * config.key_row_width + config.index_head_dim
    assert counted.num_moe_layers == len(config.moe_layers)


def test_qwen3_30b_hand_worked_parts() -> None:
    """Per layer: attention 2048·4096·2 + 2048·512·2 + 2·128, an expert 3·2048·768, a router 2048·128."""
    sizes = published_sizes(QWEN3_30B)
    assert sizes.parts == {
        "embedding": 311_164_928,
        "head": 311_164_928,
        "attention": 48 * 18_874_624,
        "indexer": 0,
        "dense feed-forward": 0,
        "shared experts": 0,
        "routed experts": 48 * 128 * 4_718_592,
        "routers": 48 * 262_144,
        "norms": 48 * 4096 + 2048,
    }
    assert sizes.active == sizes.parameters - 48 * 120 * 4_718_592
    # The published names say 30.5 billion parameters, 3.3 billion of them active.
    assert (round(sizes.parameters / 1e9, 1), round(sizes.active / 1e9, 1)) == (30.5, 3.4)
    assert (sizes.cache_width, sizes.latent, sizes.largest_layer) == (
        1024,
        False,
        18_874_624 + 128 * 4_718_592 + 266_240,
    )


def test_deepseek_v32_hand_worked_layer() -> None:
    """Attention 7168·1536 + 1536 + 1536·24576 + 7168·576 + 512 + 512·32768 + 16384·7168; indexer 1536·8192 + 7168·192 + 256."""
    sizes = published_sizes(DEEPSEEK_V32)
    assert sizes.moe_layer.attention == 187_107_328
    assert sizes.moe_layer.indexer == 13_959_424
    assert sizes.moe_layer.expert == sizes.moe_layer.shared == 44_040_192
    assert (sizes.num_moe_layers, sizes.cache_width, sizes.latent) == (58, 512 + 64 + 128, True)
    assert round(sizes.parameters / 1e9) == 672


def test_published_sizes_unknown_type_missing_key_and_bad_number_are_named() -> None:
    with pytest.raises(SizesError, match="model_type llama, mistral.*got 'mamba'"):
        published_sizes({**SMOLLM2, "model_type": "mamba"})
    with pytest.raises(SizesError, match="intermediate_size must be given for model_type llama"):
        published_sizes({key: value for key, value in SMOLLM2.items() if key != "intermediate_size"})
    with pytest.raises(SizesError, match="vocab_size must be a whole number, 0 or more; got '49152'"):
        published_sizes({**SMOLLM2, "vocab_size": "49152"})
