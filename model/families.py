"""The families of models that the network can be, one record each: all that tells one from another beside its sizes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

ModelType = Literal[
    "deepseek_v32", "deepseek_v3", "llama", "qwen2", "qwen3", "qwen3_moe", "glm4_moe", "samepath_grouped"
]
"""`model_type` of the published `config.json`; `samepath_grouped` is this package's own, for what no published family can say."""

AttentionKind = Literal["latent", "grouped"]
"""Multi-head latent attention (arXiv:2405.04434), or grouped-query attention (arXiv:2305.13245)."""

RouterKind = Literal["sigmoid", "softmax"]
"""`sigmoid`: each expert's own score, with selection bias, group limit and scale (arXiv:2412.19437 §2.1.2). `softmax`: over all experts."""

LATENT_SIZES = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
INDEXER_SIZES = ("index_n_heads", "index_head_dim", "index_topk")
GROUPED_INDEXER_SIZES = (*INDEXER_SIZES, "index_rope_head_dim")
"""With grouped-query attention the channels that the indexer rotates are a size of their own."""
GROUPED_SIZES = ("num_key_value_heads",)
EXPERT_SIZES = ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size")
SHARED_SIZES = ("n_shared_experts", "first_k_dense_replace")
ROUTER_SIZES: dict[RouterKind, tuple[str, ...]] = {
    "sigmoid": ("n_group", "topk_group", "routed_scaling_factor", "norm_topk_prob"),
    "softmax": ("norm_topk_prob",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family. Names are those of `ModelConfig`."""

    architecture: str
    """Its class in transformers."""
    attention: AttentionKind
    """Kind of attention."""
    router: RouterKind | None = None
    """Kind of router; None without experts."""
    required: tuple[str, ...]
    """Sizes that must be given."""
    optional: tuple[str, ...] = ()
    """Sizes that may be given."""
    together: tuple[tuple[str, ...], ...] = ()
    """Optional sizes of which all are given or none."""
    absent: Mapping[str, Any] = field(default_factory=dict)
    """What a published file means by leaving a key out, where that is not `ModelConfig`'s own default."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of sizes in published files."""
    layer_type: str = "full_attention"
    """What `layer_types` of a published file calls every layer."""
    query_bias: bool = False
    """Queries, keys and values have biases whatever `attention_bias` says."""
    output_bias: bool = True
    """`attention_bias` gives the output matrix one too."""
    head_norms: bool = False
    """Each head's queries and keys are normed whatever `use_qk_norm` says."""
    partial_rotary: bool = False
    """Only the first channels of a head may be rotated (`partial_rotary_factor`)."""


_DEEPSEEK_ABSENT = {
    "q_lora_rank": 1536,
    "n_group": 8,
    "topk_group": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 3,
}
_DEEPSEEK = (*LATENT_SIZES, *EXPERT_SIZES, *SHARED_SIZES)

FAMILIES: dict[ModelType, Family] = {
    "deepseek_v32": Family(
        architecture="DeepseekV32ForCausalLM",
        attention="latent",
        router="sigmoid",
        required=(*_DEEPSEEK, *INDEXER_SIZES),
        optional=ROUTER_SIZES["sigmoid"],
        absent=_DEEPSEEK_ABSENT,
        aliases={"num_local_experts": "n_routed_experts"},
        layer_type="indexed_attention",
    ),
    "deepseek_v3": Family(
        architecture="DeepseekV3ForCausalLM",
        attention="latent",
        router="sigmoid",
        required=_DEEPSEEK,
        optional=ROUTER_SIZES["sigmoid"],
        absent=_DEEPSEEK_ABSENT,
        aliases={"num_local_experts": "n_routed_experts"},
    ),
    "llama": Family(
        architecture="LlamaForCausalLM",
        attention="grouped",
        required=GROUPED_SIZES,
        optional=("head_dim", "attention_bias"),
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        attention="grouped",
        required=GROUPED_SIZES,
        optional=("head_dim",),
        absent={"num_key_value_heads": 32},
        query_bias=True,
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        attention="grouped",
        required=GROUPED_SIZES,
        optional=("head_dim", "attention_bias"),
        absent={"head_dim": 128, "num_key_value_heads": 32},
        head_norms=True,
    ),
    "qwen3_moe": Family(
        architecture="Qwen3MoeForCausalLM",
        attention="grouped",
        router="softmax",
        required=(*GROUPED_SIZES, *EXPERT_SIZES),
        optional=(
            "head_dim",
            "attention_bias",
            *ROUTER_SIZES["softmax"],
            "decoder_sparse_step",
            "mlp_only_layers",
        ),
        absent={"norm_topk_prob": False, "num_key_value_heads": 4},
        aliases={"num_experts": "n_routed_experts", "num_local_experts": "n_routed_experts"},
        head_norms=True,
    ),
    "glm4_moe": Family(
        architecture="Glm4MoeForCausalLM",
        attention="grouped",
        router="sigmoid",
        required=(*GROUPED_SIZES, *EXPERT_SIZES, *SHARED_SIZES),
        optional=("head_dim", "attention_bias", "use_qk_norm", *ROUTER_SIZES["sigmoid"]),
        absent={
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "routed_scaling_factor": 1.0,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "partial_rotary_factor": 0.5,
        },
        aliases={"num_local_experts": "n_routed_experts"},
        output_bias=False,
        partial_rotary=True,
    ),
    "samepath_grouped": Family(
        architecture="SamepathGroupedForCausalLM",
        attention="grouped",
        router="softmax",
        required=GROUPED_SIZES,
        optional=(
            "head_dim",
            "attention_bias",
            "qkv_bias",
            "use_qk_norm",
            *EXPERT_SIZES,
            *ROUTER_SIZES["softmax"],
            "decoder_sparse_step",
            "mlp_only_layers",
            *GROUPED_INDEXER_SIZES,
        ),
        together=(EXPERT_SIZES, GROUPED_INDEXER_SIZES),
    ),
}
