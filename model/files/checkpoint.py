"""Checkpoints in the published layout of each family: `config.json` and safetensors under the names of its transformers class.

In memory a layer's gate and up matrices are stacked, its experts form one tensor, and the query, key and value matrices of grouped-query
attention are one; on disk each stands under its published name.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from samepath.kernels.backend import Backend
from samepath.model.config import ModelConfig
from samepath.model.files.config_file import CONFIG_FILE, read_config, write_config
from samepath.model.files.weight_files import MAX_SHARD_BYTES, read_weights, write_weights
from samepath.model.network.moe import MixtureOfExperts
from samepath.model.network.network import CausalLM

_INDEXER = {
    "indexer.query": "indexer.wq_b.weight",
    "indexer.key": "indexer.wk.weight",
    "indexer.key_norm_weight": "indexer.k_norm.weight",
    "indexer.key_norm_bias": "indexer.k_norm.bias",
    "indexer.head_weights": "indexer.weights_proj.weight",
}

_LATENT = {
    "query_down": "q_a_proj.weight",
    "query_norm": "q_a_layernorm.weight",
    "query_up": "q_b_proj.weight",
    "key_down": "kv_a_proj_with_mqa.weight",
    "key_norm": "kv_a_layernorm.weight",
    "key_up": "kv_b_proj.weight",
    "output": "o_proj.weight",
    **_INDEXER,
}

_GROUPED = {
    "output": "o_proj.weight",
    "output_bias": "o_proj.bias",
    "query_norm": "q_norm.weight",
    "key_norm": "k_norm.weight",
    **_INDEXER,
}


def published_tensors(model: CausalLM) -> dict[str, Tensor]:
    """The model's weights under their published names (views where possible, on the model's device)."""
    published = published_ends(model)
    for layer in range(model.config.num_hidden_layers):
        published |= published_layer(model, layer)
    return published


def published_ends(model: CausalLM) -> dict[str, Tensor]:
    """What of `published_tensors` stands outside the layers."""
    published = {"model.embed_tokens.weight": model.embedding.detach(), "model.norm.weight": model.norm.detach()}
    if not model.config.tie_word_embeddings:
        published["lm_head.weight"] = model.head.detach()
    return published


def published_layer(model: CausalLM, layer: int) -> Iterator[tuple[str, Tensor]]:
    """What of `published_tensors` stands in a layer (global number), one after the other: of experts that are spread over processes a share is there at
    a time."""
    module, config, stem = model.layers[layer], model.config, f"model.layers.{layer}."
    # Not `state_dict`: a layer that is gathered for a moment would give its shards.
    own = {name: tensor.detach() for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    yield stem + "input_layernorm.weight", own["attention_norm"]
    yield stem + "post_attention_layernorm.weight", own["feed_forward_norm"]
    attention = {name.removeprefix("attention."): own[name] for name in own if name.startswith("attention.")}
    for name, tensor in _attention(attention, config).items():
        yield f"{stem}self_attn.{name}", tensor
    mlp, feed_forward = stem + "mlp.", module.feed_forward
    if not isinstance(feed_forward, MixtureOfExperts):
        yield from _split_feed_forward(mlp, own["feed_forward.gate_up"], own["feed_forward.down"])
        return
    yield mlp + "gate.weight", own["feed_forward.router"]
    if "feed_forward.selection_bias" in own:
        yield mlp + "gate.e_score_correction_bias", own["feed_forward.selection_bias"]
    for expert, (gate_up, down) in enumerate(feed_forward.experts()):
        yield from _split_feed_forward(f"{mlp}experts.{expert}.", gate_up, down)
    if config.n_shared_experts:
        shared = own["feed_forward.shared.gate_up"], own["feed_forward.shared.down"]
        yield from _split_feed_forward(mlp + "shared_experts.", *shared)


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


def _split_feed_forward(stem: str, gate_up: Tensor, down: Tensor) -> Iterator[tuple[str, Tensor]]:
    gate, up = gate_up.chunk(2, dim=0)
    yield stem + "gate_proj.weight", gate
    yield stem + "up_proj.weight", up
    yield stem + "down_proj.weight", down


def save_checkpoint(model: CausalLM, folder: Path) -> None:
    """Write `config.json` and safetensors (sharded above 4 GiB) into `folder`, which is made if missing."""
    write_checkpoint(model.config, published_tensors(model), folder)


def write_checkpoint(config: ModelConfig, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """See `save_checkpoint`; `tensors` are the model's `published_tensors`, or copies of them."""
    write_own_config(config, folder)
    write_weights(tensors.items(), folder, MAX_SHARD_BYTES)


def write_own_config(config: ModelConfig, folder: Path) -> None:
    """Write `config.json` into `folder`, which is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(write_config(config), indent=2) + "\n")


def load_checkpoint(folder: Path, backend: Backend = "torch", dtype: torch.dtype = torch.float32) -> CausalLM:
    """Build the model of `folder` and fill it. Raises ValueError naming missing, unknown or misshapen tensors."""
    model = CausalLM(read_config(folder / CONFIG_FILE), backend).to(dtype)
    load_published(model, read_weights(folder))
    return model


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
