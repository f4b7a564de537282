"""The published `config.json` of each family: what is read from it, what is refused, and what is written."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from samepath.model.config import ModelConfig, family_fields
from samepath.model.families import FAMILIES
from samepath.model.files.config_keys import SILENT_KEYS
from samepath.model.files.fp8_blocks import read_quantization
from samepath.model.json_file import read_json
from samepath.model.rope_parameters import RopeParameters

CONFIG_FILE = "config.json"

_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "scoring_func": ("sigmoid",),
    "topk_method": ("noaux_tc",),
    "rope_interleave": (True,),
    "mlp_bias": (False,),
    "moe_layer_freq": (1,),
    "use_sliding_window": (False,),
}
"""Switches with one supported setting; a file that leaves one out has it."""

_READ_ELSEWHERE = (
    "attention_bias",
    "num_key_value_heads",
    "mlp_layer_types",
    "layer_types",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "partial_rotary_factor",
    "original_max_position_embeddings",
    "quantization_config",
)
"""What `read_config` reads of a latent family beside its sizes."""

_ROPE_KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "truncate",
        "mscale",
        "mscale_all_dim",
        "attention_factor",
    ),
}
"""What the rotary types read."""

_ROPE_ZERO_IS_ABSENT = ("mscale", "mscale_all_dim", "attention_factor")
"""0 stands for a file without the key; transformers would take an `attention_factor` of 0 for it."""

_ROPE_REQUIRED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}


def read_config(path: Path) -> ModelConfig:
    """Read a published `config.json`; keys that do not shape the network are ignored, unsupported ones refused.

    Of the latent families every key is known, and one that is not is refused.

    How quantised weights are stored is no part of the network and left to `StoredWeights`; a kind that is not read is refused here.

    Raises FileNotFoundError or ValueError that name the file and what does not fit.
    """
    if not path.is_file():
        raise FileNotFoundError(f"a checkpoint needs {path.name}; none at {path}")
    data: Any = read_json(path)
    model_type = data.get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(f"{path}: model_type must be one of {', '.join(FAMILIES)}; got {model_type!r}")
    family = FAMILIES[model_type]
    for key, allowed in _SUPPORTED.items():
        if data.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{path}: {key} must be {allowed[0]!r}; got {data[key]!r}")
    read_quantization(data, path)
    if family.attention == "latent":
        data = _latent_keys(data, path)
    others = [kind for kind in data.get("layer_types") or () if kind != family.layer_type]
    if others:
        raise ValueError(f"{path}: every layer of layer_types must be {family.layer_type!r}; got {others[0]!r}")
    data = {**family.absent, **data}
    own = (*family_fields(model_type), *family.aliases)
    known = {name: value for name, value in data.items() if name in own and value is not None}
    if family.attention == "latent":
        known.setdefault("q_lora_rank", 0)
    else:
        known.setdefault("num_key_value_heads", data.get("num_attention_heads"))
    if isinstance(known.get("eos_token_id"), list):
        known["eos_token_id"] = known["eos_token_id"][0]
    known["rope_parameters"] = _read_rope(data, path)
    try:
        return ModelConfig.model_validate(known)
    except ValidationError as error:
        problems = [
            ".".join(map(str, one["loc"])) + ": " * bool(one["loc"]) + one["msg"].removeprefix("Value error, ")
            for one in error.errors()
        ]
        raise ValueError(f"{path}: {'; '.join(problems)}") from error


def _latent_keys(data: dict[str, Any], path: Path) -> dict[str, Any]:
    """Keys of the latent families, refused unless the network expresses them; the layers that `mlp_layer_types` lists become a number."""
    if data.get("attention_bias"):
        raise ValueError(f"{path}: attention_bias must be False; got {data['attention_bias']!r}")
    heads, key_heads = data.get("num_attention_heads"), data.get("num_key_value_heads")
    if key_heads not in (None, heads):
        raise ValueError(
            f"{path}: num_key_value_heads must be num_attention_heads={heads}: latent attention makes keys for every head; got {key_heads}"
        )
    read = {
        *family_fields(data["model_type"]),
        *_SUPPORTED,
        *_READ_ELSEWHERE,
        *SILENT_KEYS,
        *FAMILIES[data["model_type"]].aliases,
    }
    unknown = sorted(
        key for key, value in data.items() if key not in read and key[0] != "_" and value not in (None, False)
    )
    if unknown:
        raise ValueError(
            f"{path}: {', '.join(unknown)}: not known of model_type={data['model_type']}, whose network may not be computed as meant. If the key says "
            "nothing about what the network computes, take it out of the file."
        )
    kinds = data.get("mlp_layer_types")
    if kinds is None:
        return data
    dense = kinds.count("dense")
    if kinds != ["dense"] * dense + ["sparse"] * (data.get("num_hidden_layers", 0) - dense):
        raise ValueError(
            f"{path}: mlp_layer_types must be 'dense' for the first layers and 'sparse' for the others, num_hidden_layers in all; got {kinds}"
        )
    return {**data, "first_k_dense_replace": dense}


def _read_rope(data: dict[str, Any], path: Path) -> RopeParameters:
    """Both spellings: `rope_parameters`, and the older `rope_theta` beside `rope_scaling`; where a file has both, they must agree."""
    newer, older = data.get("rope_parameters") or {}, data.get("rope_scaling") or {}
    older = {"rope_type" if key == "type" else key: value for key, value in older.items()}
    newer = {"rope_type" if key == "type" and "rope_type" not in newer else key: value for key, value in newer.items()}
    for key, value in older.items():
        if None not in (value, newer.get(key)) and newer[key] != value:
            raise ValueError(
                f"{path}: rope_scaling and rope_parameters must agree; {key} is {value!r} and {newer[key]!r}"
            )
    merged = {
        "rope_theta": data.get("rope_theta"),
        "partial_rotary_factor": data.get("partial_rotary_factor"),
        **older,
        **newer,
    }
    merged.pop("type", None)
    kind = merged.pop("rope_type", None) or "default"
    if kind not in _ROPE_KEYS:
        raise ValueError(f"{path}: rope_type must be one of {', '.join(_ROPE_KEYS)}; got {kind!r}")
    if kind == "yarn" and "factor" in merged and merged["factor"] is None:
        merged["factor"] = data["max_position_embeddings"] / _original_length(merged, data)
    given = {key: value for key, value in merged.items() if value is not None}
    unknown = sorted(set(given) - {"rope_theta", "partial_rotary_factor", *_ROPE_KEYS[kind]})
    missing = [key for key in _ROPE_REQUIRED[kind] if key not in given]
    if unknown or missing:
        raise ValueError(
            f"{path}: the rotary embedding of rope_type={kind} reads {', '.join(_ROPE_KEYS[kind]) or 'rope_theta alone'}; "
            f"unknown: {', '.join(unknown) or 'none'}, missing: {', '.join(missing) or 'none'}"
        )
    if kind == "yarn":
        if given.get("attention_factor", 1.0) <= 0:
            raise ValueError(f"{path}: attention_factor must be above 0; got {given['attention_factor']}")
        # A file without them gives the cosines the whole temperature, and the softmax scale none.
        given = {"mscale": 0.0, "mscale_all_dim": 0.0, **given}
    if kind in ("yarn", "llama3"):
        given["original_max_position_embeddings"] = _original_length(merged, data)
    return RopeParameters(rope_type=kind, **given)


def _original_length(rope: dict[str, Any], data: dict[str, Any]) -> int:
    """Context length before its extension, as transformers finds it: some files write it beside the rotary embedding."""
    beside, inside = data.get("original_max_position_embeddings"), rope.get("original_max_position_embeddings")
    return int(beside or inside or data["max_position_embeddings"])


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The published `config.json` of this model."""
    data = config.model_dump(mode="json")
    rope = config.rope_parameters
    kept = ("rope_type", "rope_theta", *_ROPE_KEYS[rope.rope_type])
    left_out = [name for name in _ROPE_ZERO_IS_ABSENT if not getattr(rope, name)]
    data["rope_parameters"] = rope.model_dump(include=set(kept) - set(left_out))
    if config.family.partial_rotary:
        data["rope_parameters"]["partial_rotary_factor"] = rope.partial_rotary_factor
    head: dict[str, Any] = {
        "architectures": [config.family.architecture],
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
    if "num_experts" in config.family.aliases:
        data["num_experts"] = data.pop("n_routed_experts")
    return {**head, **data}
