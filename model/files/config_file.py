"""The published `config.json` of each family: what is read from it, what is refused, and what is written."""

from pathlib import Path
from typing import Any, get_args

from samepath.model.config import ModelConfig, ModelType, RopeParameters, family_fields
from samepath.model.json_file import read_json

CONFIG_FILE = "config.json"

_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "scoring_func": ("sigmoid",),
    "topk_method": ("noaux_tc",),
    "rope_interleave": (True,),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
}
"""Switches with one supported setting; a file that leaves one out has it."""

_ARCHITECTURES: dict[ModelType, str] = {
    "deepseek_v32": "DeepseekV32ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}

_FAMILY_DEFAULTS: dict[ModelType, dict[str, Any]] = {
    "deepseek_v32": {},
    "deepseek_v3": {},
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 128},
    "qwen3_moe": {"norm_topk_prob": False},
}
"""What a published file means by leaving a key out, where that is not this package's own default."""

_ROPE_KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
    ),
}


def read_config(path: Path) -> ModelConfig:
    """Read a published `config.json`; keys that do not shape the network are ignored, unsupported ones refused.

    Raises FileNotFoundError or ValueError that name the file and what does not fit.
    """
    if not path.is_file():
        raise FileNotFoundError(f"a checkpoint needs {path.name}; none at {path}")
    data: Any = read_json(path)
    family = data.get("model_type")
    if family not in get_args(ModelType):
        raise ValueError(f"{path}: model_type must be one of {', '.join(get_args(ModelType))}; got {family!r}")
    for key, allowed in _SUPPORTED.items():
        if data.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{path}: {key} must be {allowed[0]!r}; got {data[key]!r}")
    if data.get("quantization_config"):
        raise ValueError(
            f"{path}: quantised weights are not read; convert the checkpoint to bfloat16 first and remove quantization_config"
        )
    if family.startswith("deepseek") and data.get("attention_bias"):
        raise ValueError(f"{path}: attention_bias must be False; got True")
    wanted = "indexed_attention" if family == "deepseek_v32" else "full_attention"
    others = [kind for kind in data.get("layer_types") or () if kind != wanted]
    if others:
        raise ValueError(f"{path}: every layer of layer_types must be {wanted!r}; got {others[0]!r}")
    known = {
        name: value
        for name, value in {**_FAMILY_DEFAULTS[family], **data}.items()
        if name in (*ModelConfig.model_fields, "num_experts", "num_local_experts") and value is not None
    }
    if family.startswith("deepseek"):
        known.setdefault("q_lora_rank", 0)
    else:
        known.setdefault("num_key_value_heads", data.get("num_attention_heads"))
    if isinstance(known.get("eos_token_id"), list):
        known["eos_token_id"] = known["eos_token_id"][0]
    known["rope_parameters"] = _read_rope(data, path)
    own = family_fields(family)
    return ModelConfig.model_validate(
        {name: value for name, value in known.items() if name in (*own, "num_experts", "num_local_experts")}
    )


def _read_rope(data: dict[str, Any], path: Path) -> RopeParameters:
    """Both spellings: `rope_parameters`, and the older `rope_theta` beside `rope_scaling`."""
    merged = {
        "rope_theta": data.get("rope_theta", 10000.0),
        **(data.get("rope_scaling") or {}),
        **(data.get("rope_parameters") or {}),
    }
    merged.setdefault("rope_type", merged.pop("type", "default"))
    kind = merged["rope_type"]
    if kind not in _ROPE_KEYS:
        raise ValueError(f"{path}: rope_type must be one of {', '.join(_ROPE_KEYS)}; got {kind!r}")
    neutral = {"attention_factor": None, "partial_rotary_factor": 1.0, "truncate": True, "mrope_section": None}
    for key, value in neutral.items():
        if merged.get(key, value) != value:
            raise ValueError(f"{path}: {key} of the rotary embedding must be {value!r}; got {merged[key]!r}")
    if kind == "yarn" and not (merged.get("mscale") and merged.get("mscale_all_dim")):
        # With one of them left out there is no softmax temperature and the cosines carry all of it, as in transformers.
        merged |= {"mscale": 1.0, "mscale_all_dim": merged.get("mscale_all_dim") or 0.0}
    if kind in ("yarn", "llama3"):
        merged.setdefault("original_max_position_embeddings", data["max_position_embeddings"])
    kept = ("rope_theta", *_ROPE_KEYS[kind])
    return RopeParameters(rope_type=kind, **{key: merged[key] for key in kept if merged.get(key) is not None})


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The published `config.json` of this model."""
    data = config.model_dump(mode="json")
    rope = config.rope_parameters
    kept = ("rope_type", "rope_theta", *_ROPE_KEYS[rope.rope_type])
    data["rope_parameters"] = rope.model_dump(include=set(kept))
    head: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[config.model_type]],
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }
    if config.latent_attention:
        head |= {
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "attention_bias": False,
            "num_key_value_heads": config.num_attention_heads,
        }
        data["q_lora_rank"] = config.q_lora_rank or None
    else:
        data["head_dim"] = config.head_width
    if config.model_type == "qwen3_moe":
        data["num_experts"] = data.pop("n_routed_experts")
    return {**head, **data}
