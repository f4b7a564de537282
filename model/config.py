"""Sizes and switches of the network, under the names of the published `config.json`; `model_type` names the family."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from samepath.model.families import FAMILIES, Family, ModelType, RouterKind
from samepath.model.rope_parameters import RopeParameters, yarn_mscale


class ModelConfig(BaseModel):
    """The network's shape. Every number is free; each published model of a family is one setting of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_type: ModelType = Field(
        "deepseek_v32",
        description=(
            "family: latent attention with an indexer (deepseek_v32) or over all keys (deepseek_v3), or grouped-query attention; "
            "experts chosen by sigmoid scores (deepseek, glm4_moe) or by a softmax (qwen3_moe); samepath_grouped: grouped-query attention "
            "with or without an indexer and experts"
        ),
    )
    vocab_size: int = Field(ge=2, description="V, tokens")
    hidden_size: int = Field(ge=16, multiple_of=16, description="D, width of the residual stream")
    intermediate_size: int = Field(ge=16, multiple_of=16, description="width of the dense layers' feed-forward")
    num_hidden_layers: int = Field(ge=1, description="L")
    num_attention_heads: int = Field(ge=1, description="H")
    num_key_value_heads: int = Field(0, ge=1, description="key heads (grouped-query attention); divides H")
    head_dim: int = Field(
        0,
        ge=0,
        multiple_of=2,
        description="head width (grouped-query attention); 0 is hidden_size / num_attention_heads",
    )
    attention_bias: bool = Field(
        False, description="biases of all four attention matrices (llama, qwen3, qwen3_moe), or of three (glm4_moe)"
    )
    qkv_bias: bool = Field(
        False, description="biases of queries, keys and values, not of the output (samepath_grouped)"
    )
    use_qk_norm: bool = Field(False, description="norms of each head's queries and keys (glm4_moe, samepath_grouped)")
    q_lora_rank: int = Field(
        0, ge=0, multiple_of=16, description="width of the query latent (deepseek); 0, deepseek_v3 only, is none"
    )
    kv_lora_rank: int = Field(
        0,
        ge=16,
        multiple_of=16,
        description="width of the key/value latent, the value of absorbed attention (deepseek)",
    )
    qk_nope_head_dim: int = Field(0, ge=1, description="head width without position (deepseek)")
    qk_rope_head_dim: int = Field(
        0, ge=2, multiple_of=2, description="head width with rotary position, also the indexer's (deepseek)"
    )
    v_head_dim: int = Field(0, ge=1, description="value head width (deepseek)")
    n_routed_experts: int = Field(
        0, ge=1, description="E, routed experts (files may write num_experts or num_local_experts)"
    )
    num_experts_per_tok: int = Field(0, ge=1, description="X, experts chosen a token")
    moe_intermediate_size: int = Field(0, ge=16, multiple_of=16, description="F, width of one expert")
    first_k_dense_replace: int = Field(
        0, ge=0, description="leading layers with a dense feed-forward (deepseek, glm4_moe)"
    )
    decoder_sparse_step: int = Field(1, ge=1, description="every how manieth layer has experts (qwen3_moe)")
    mlp_only_layers: tuple[int, ...] = Field(
        (), description="layers with a dense feed-forward all the same (qwen3_moe)"
    )
    n_shared_experts: int = Field(0, ge=0, description="shared experts, run for every token (deepseek, glm4_moe)")
    n_group: int = Field(1, ge=1, description="expert groups (sigmoid router)")
    topk_group: int = Field(1, ge=1, description="groups a token may choose from (sigmoid router)")
    routed_scaling_factor: float = Field(2.5, gt=0, description="factor of the gates (sigmoid router)")
    norm_topk_prob: bool = Field(True, description="renormalise the gates over the chosen experts")
    index_n_heads: int = Field(0, ge=1, description="I, indexer heads (deepseek_v32, samepath_grouped)")
    index_head_dim: int = Field(0, ge=2, description="indexer head width (same)")
    index_topk: int = Field(0, ge=1, description="C, keys each query attends to (same)")
    index_rope_head_dim: int = Field(
        0,
        ge=2,
        multiple_of=2,
        description="channels that the indexer rotates, a divisor of those that attention rotates (samepath_grouped)",
    )
    max_position_embeddings: int = Field(ge=2, description="longest sequence, tokens")
    rope_parameters: RopeParameters = Field(default_factory=lambda: RopeParameters(), description="rotary embedding")
    rms_norm_eps: float = Field(1e-6, gt=0, description="RMSNorm epsilon")
    initializer_range: float = Field(0.02, gt=0, description="standard deviation of new weights")
    tie_word_embeddings: bool = Field(False, description="one matrix for embedding and head")
    bos_token_id: int | None = Field(None, description="beginning-of-sequence id")
    eos_token_id: int | None = Field(None, description="end-of-sequence id")
    pad_token_id: int | None = Field(None, description="padding id (never used by Samepath)")

    @model_validator(mode="after")
    def _check(self) -> Self:
        foreign = sorted(self.model_fields_set - set(family_fields(self.model_type)))
        missing = [name for name in self.family.required if name not in self.model_fields_set]
        if foreign or missing:
            raise ValueError(
                f"the sizes must be those of model_type={self.model_type}; missing: {', '.join(missing) or 'none'}, "
                f"of other families: {', '.join(foreign) or 'none'}"
            )
        for sizes in self.family.together:
            given = [name for name in sizes if name in self.model_fields_set]
            if given and len(given) < len(sizes):
                raise ValueError(f"{', '.join(sizes)} must be given together or not at all; got {', '.join(given)}")
        self._check_attention()
        self._check_indexer()
        if self.n_routed_experts:
            self._check_experts()
        return self

    def _check_attention(self) -> None:
        if self.rope_parameters.partial_rotary_factor != 1 and not self.family.partial_rotary:
            raise ValueError(
                f"partial_rotary_factor of the rotary embedding must be 1.0 for model_type={self.model_type}; "
                f"got {self.rope_parameters.partial_rotary_factor:g}"
            )
        if not self.latent_attention:
            if self.num_attention_heads % self.num_key_value_heads:
                raise ValueError(
                    f"num_key_value_heads must divide num_attention_heads={self.num_attention_heads}; got {self.num_key_value_heads}"
                )
            if not self.head_dim and self.hidden_size % (2 * self.num_attention_heads):
                raise ValueError(
                    f"without head_dim, hidden_size={self.hidden_size} must be an even multiple of "
                    f"num_attention_heads={self.num_attention_heads}"
                )
            if not self.rope_width or self.rope_width % 2:
                raise ValueError(
                    f"partial_rotary_factor={self.rope_parameters.partial_rotary_factor:g} must leave an even number of the head's "
                    f"{self.head_width} channels, at least 2; got {self.rope_width}"
                )

    def _check_indexer(self) -> None:
        if not self.index_topk:
            return
        if self.latent_attention and not self.q_lora_rank:
            raise ValueError(
                "q_lora_rank must be at least 16: the indexer takes its queries from the query latent; got 0"
            )
        if self.rope_width % self.index_rope_width:
            raise ValueError(
                f"index_rope_head_dim must divide the {self.rope_width} channels that attention rotates; got {self.index_rope_width}"
            )
        if self.index_head_dim < self.index_rope_width:
            name = "qk_rope_head_dim" if self.latent_attention else "index_rope_head_dim"
            raise ValueError(
                f"index_head_dim must be at least {name}={self.index_rope_width}; got {self.index_head_dim}"
            )

    def _check_experts(self) -> None:
        layers = self.num_hidden_layers
        if self.first_k_dense_replace > layers:
            raise ValueError(
                f"first_k_dense_replace must be at most num_hidden_layers={layers}; got {self.first_k_dense_replace}"
            )
        if not all(0 <= layer < layers for layer in self.mlp_only_layers):
            raise ValueError(f"mlp_only_layers must lie in 0 … {layers - 1}; got {list(self.mlp_only_layers)}")
        if self.n_routed_experts % self.n_group:
            raise ValueError(f"n_group must divide n_routed_experts={self.n_routed_experts}; got {self.n_group}")
        if self.topk_group > self.n_group:
            raise ValueError(f"topk_group must be at most n_group={self.n_group}; got {self.topk_group}")
        if self.n_group > 1 and self.n_routed_experts // self.n_group < 2:
            raise ValueError(
                "a group limit scores a group by its two best experts: n_routed_experts / n_group must be at least 2"
            )
        if self.num_experts_per_tok > self.topk_group * (self.n_routed_experts // self.n_group):
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok} exceeds the experts in {self.topk_group} groups"
            )

    @model_serializer(mode="wrap")
    def _leave_out_other_families(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is written can be read again, and that has the family's own sizes only."""
        own = family_fields(self.model_type)
        absent = {name for sizes in self.family.together if not getattr(self, sizes[0]) for name in sizes}
        return {name: value for name, value in dump(self).items() if name in own and name not in absent}

    @property
    def family(self) -> Family:
        """What tells this model from those of other families beside its sizes."""
        return FAMILIES[self.model_type]

    @property
    def latent_attention(self) -> bool:
        """True for MLA, False for grouped-query attention."""
        return self.family.attention == "latent"

    @property
    def router(self) -> RouterKind | None:
        """How experts are scored; None without experts."""
        return self.family.router

    @property
    def query_bias(self) -> bool:
        """Whether queries, keys and values of grouped-query attention have biases."""
        return self.attention_bias or self.qkv_bias or self.family.query_bias

    @property
    def output_bias(self) -> bool:
        """Whether the output of grouped-query attention has a bias."""
        return self.attention_bias and self.family.output_bias

    @property
    def head_norms(self) -> bool:
        """Whether each head's queries and keys are normed in grouped-query attention."""
        return self.use_qk_norm or self.family.head_norms

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Global numbers of the mixture-of-experts layers, in order."""
        if not self.n_routed_experts:
            return ()
        return tuple(
            layer
            for layer in range(self.first_k_dense_replace, self.num_hidden_layers)
            if (layer + 1) % self.decoder_sparse_step == 0 and layer not in self.mlp_only_layers
        )

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        """Global numbers of the layers whose attention selects its keys: all of them with an indexer, else none."""
        return tuple(range(self.num_hidden_layers)) if self.index_topk else ()

    @property
    def window_heads(self) -> int:
        """Heads whose scores of one window are held at once: the indexer's, or those of attention itself."""
        return self.index_n_heads or self.num_attention_heads

    @property
    def head_width(self) -> int:
        """Width of a query head of grouped-query attention."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def rope_width(self) -> int:
        """Channels of a head that are rotated."""
        if self.latent_attention:
            return self.qk_rope_head_dim
        return int(self.head_width * self.rope_parameters.partial_rotary_factor)

    @property
    def index_rope_width(self) -> int:
        """Channels of the indexer's queries and keys that are rotated; with MLA as many as attention's."""
        return self.qk_rope_head_dim if self.latent_attention else self.index_rope_head_dim

    @property
    def index_query_width(self) -> int:
        """Width of what the indexer makes its queries of: the query latent, or the layer's input."""
        return self.q_lora_rank if self.latent_attention else self.hidden_size

    @property
    def key_heads(self) -> int:
        """G, cached rows of a token and layer: one latent, or one per key head."""
        return 1 if self.latent_attention else self.num_key_value_heads

    @property
    def key_width(self) -> int:
        """K, width of a key: latent and rotary key, or a head."""
        return self.kv_lora_rank + self.qk_rope_head_dim if self.latent_attention else self.head_width

    @property
    def key_row_width(self) -> int:
        """W, width of a cached row: the latent holds its value, a key head has the value beside its key."""
        return self.key_width if self.latent_attention else 2 * self.head_width

    @property
    def softmax_scale(self) -> float:
        """(query head width)^-½; with MLA times the YaRN temperature squared where YaRN is active (never from the absorbed width)."""
        if not self.latent_attention:
            return float(self.head_width**-0.5)
        scale = (self.qk_nope_head_dim + self.qk_rope_head_dim) ** -0.5
        rope = self.rope_parameters
        if rope.rope_type == "yarn" and rope.mscale_all_dim:
            scale *= yarn_mscale(rope.factor, rope.mscale_all_dim) ** 2
        return float(scale)

    @model_validator(mode="before")
    @classmethod
    def _read_names(cls, data: Any) -> Any:
        """Published files have other names for some sizes: Qwen's say `num_experts`, and newer ones `num_local_experts`."""
        if not isinstance(data, Mapping) or data.get("model_type") not in FAMILIES:
            return data
        aliases = FAMILIES[data["model_type"]].aliases
        return {aliases.get(name, name): value for name, value in data.items()}


def family_fields(model_type: ModelType) -> tuple[str, ...]:
    """Names of the `ModelConfig` fields that a family's model has, in order."""
    special = {name for family in FAMILIES.values() for name in (*family.required, *family.optional)}
    own = {*FAMILIES[model_type].required, *FAMILIES[model_type].optional}
    return tuple(name for name in ModelConfig.model_fields if name not in special or name in own)
