"""Sizes and switches of the network, under the names of the published `config.json` (`DeepseekV32ForCausalLM`)."""

import json
import math
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RopeParameters(BaseModel):
    """Rotary position embedding; YaRN as in arXiv:2309.00071."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rope_type: Literal["default", "yarn"] = Field("default", description="plain frequencies or YaRN")
    rope_theta: float = Field(10000.0, gt=0, description="base of the frequencies")
    factor: float = Field(1.0, ge=1, description="YaRN: context extension factor")
    original_max_position_embeddings: int = Field(
        4096, ge=1, description="YaRN: context length before extension, tokens"
    )
    beta_fast: float = Field(32.0, gt=0, description="YaRN: rotations above which a frequency is kept")
    beta_slow: float = Field(1.0, gt=0, description="YaRN: rotations below which a frequency is interpolated")
    mscale: float = Field(1.0, ge=0, description="YaRN: attention temperature coefficient of the cosines")
    mscale_all_dim: float = Field(1.0, ge=0, description="YaRN: attention temperature coefficient of the softmax scale")


class ModelConfig(BaseModel):
    """The network's shape. Every number is free; the published 671B model is one setting of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int = Field(ge=2, description="V, tokens")
    hidden_size: int = Field(ge=16, multiple_of=16, description="D, width of the residual stream")
    intermediate_size: int = Field(ge=16, multiple_of=16, description="width of the dense layers' feed-forward")
    moe_intermediate_size: int = Field(ge=16, multiple_of=16, description="F, width of one expert")
    num_hidden_layers: int = Field(ge=1, description="L")
    first_k_dense_replace: int = Field(ge=0, description="leading layers with a dense feed-forward")
    num_attention_heads: int = Field(ge=1, description="H")
    q_lora_rank: int = Field(ge=16, multiple_of=16, description="width of the query latent")
    kv_lora_rank: int = Field(
        ge=16, multiple_of=16, description="width of the key/value latent (the value of absorbed attention)"
    )
    qk_nope_head_dim: int = Field(ge=1, description="head width without position")
    qk_rope_head_dim: int = Field(
        ge=2, multiple_of=2, description="head width with rotary position; also the indexer's"
    )
    v_head_dim: int = Field(ge=1, description="value head width")
    n_routed_experts: int = Field(ge=1, description="E")
    num_experts_per_tok: int = Field(ge=1, description="X, experts chosen a token")
    n_shared_experts: int = Field(ge=0, description="shared experts, run for every token")
    n_group: int = Field(1, ge=1, description="expert groups")
    topk_group: int = Field(1, ge=1, description="groups a token may choose from")
    routed_scaling_factor: float = Field(2.5, gt=0, description="factor of the renormalised gates")
    norm_topk_prob: bool = Field(True, description="renormalise the gates over the chosen experts")
    index_n_heads: int = Field(ge=1, description="I, indexer heads")
    index_head_dim: int = Field(ge=2, description="indexer head width")
    index_topk: int = Field(ge=1, description="C, keys each query attends to")
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
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise ValueError(
                f"first_k_dense_replace must be at most num_hidden_layers={self.num_hidden_layers}; got {self.first_k_dense_replace}"
            )
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
        if self.index_head_dim < self.qk_rope_head_dim:
            raise ValueError(
                f"index_head_dim must be at least qk_rope_head_dim={self.qk_rope_head_dim}; got {self.index_head_dim}"
            )
        return self

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Global numbers of the mixture-of-experts layers, in order."""
        return tuple(range(self.first_k_dense_replace, self.num_hidden_layers))

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        """Global numbers of the layers whose attention selects its keys: all of them."""
        return tuple(range(self.num_hidden_layers))

    @property
    def window_heads(self) -> int:
        """Heads whose scores of one window are held at once: the indexer's."""
        return self.index_n_heads

    @property
    def key_width(self) -> int:
        """K, width of a cached key row: latent and rotary key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """(nope + rope)^-½, times the YaRN temperature squared where YaRN is active (never from the absorbed width)."""
        scale = (self.qk_nope_head_dim + self.qk_rope_head_dim) ** -0.5
        rope = self.rope_parameters
        if rope.rope_type == "yarn" and rope.mscale_all_dim:
            scale *= yarn_mscale(rope.factor, rope.mscale_all_dim) ** 2
        return float(scale)

    def to_json(self) -> dict[str, Any]:
        """The published `config.json` of this model."""
        data = self.model_dump(mode="json")
        rope = data["rope_parameters"]
        if rope["rope_type"] == "default":
            data["rope_parameters"] = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
        return {
            "architectures": ["DeepseekV32ForCausalLM"],
            "model_type": "deepseek_v32",
            "hidden_act": "silu",
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "attention_bias": False,
            "torch_dtype": "float32",
            "num_key_value_heads": self.num_attention_heads,
            **data,
        }

    @classmethod
    def from_json(cls, path: Path) -> Self:
        """Read a published `config.json`; keys that do not shape the network are ignored, unsupported ones refused."""
        if not path.is_file():
            raise FileNotFoundError(f"a checkpoint needs {path.name}; none at {path}")
        data = json.loads(path.read_text())
        if data.get("model_type") != "deepseek_v32":
            raise ValueError(f"{path}: model_type must be deepseek_v32; got {data.get('model_type')!r}")
        for key, wanted in (
            ("hidden_act", "silu"),
            ("scoring_func", "sigmoid"),
            ("topk_method", "noaux_tc"),
            ("attention_bias", False),
        ):
            if data.get(key, wanted) != wanted:
                raise ValueError(f"{path}: {key} must be {wanted!r}; got {data[key]!r}")
        known = {name: data[name] for name in cls.model_fields if name in data and name != "rope_parameters"}
        return cls(rope_parameters=_read_rope(data), **known)


def yarn_mscale(factor: float, coefficient: float) -> float:
    """0.1 · coefficient · ln(factor) + 1 (arXiv:2309.00071 eq. 22)."""
    return 0.1 * coefficient * math.log(factor) + 1.0 if factor > 1 else 1.0


def _read_rope(data: dict[str, Any]) -> RopeParameters:
    """Both spellings: `rope_parameters`, and the older `rope_theta` beside `rope_scaling`."""
    merged = {
        "rope_theta": data.get("rope_theta", 10000.0),
        **(data.get("rope_scaling") or {}),
        **(data.get("rope_parameters") or {}),
    }
    merged.setdefault("rope_type", merged.pop("type", "default"))
    if merged["rope_type"] == "yarn":
        # A published file that leaves it out means "no softmax temperature", as in DeepSeek's own code and transformers.
        merged.setdefault("mscale_all_dim", 0.0)
    return RopeParameters(**{key: value for key, value in merged.items() if key in RopeParameters.model_fields})
