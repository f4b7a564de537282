"""A tiny model of every family, with weights that leave no part of it idle."""

import torch

from samepath.model.config import ModelConfig
from samepath.model.network.network import CausalLM
from tests.conftest import tiny_config

_COMMON: dict[str, object] = {
    "vocab_size": 18,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.12,
}
_LATENT: dict[str, object] = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
}
_QWEN_MOE: dict[str, object] = {
    "num_key_value_heads": 2,
    "head_dim": 24,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
}
_GLM_MOE: dict[str, object] = {
    "num_key_value_heads": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.7,
}

_INDEXED: dict[str, object] = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 8, "index_rope_head_dim": 8}

FAMILIES: dict[str, dict[str, object]] = {
    "llama": {"model_type": "llama", "num_key_value_heads": 2},
    "smollm": {
        "model_type": "llama",
        "num_key_value_heads": 1,
        "hidden_size": 48,
        "num_attention_heads": 3,
        "tie_word_embeddings": True,
    },
    "llama3": {
        "model_type": "llama",
        "num_key_value_heads": 2,
        "head_dim": 32,
        "attention_bias": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "linear": {
        "model_type": "llama",
        "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "linear", "factor": 4.0},
    },
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 32},
    "qwen3 yarn": {
        "model_type": "qwen3",
        "num_key_value_heads": 2,
        "head_dim": 32,
        "attention_bias": True,
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "mscale_all_dim": 0.0,
        },
    },
    "qwen3_moe": {"model_type": "qwen3_moe", **_QWEN_MOE, "mlp_only_layers": (1,), "norm_topk_prob": False},
    "qwen3_moe sparse step": {"model_type": "qwen3_moe", **_QWEN_MOE, "decoder_sparse_step": 2},
    "glm4_moe": {
        "model_type": "glm4_moe",
        **_GLM_MOE,
        "attention_bias": True,
        "rope_parameters": {"partial_rotary_factor": 0.5},
    },
    "glm4_moe normed": {
        "model_type": "glm4_moe",
        **_GLM_MOE,
        "head_dim": 24,
        "use_qk_norm": True,
        "norm_topk_prob": False,
        "n_group": 4,
        "topk_group": 2,
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "partial_rotary_factor": 0.75,
            "attention_factor": 1.3,
        },
    },
    "deepseek_v3": {"model_type": "deepseek_v3", **_LATENT},
    "deepseek_v3 direct": {"model_type": "deepseek_v3", **_LATENT, "q_lora_rank": 0, "norm_topk_prob": False},
    "deepseek_v3 yarn": {
        "model_type": "deepseek_v3",
        **_LATENT,
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "mscale": 0.0,
            "mscale_all_dim": 0.7,
        },
    },
    "deepseek_v32": tiny_config().model_dump(),
    "samepath_grouped": {
        "model_type": "samepath_grouped",
        **_INDEXED,
        "num_key_value_heads": 2,
        "attention_bias": True,
    },
    "samepath_grouped experts": {
        "model_type": "samepath_grouped",
        **_INDEXED,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "index_rope_head_dim": 12,
        "qkv_bias": True,
        "use_qk_norm": True,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 32,
        "mlp_only_layers": (1,),
    },
}
"""Family, or a variant of one, and its sizes."""


def family_config(name: str, **changes: object) -> ModelConfig:
    """Sizes of one entry of `FAMILIES`."""
    return ModelConfig.model_validate({**_COMMON, **FAMILIES[name], **changes})


def family_model(name: str, seed: int = 0, **changes: object) -> CausalLM:
    """Seeded weights; norms, biases and selection biases are not what a new model has, so that a lost one shows."""
    model = CausalLM(family_config(name, **changes))
    model.initialise(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter_name, tensor in model.state_dict().items():
            if parameter_name.endswith("bias"):
                tensor.normal_(0, 0.1, generator=generator)
            elif tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5, generator=generator)
    return model
