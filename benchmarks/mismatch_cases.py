"""Tiny random checkpoints of published families, on which an engine and a learner are compared.

Every width is one that vLLM's CPU kernels take. The head is drawn wider than the rest, so that the policies are peaked as trained ones
are, not near uniform: the samples' entropy stands in the results.
"""

from pathlib import Path
from typing import Any

import torch
import transformers

from samepath.model.config import ModelConfig
from samepath.model.files.checkpoint import save_checkpoint
from samepath.model.network.network import CausalLM
from samepath.model.text.tokenizer import character_tokenizer
from samepath.model.transformers.policy import TransformersPolicy, save_transformers

HEAD_STD = 0.2
"""Standard deviation of the head's weights; the others have `initializer_range`."""
ALPHABET = "".join(chr(code) for code in range(33, 127))
_SIZES: dict[str, Any] = {
    "vocab_size": len(ALPHABET) + 2,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.05,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_CHOSEN = {"num_experts": 8, "num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": _SIZES,
    "Qwen3Moe": {**_SIZES, **_CHOSEN, "head_dim": 32, "moe_intermediate_size": 64, "norm_topk_prob": True},
    "Olmoe": {**_SIZES, **_CHOSEN, "intermediate_size": 64},
    "Mixtral": {**_SIZES, "intermediate_size": 64, "num_local_experts": 8, "num_experts_per_tok": 2},
    "DeepseekV3": {
        **_SIZES,
        "num_key_value_heads": 4,
        "q_lora_rank": 64,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "moe_intermediate_size": 64,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 2.5,
        "norm_topk_prob": True,
    },
}
"""Keyword arguments of `<family>Config` of transformers, by family."""
OWN = "DeepseekV32"
"""The own network with sparse attention, which runs on both sides: in vLLM as an out-of-tree model."""
_OWN_SIZES = {
    **{key: value for key, value in FAMILIES["DeepseekV3"].items() if key != "num_key_value_heads"},
    "model_type": "deepseek_v32",
    "index_n_heads": 8,
    "index_head_dim": 32,
    "index_topk": 32,
}


def write_case(family: str, folder: Path, seed: int) -> None:
    """Write a checkpoint folder with random weights, selection biases included, and a tokenizer of one token a character."""
    character_tokenizer(ALPHABET).save(folder)
    if family == OWN:
        network = CausalLM(ModelConfig.model_validate(_OWN_SIZES))
        network.initialise(seed)
        torch.nn.init.normal_(network.head, 0.0, HEAD_STD, generator=torch.Generator().manual_seed(seed))
        save_checkpoint(network, folder)
        return
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    torch.nn.init.normal_(model.get_output_embeddings().weight, 0.0, HEAD_STD)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(0.0, 0.01)
    save_transformers(TransformersPolicy(model), folder)
