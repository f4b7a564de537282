"""Checkpoints in the published layout of each family: `config.json` and safetensors under the names of its transformers class.

In memory a layer's gate and up matrices are stacked, its experts form one tensor, and the query, key and value matrices of grouped-query
attention are one; on disk each stands under its published name.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from samepath.kernels.backend import Backend
from samepath.model.config import ModelConfig
from samepath.model.files.config_file import CONFIG_FILE, read_config, write_config
from samepath.model.network.network import CausalLM

INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_FILE = "model.safetensors"
MAX_SHARD_BYTES = 4 << 30

_LATENT = {
    "query_down": "q_a_proj.weight",
    "query_norm": "q_a_layernorm.weight",
    "query_up": "q_b_proj.weight",
    "key_down": "kv_a_proj_with_mqa.weight",
    "key_norm": "kv_a_layernorm.weight",
    "key_up": "kv_b_proj.weight",
    "output": "o_proj.weight",
    "indexer.query": "indexer.wq_b.weight",
    "indexer.key": "indexer.wk.weight",
    "indexer.key_norm_weight": "indexer.k_norm.weight",
    "indexer.key_norm_bias": "indexer.k_norm.bias",
    "indexer.head_weights": "indexer.weights_proj.weight",
}

_GROUPED = {
    "output": "o_proj.weight",
    "output_bias": "o_proj.bias",
    "query_norm": "q_norm.weight",
    "key_norm": "k_norm.weight",
}


def published_tensors(model: CausalLM) -> dict[str, Tensor]:
    """The model's weights under their published names (views where possible, on the model's device)."""
    own, config = dict(model.state_dict()), model.config
    published: dict[str, Tensor] = {"model.embed_tokens.weight": own["embedding"], "model.norm.weight": own["norm"]}
    if not config.tie_word_embeddings:
        published["lm_head.weight"] = own["head"]
    for layer in range(config.num_hidden_layers):
        prefix, stem = f"layers.{layer}.", f"model.layers.{layer}."
        published[stem + "input_layernorm.weight"] = own[prefix + "attention_norm"]
        published[stem + "post_attention_layernorm.weight"] = own[prefix + "feed_forward_norm"]
        attention = {
            name.removeprefix(prefix + "attention."): tensor
            for name, tensor in own.items()
            if name.startswith(prefix + "attention.")
        }
        published |= {f"{stem}self_attn.{name}": tensor for name, tensor in _attention(attention, config).items()}
        mlp, own_mlp = stem + "mlp.", prefix + "feed_forward."
        if layer not in config.moe_layers:
            _split_feed_forward(published, mlp, own[own_mlp + "gate_up"], own[own_mlp + "down"])
            continue
        published[mlp + "gate.weight"] = own[own_mlp + "router"]
        if own_mlp + "selection_bias" in own:
            published[mlp + "gate.e_score_correction_bias"] = own[own_mlp + "selection_bias"]
        for expert in range(config.n_routed_experts):
            _split_feed_forward(
                published, f"{mlp}experts.{expert}.", own[own_mlp + "gate_up"][expert], own[own_mlp + "down"][expert]
            )
        if config.n_shared_experts:
            _split_feed_forward(
                published, mlp + "shared_experts.", own[own_mlp + "shared.gate_up"], own[own_mlp + "shared.down"]
            )
    return published


def _attention(own: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """One layer's attention under its published names."""
    if config.latent_attention:
        published = {public: own[name] for name, public in _LATENT.items() if name in own}
        if not config.q_lora_rank:
            published["q_proj.weight"] = published.pop("q_b_proj.weight")
        return published
    published = {public: own[name] for name, public in _GROUPED.items() if name in own}
    rows = [
        heads * config.head_width
        for heads in (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    ]
    for name, kind in (("qkv", "weight"), ("qkv_bias", "bias")):
        if name in own:
            parts = torch.split(own[name], rows)
            published |= {f"{letter}_proj.{kind}": part for letter, part in zip("qkv", parts)}
    return published


def _split_feed_forward(published: dict[str, Tensor], stem: str, gate_up: Tensor, down: Tensor) -> None:
    gate, up = gate_up.chunk(2, dim=0)
    published[stem + "gate_proj.weight"], published[stem + "up_proj.weight"], published[stem + "down_proj.weight"] = (
        gate,
        up,
        down,
    )


def save_checkpoint(model: CausalLM, folder: Path) -> None:
    """Write `config.json` and safetensors (sharded above 4 GiB) into `folder`, which is made if missing."""
    write_checkpoint(model.config, published_tensors(model), folder)


def write_checkpoint(config: ModelConfig, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """See `save_checkpoint`; `tensors` are the model's `published_tensors`, or copies of them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(write_config(config), indent=2) + "\n")
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > MAX_SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        _write_shard(shards[0], folder / WEIGHTS_FILE)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}, indent=2))


def _write_shard(shard: Mapping[str, Tensor], path: Path) -> None:
    """Views of one matrix, such as gate and up, are copied one by one: safetensors refuses tensors that share memory."""
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in shard.items()}
    save_file(
        {
            name: tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
            for name, tensor in own.items()
        },
        path,
        metadata={"format": "pt"},
    )


def load_checkpoint(folder: Path, backend: Backend = "torch", dtype: torch.dtype = torch.float32) -> CausalLM:
    """Build the model of `folder` and fill it. Raises ValueError naming missing, unknown or misshapen tensors."""
    model = CausalLM(read_config(folder / CONFIG_FILE), backend).to(dtype)
    load_published(model, _read_tensors(folder))
    return model


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    if (folder / INDEX_FILE).is_file():
        files = sorted(set(json.loads((folder / INDEX_FILE).read_text())["weight_map"].values()))
    elif (folder / WEIGHTS_FILE).is_file():
        files = [WEIGHTS_FILE]
    else:
        raise FileNotFoundError(f"a checkpoint needs {WEIGHTS_FILE} or {INDEX_FILE}; neither is in {folder}")
    tensors = {}
    for file in files:
        try:
            with safe_open(folder / file, framework="pt") as reader:
                for name in reader.keys():  # noqa: SIM118 (not a mapping)
                    tensors[name] = reader.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{folder / file} is no whole safetensors file: {error}. Fetch it again.") from error
    return tensors


def load_published(model: CausalLM, tensors: Mapping[str, Tensor]) -> None:
    """Copy published tensors into the model in place. Raises ValueError, with nothing written, unless names and shapes match."""
    targets = published_tensors(model)
    tensors = _expand(tensors, model.config)
    missing, unknown = sorted(set(targets) - set(tensors)), sorted(set(tensors) - set(targets))
    # A multi-token-prediction layer stands behind the last layer in published checkpoints; it is not part of the policy.
    unknown = [name for name in unknown if not name.startswith(f"model.layers.{model.config.num_hidden_layers}.")]
    if missing or unknown:
        raise ValueError(
            f"checkpoint tensors must match the config; missing {missing[:5]} ({len(missing)}), unknown {unknown[:5]} ({len(unknown)})"
        )
    for name, target in targets.items():
        if target.shape != tensors[name].shape:
            raise ValueError(
                f"{name} must have shape {tuple(target.shape)}; the checkpoint has {tuple(tensors[name].shape)}"
            )
    for name, target in targets.items():
        # `state_dict` and its slices are views of the parameters, so this fills the model.
        target.copy_(tensors[name])


def _expand(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Split experts that stand stacked, and leave out what other writers add: rotary tables, the head of a tied model."""
    expanded: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if kind == "gate_up_proj" and stem.endswith(".experts"):
            for expert, matrix in enumerate(tensor):
                gate, up = matrix.chunk(2, dim=0)
                expanded[f"{stem}.{expert}.gate_proj.weight"], expanded[f"{stem}.{expert}.up_proj.weight"] = gate, up
        elif kind == "down_proj" and stem.endswith(".experts"):
            expanded |= {f"{stem}.{expert}.down_proj.weight": matrix for expert, matrix in enumerate(tensor)}
        elif kind != "inv_freq" and not (name == "lm_head.weight" and config.tie_word_embeddings):
            expanded[name] = tensor
    return expanded
