"""Parameters and cache widths of a published model, counted from its `config.json` alone: nothing is built or downloaded."""

from collections.abc import Mapping
from typing import Any

from samepath.model.files.model_sizes import LayerSizes, PublishedSizes

GROUPED = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen2_moe",
    "qwen3_moe",
    "mixtral",
    "olmoe",
    "glm4_moe",
    "samepath_grouped",
)
LATENT = ("deepseek_v2", "deepseek_v3", "deepseek_v32")
NORMED_HEADS = ("qwen3", "qwen3_moe", "olmoe")
"""Grouped-query models that norm their queries and keys."""
KNOWN_TYPES = (*GROUPED, *LATENT)
"""Values of `model_type` whose parameters can be counted here."""


class SizesError(ValueError):
    """Sizes that cannot be counted; the message names the key."""


def published_sizes(config: Mapping[str, Any]) -> PublishedSizes:
    """Read sizes under their published names. Raises SizesError naming an unknown `model_type` or a missing key."""
    model_type = str(config.get("model_type", ""))
    if model_type not in KNOWN_TYPES:
        raise SizesError(f"parameters can be counted for model_type {', '.join(KNOWN_TYPES)}; got {model_type!r}")
    read = _Reader(config)
    return _latent(read, model_type) if model_type in LATENT else _grouped(read, model_type)


