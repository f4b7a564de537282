"""Random models of transformers, one a family, small enough for tests; all with a vocabulary of `ALPHABET`'s tokenizer or more."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from samepath.model.text.tokenizer import character_tokenizer
from samepath.model.transformers.policy import TransformersPolicy, save_transformers
from tests.conftest import ALPHABET

VOCAB = 32
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.12,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2}
_SIGMOID = {
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
}
_LATENT = {
    **_SIZES,
    **_SIGMOID,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
_HEADS = {**_GROUPED, "head_dim": 16}

DENSE: dict[str, dict[str, Any]] = {
    "Llama": _GROUPED,
    "Qwen3": {**_HEADS, "tie_word_embeddings": True},
    "Mistral": {**_GROUPED, "sliding_window": 6},
}
MIXTURES: dict[str, dict[str, Any]] = {
    "Qwen2Moe": {**_GROUPED, **_EXPERTS, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48},
    "Qwen3Moe": {**_HEADS, **_EXPERTS, "moe_intermediate_size": 32, "norm_topk_prob": True, "mlp_only_layers": [1]},
    "Olmoe": {**_GROUPED, **_EXPERTS},
    "FlexOlmo": {**_GROUPED, **_EXPERTS},
    "Mixtral": {**_GROUPED, "num_local_experts": 8, "num_experts_per_tok": 2},
    "DeepseekV2": {**_LATENT, "topk_method": "group_limited_greedy", "routed_scaling_factor": 1.5},
    "DeepseekV3": {**_LATENT, "num_key_value_heads": 4},
    "Glm4Moe": {**_HEADS, **_SIGMOID},
    "Dots1": {**_HEADS, **_SIGMOID},
}
FAMILIES = DENSE | MIXTURES


def tiny_transformers(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random float32 model; routers with a selection bias get one, so that biases cannot be mixed into gates unseen."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family], **changes)
    model: PreTrainedModel = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(0.0, 0.2)
    for name, parameter in model.named_parameters():
        if name.endswith("gate.weight"):
            torch.nn.init.normal_(parameter, 0.0, 0.3)
    return model


def save_tiny(folder: Path, family: str, seed: int = 0, **changes: Any) -> Path:
    """A checkpoint folder with a character tokenizer."""
    save_transformers(TransformersPolicy(tiny_transformers(family, seed, **changes)), folder)
    character_tokenizer(ALPHABET).save(folder)
    return folder
