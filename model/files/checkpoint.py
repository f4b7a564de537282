"""Checkpoints in the published layout of each family: `config.json` and safetensors under the names of its transformers class.

In memory a layer's gate and up matrices are stacked, its experts form one tensor, and the query, key and value matrices of grouped-query
attention are one; on disk each stands under its published name.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from samepath.kernels.backend import Backend
from samepath.model.config import ModelConfig
from samepath.model.files.config_file import CONFIG_FILE, read_config, write_config
from samepath.model.files.stored_weights import StoredWeights
from samepath.model.files.weight_files import MAX_SHARD_BYTES, write_weights
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


def save_checkpoint(model: CausalLM, folder: Path, max_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write `config.json` and safetensors, in files of at most `max_bytes`, into `folder`, which is made if missing."""
    write_own_config(model.config, folder)
    write_weights(published_tensors(model).items(), folder, max_bytes)


def write_checkpoint(config: ModelConfig, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """See `save_checkpoint`; `tensors` are the model's `published_tensors`, or copies of them."""
    write_own_config(config, folder)
    write_weights(tensors.items(), folder, MAX_SHARD_BYTES)


def write_own_config(config: ModelConfig, folder: Path, dtype: str = "float32") -> None:
    """Write `config.json`, for weights of a type, into `folder`, which is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps({**write_config(config), "torch_dtype": dtype}, indent=2) + "\n")


def load_checkpoint(folder: Path, backend: Backend = "torch", dtype: torch.dtype = torch.float32) -> CausalLM:
    """Build the model of `folder` and fill it tensor by tensor; memory is the model's and that of the one file being read.

    Raises FileNotFoundError or ValueError as `stored_checkpoint` does.
    """
    config, tensors = stored_checkpoint(folder, dtype)
    model = CausalLM(config, backend).to(dtype)
    targets = published_tensors(model)
    for name, tensor in tensors:
        # These are views of the parameters, so this fills the model.
        targets[name].copy_(tensor)
    return model


def stored_checkpoint(
    folder: Path, dtype: torch.dtype = torch.float32
) -> tuple[ModelConfig, Iterator[tuple[str, Tensor]]]:
    """Configuration and, one after the other as they stand in the files, the weights under the names of `published_tensors`.

    FP8 weights come out as their values in `dtype`, others in the type that they are stored in; each may be gone once the next is asked for.
    Raises FileNotFoundError or ValueError, before a weight is read, that name what is missing, unknown, misshapen or not to be read, and its file.
    """
    config, stored = read_config(folder / CONFIG_FILE), StoredWeights(folder)
    with torch.device("meta"):
        blank = CausalLM(config)
    shapes = stored.shapes
    described = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    wanted = _check_fit(published_tensors(blank), described, config, stored.file_of)
    tensors = stored.read(wanted, dtype)
    return config, (part for name, tensor in tensors for part in _parts(name, tensor, config))


def load_published(model: CausalLM, tensors: Mapping[str, Tensor]) -> None:
    """Copy published tensors into the model in place. Raises ValueError, with nothing written, unless names and shapes match."""
    targets = published_tensors(model)
    for name in _check_fit(targets, tensors, model.config, lambda _: None):
        for published, part in _parts(name, tensors[name], model.config):
            targets[published].copy_(part)


def _check_fit(
    targets: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    config: ModelConfig,
    file_of: Callable[[str], Path | None],
) -> list[str]:
    """Names of the tensors that fill the targets. Raises ValueError, with a tensor's file where it has one, unless they do so and none is left over."""
    given: dict[str, tuple[str, torch.Size]] = {}
    for name, tensor in tensors.items():
        for part, shape in _part_shapes(name, tensor, config):
            if part in given:
                raise ValueError(f"{part} must stand in a checkpoint once; it is in {given[part][0]} and in {name}")
            given[part] = name, shape
    # A multi-token-prediction layer stands behind the last layer in published checkpoints; it is not part of the policy.
    beyond = f"model.layers.{config.num_hidden_layers}."
    missing = sorted(set(targets) - set(given))
    unknown = sorted(name for name in set(given) - set(targets) if not name.startswith(beyond))
    if missing or unknown:
        where = (
            f"; the first unknown one stands in {file}" if unknown and (file := file_of(given[unknown[0]][0])) else ""
        )
        raise ValueError(
            f"checkpoint tensors must match the config; missing {missing[:5]} ({len(missing)}), unknown {unknown[:5]} ({len(unknown)}){where}"
        )
    for part, target in targets.items():
        name, shape = given[part]
        if target.shape != shape:
            raise ValueError(
                f"{part} must have shape {tuple(target.shape)}; {file_of(name) or 'the checkpoint'} has {tuple(shape)}"
            )
    filling = {given[part][0] for part in targets}
    return [name for name in tensors if name in filling]


def _part_shapes(name: str, tensor: Tensor, config: ModelConfig) -> Iterator[tuple[str, torch.Size]]:
    return ((part, one.shape) for part, one in _parts(name, tensor, config))


def _parts(name: str, tensor: Tensor, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Experts that stand stacked, one by one; what other writers add is left out: rotary tables, the head of a tied model."""
    stem, _, kind = name.rpartition(".")
    stacked = stem.endswith(".experts") and tensor.ndim == 3
    if kind == "gate_up_proj" and stacked:
        for expert, matrix in enumerate(tensor):
            gate, up = matrix.chunk(2, dim=0)
            yield f"{stem}.{expert}.gate_proj.weight", gate
            yield f"{stem}.{expert}.up_proj.weight", up
    elif kind == "down_proj" and stacked:
        yield from ((f"{stem}.{expert}.down_proj.weight", matrix) for expert, matrix in enumerate(tensor))
    elif kind != "inv_freq" and not (name == "lm_head.weight" and config.tie_word_embeddings):
        yield name, tensor