class _Reader:
    """Numbers of a config by name, with an error that names what is missing."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def number(self, *names: str, default: int | None = None) -> int:
        """The first of the names that is there and not null."""
        for name in names:
            value = self._config.get(name)
            if value is not None:
                if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                    raise SizesError(f"{name} must be a whole number, 0 or more; got {value!r}")
                return value
        if default is None:
            raise SizesError(f"{names[0]} must be given for model_type {self._config.get('model_type')}")
        return default

    def flag(self, name: str, default: bool) -> bool:
        """A switch."""
        return bool(self._config.get(name, default))

    def numbers(self, name: str) -> tuple[int, ...]:
        """A list, empty if it is not there."""
        return tuple(self._config.get(name) or ())


def _grouped(read: _Reader, model_type: str) -> PublishedSizes:
    """Grouped-query attention: Llama, Mistral, Qwen2, Qwen3, their mixtures, Mixtral, OLMoE, GLM-4.5."""
    width, heads, layers = (
        read.number("hidden_size"),
        read.number("num_attention_heads"),
        read.number("num_hidden_layers"),
    )
    groups = read.number("num_key_value_heads", default=heads)
    head = read.number("head_dim", default=width // heads)
    queries, keys = heads * head, groups * head
    attention, normed = _grouped_attention(read, model_type, (width, queries, keys, head))
    index_heads = index_key = 0
    if model_type == "samepath_grouped":
        index_heads, index_key = read.number("index_n_heads", default=0), read.number("index_head_dim", default=0)
    indexer = width * (index_heads * index_key + index_key + index_heads) + 2 * index_key
    experts = 0
    if model_type == "samepath_grouped":
        experts = read.number("n_routed_experts", default=0)
    if model_type in ("qwen2_moe", "qwen3_moe", "mixtral", "olmoe", "glm4_moe"):
        experts = read.number("num_experts", "num_local_experts", "n_routed_experts")
    moe_layers = _sparse_layers(read, model_type, layers) if experts else 0
    expert_width = 0
    if experts:
        expert_width = read.number(
            "intermediate_size" if model_type in ("mixtral", "olmoe") else "moe_intermediate_size"
        )
    dense_width = read.number("intermediate_size") if moe_layers < layers else 0
    shared_width = read.number("shared_expert_intermediate_size") if model_type == "qwen2_moe" else 0
    if model_type == "glm4_moe":
        shared_width = read.number("n_shared_experts", default=1) * expert_width
    dense = 3 * width * dense_width
    if model_type == "llama" and read.flag("mlp_bias", False):
        dense += 2 * dense_width + width
    return PublishedSizes(
        model_type=model_type,
        vocab_size=read.number("vocab_size"),
        width=width,
        num_layers=layers,
        num_moe_layers=moe_layers,
        num_experts=experts,
        experts_per_token=read.number("num_experts_per_tok") if experts else 0,
        tied=read.flag("tie_word_embeddings", False),
        max_positions=read.number("max_position_embeddings"),
        dense_layer=LayerSizes(
            attention=attention, indexer=indexer, dense=dense, expert=0, shared=0, router=0, norms=2 * width
        ),
        moe_layer=LayerSizes(
            attention=attention,
            indexer=indexer,
            dense=0,
            expert=3 * width * expert_width,
            # Qwen2-MoE weighs its shared expert with a gate of its own.
            shared=3 * width * shared_width + (width if model_type == "qwen2_moe" else 0),
            router=width * experts,
            norms=2 * width,
        ),
        # A norm keeps its input and its normalised rows beside its output.
        attention_elements=2 * queries + 2 * keys + (2 * (queries + keys) if normed else 0),
        cache_width=2 * keys + index_key,
        unfolded_cache_width=2 * keys,
        latent=False,
        dense_width=dense_width,
        expert_width=expert_width,
        shared_width=shared_width,
    )


def _grouped_attention(read: _Reader, model_type: str, widths: tuple[int, int, int, int]) -> tuple[int, bool]:
    """(parameters of a layer's attention, whether heads are normed); widths of the stream, of all queries, of all keys, of a head."""
    width, queries, keys, head = widths
    attention = width * queries + 2 * width * keys + queries * width
    if model_type in ("qwen2", "qwen2_moe"):
        attention += queries + 2 * keys
    elif read.flag("attention_bias", False):
        attention += queries + 2 * keys + (width if model_type != "glm4_moe" else 0)
    elif model_type == "samepath_grouped" and read.flag("qkv_bias", False):
        attention += queries + 2 * keys
    said_normed = model_type in ("glm4_moe", "samepath_grouped") and read.flag("use_qk_norm", False)
    normed = model_type in NORMED_HEADS or said_normed
    if normed and model_type != "olmoe":
        attention += 2 * head
    if model_type == "olmoe":
        attention += queries + keys
    return attention, normed


def _sparse_layers(read: _Reader, model_type: str, layers: int) -> int:
    """Number of mixture-of-experts layers of a grouped-query model."""
    if model_type == "glm4_moe":
        return layers - min(read.number("first_k_dense_replace", default=1), layers)
    if not model_type.startswith(("qwen", "samepath")):
        return layers
    step, dense = read.number("decoder_sparse_step", default=1), read.numbers("mlp_only_layers")
    return sum((layer + 1) % step == 0 and layer not in dense for layer in range(layers))


def _latent(read: _Reader, model_type: str) -> PublishedSizes:
    """Multi-head latent attention: DeepSeek-V2, V3 and V3.2 (with its indexer). Multi-token-prediction layers are not counted."""
    width, heads, layers = (
        read.number("hidden_size"),
        read.number("num_attention_heads"),
        read.number("num_hidden_layers"),
    )
    nope, rope, value = read.number("qk_nope_head_dim"), read.number("qk_rope_head_dim"), read.number("v_head_dim")
    q_rank, kv_rank = read.number("q_lora_rank", default=0), read.number("kv_lora_rank")
    queries = heads * (nope + rope)
    attention = width * q_rank + q_rank + q_rank * queries if q_rank else width * queries
    attention += width * (kv_rank + rope) + kv_rank + kv_rank * heads * (nope + value) + heads * value * width
    indexer = index_key = 0
    if model_type == "deepseek_v32":
        index_heads, index_key = read.number("index_n_heads"), read.number("index_head_dim")
        indexer = q_rank * index_heads * index_key + width * index_key + 2 * index_key + width * index_heads
    experts = read.number("n_routed_experts", default=0)
    dense_layers = min(read.number("first_k_dense_replace"), layers) if experts else layers
    step = read.number("moe_layer_freq", default=1)
    moe_layers = sum(layer % step == 0 for layer in range(dense_layers, layers))
    dense_width = read.number("intermediate_size") if moe_layers < layers else 0
    expert_width = read.number("moe_intermediate_size") if experts else 0
    shared_width = read.number("n_shared_experts", default=0) * expert_width
    norms = 2 * width
    return PublishedSizes(
        model_type=model_type,
        vocab_size=read.number("vocab_size"),
        width=width,
        num_layers=layers,
        num_moe_layers=moe_layers,
        num_experts=experts,
        experts_per_token=read.number("num_experts_per_tok") if experts else 0,
        tied=read.flag("tie_word_embeddings", False),
        max_positions=read.number("max_position_embeddings"),
        dense_layer=LayerSizes(
            attention=attention,
            indexer=indexer,
            dense=3 * width * dense_width,
            expert=0,
            shared=0,
            router=0,
            norms=norms,
        ),
        moe_layer=LayerSizes(
            attention=attention,
            indexer=indexer,
            dense=0,
            expert=3 * width * expert_width,
            shared=3 * width * shared_width,
            router=width * experts,
            norms=norms,
        ),
        # Unfolded form: two latents with their norms, queries and keys, the rows that hold the values, the output.
        attention_elements=3 * (q_rank + kv_rank) + 2 * queries + heads * (nope + value) + heads * value,
        cache_width=kv_rank + rope + index_key,
        unfolded_cache_width=2 * queries,
        latent=True,
        dense_width=dense_width,
        expert_width=expert_width,
        shared_width=shared_width,
    )
