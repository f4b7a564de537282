"""Networks that the benchmark of decoding runs with random weights; the vocabulary is given."""

SMALL: dict[str, object] = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "moe_intermediate_size": 512,
    "num_hidden_layers": 8,
    "first_k_dense_replace": 1,
    "num_attention_heads": 16,
    "q_lora_rank": 512,
    "kv_lora_rank": 256,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "index_n_heads": 8,
    "index_head_dim": 64,
    "index_topk": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.02,
}
"""recipes/h200_small.yaml's network."""

_WIDE: dict[str, object] = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 32,
    "num_experts_per_tok": 8,
    "max_position_embeddings": 40960,
    "initializer_range": 0.02,
}

MODELS: dict[str, dict[str, object]] = {
    "small": SMALL,
    "qwen3_moe": {
        **_WIDE,
        "model_type": "qwen3_moe",
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 64,
    },
    "dsa": {
        **_WIDE,
        "model_type": "deepseek_v32",
        "first_k_dense_replace": 0,
        "q_lora_rank": 768,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 64,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "index_n_heads": 16,
        "index_head_dim": 128,
        "index_topk": 512,
    },
}
"""By name: recipes/h200_small.yaml's, and two of 2.7 B weights of which a token multiplies 0.5 B, with all keys and with selected ones."""
