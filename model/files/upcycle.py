"""Any checkpoint of the own network's families with a lightning indexer and its feed-forward as experts, and back to attention over all keys.

Nothing that is learned changes: attention keeps its weights, the indexer is new and only selects; each expert is a copy of the feed-forward, and the
gates of the chosen ones add up to 1. So the logits are those of the source up to rounding, as long as no row has more keys than are selected.
Axes: E experts, D width.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch import Tensor

from samepath.model.config import ModelConfig
from samepath.model.families import EXPERT_SIZES, GROUPED_INDEXER_SIZES, INDEXER_SIZES, ModelType

INDEXER_KEYS = ("heads", "width", "topk", "rope")


class UpcycleError(ValueError):
    """A model that cannot be changed so; the message says why, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexerSizes:
    """Sizes of a new indexer.

    Example:
        IndexerSizes(heads=4, width=32, topk=256)
    """

    heads: int
    """I, heads."""
    width: int
    """J, channels of a head."""
    topk: int
    """C, keys that each query attends to."""
    rope: int = 0
    """Channels that are rotated; 0 is the most that divide attention's and are no more than half the width. Latent attention has its own number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What becomes of a model.

    Example:
        Change(indexer=IndexerSizes(heads=4, width=32, topk=256), experts=8)
    """

    indexer: IndexerSizes | None = None
    """None adds none."""
    experts: int = 0
    """Copies of each feed-forward; 0 leaves it as it is."""
    chosen: int = 2
    """Experts a token goes through."""
    dense: bool = False
    """Leave the model's indexer out: attention over all keys, in a family of transformers."""
    seed: int = 0
    """Of the indexer's and routers' first weights."""

    @property
    def nothing(self) -> bool:
        """Whether the model stays what it is."""
        return self.indexer is None and not self.experts and not self.dense


def read_indexer(text: str) -> IndexerSizes:
    """`heads=4,width=32,topk=256`, and `rope=16` if wanted. Raises UpcycleError that names the key."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        key, _, value = part.strip().partition("=")
        if key not in INDEXER_KEYS or key in sizes or not value.isdecimal() or int(value) < 1:
            raise UpcycleError(
                f"--indexer takes {', '.join(INDEXER_KEYS)} once each, as whole numbers above 0 (heads=4,width=32,topk=256); got {part.strip()!r}"
            )
        sizes[key] = int(value)
    missing = [key for key in INDEXER_KEYS[:3] if key not in sizes]
    if missing:
        raise UpcycleError(
            f"--indexer needs {', '.join(missing)} as well, as in heads=4,width=32,topk=256; got {text!r}"
        )
    return IndexerSizes(**sizes)


def changed_config(config: ModelConfig, change: Change) -> ModelConfig:
    """Configuration of the changed model. Raises UpcycleError where there is none."""
    if change.dense and (change.indexer is not None or change.experts):
        raise UpcycleError(
            "--dense takes an indexer away; it goes with neither --indexer nor --experts. Convert twice."
        )
    try:
        return _dense_config(config) if change.dense else _sparse_config(config, change)
    except ValidationError as error:
        problems = "; ".join(item["msg"].removeprefix("Value error, ") for item in error.errors())
        raise UpcycleError(f"a model of these sizes cannot be built: {problems}") from error


def _sparse_config(config: ModelConfig, change: Change) -> ModelConfig:
    if change.indexer is not None and config.index_topk:
        raise UpcycleError(
            "the model has an indexer already. Take it away first, with --dense, or leave --indexer out."
        )
    if change.experts:
        if config.n_routed_experts:
            raise UpcycleError(f"the model has {config.n_routed_experts} experts already. Leave --experts out.")
        if not 1 <= change.chosen <= change.experts:
            raise UpcycleError(f"--chosen must be in 1 … --experts={change.experts}; got {change.chosen}")
    if config.model_type == "glm4_moe":
        raise UpcycleError(
            "model_type glm4_moe has a sigmoid router and channels without position, which no indexed family of this package has"
        )
    data = config.model_dump()
    if config.latent_attention:
        assert change.indexer is not None
        if change.indexer.rope:
            raise UpcycleError("with latent attention the indexer rotates qk_rope_head_dim channels. Leave rope= out.")
        return ModelConfig.model_validate({**data, "model_type": "deepseek_v32", **_sizes(change.indexer)})
    data |= {
        "model_type": "samepath_grouped",
        "head_dim": config.head_width,
        "qkv_bias": config.query_bias and not config.output_bias,
        "use_qk_norm": config.head_norms,
    }
    if change.indexer is not None:
        rope = change.indexer.rope or _most_rope(config.rope_width, change.indexer.width)
        data |= {**_sizes(change.indexer), "index_rope_head_dim": rope}
    if change.experts:
        sizes = (change.experts, change.chosen, config.intermediate_size)
        data |= {**dict(zip(EXPERT_SIZES, sizes)), "norm_topk_prob": True}
    return ModelConfig.model_validate(data)


def _sizes(indexer: IndexerSizes) -> dict[str, int]:
    return dict(zip(INDEXER_SIZES, (indexer.heads, indexer.width, indexer.topk)))


def _most_rope(rope_width: int, width: int) -> int:
    """The largest even divisor of attention's rotated channels within half of the indexer's width; 2 where there is no room."""
    return max((size for size in range(2, width // 2 + 1, 2) if rope_width % size == 0), default=2)


def _dense_config(config: ModelConfig) -> ModelConfig:
    if not config.index_topk and config.model_type != "samepath_grouped":
        raise UpcycleError(f"model_type {config.model_type} attends to all keys as it is. Leave --dense out.")
    data = {name: value for name, value in config.model_dump().items() if name not in GROUPED_INDEXER_SIZES}
    if config.latent_attention:
        return ModelConfig.model_validate({**data, "model_type": "deepseek_v3"})
    biases, norms = data.pop("qkv_bias"), data.pop("use_qk_norm")
    kind = _published_type(config, biases=biases, norms=norms)
    if kind == "qwen2":
        data.pop("attention_bias")
    if not config.n_routed_experts:
        for name in ("norm_topk_prob", "decoder_sparse_step", "mlp_only_layers"):
            data.pop(name)
    return ModelConfig.model_validate({**data, "model_type": kind})


def _published_type(config: ModelConfig, *, biases: bool, norms: bool) -> ModelType:
    """The family of transformers that computes the same. Raises UpcycleError if there is none."""
    if config.n_routed_experts and norms and not biases:
        return "qwen3_moe"
    if not config.n_routed_experts and norms and not biases:
        return "qwen3"
    if not config.n_routed_experts and not norms:
        return "qwen2" if biases else "llama"
    raise UpcycleError(
        f"no family of transformers that this package knows has experts={config.n_routed_experts}, norms of each head={norms} and biases of "
        f"queries, keys and values={biases} together: the model can be run here alone."
    )


def changed_tensors(
    tensors: Iterable[tuple[str, Tensor]], config: ModelConfig, change: Change
) -> Iterator[tuple[str, Tensor]]:
    """The weights of the changed model (`config`), made of the source's, one after the other; copies of a feed-forward are one tensor under many names."""
    for name, tensor in tensors:
        if change.dense and ".self_attn.indexer." in name:
            continue
        layer, experts, matrix = name.partition(".mlp.")
        if not (change.experts and experts):
            yield name, tensor
            continue
        for expert in range(change.experts):
            yield f"{layer}.mlp.experts.{expert}.{matrix}", tensor
    generator = torch.Generator().manual_seed(change.seed)
    for number in range(config.num_hidden_layers):
        stem = f"model.layers.{number}."
        if change.experts:
            yield f"{stem}mlp.gate.weight", _normal((change.experts, config.hidden_size), config, generator)
        if change.indexer is not None:
            yield from _new_indexer(f"{stem}self_attn.indexer.", config, generator)


def _new_indexer(stem: str, config: ModelConfig, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    heads, width = config.index_n_heads, config.index_head_dim
    yield stem + "wq_b.weight", _normal((heads * width, config.index_query_width), config, generator)
    yield stem + "wk.weight", _normal((width, config.hidden_size), config, generator)
    yield stem + "k_norm.weight", torch.ones(width)
    yield stem + "k_norm.bias", torch.zeros(width)
    yield stem + "weights_proj.weight", _normal((heads, config.hidden_size), config, generator)


def _normal(shape: tuple[int, int], config: ModelConfig, generator: torch.Generator) -> Tensor:
    """As a new model's matrices."""
    return torch.empty(shape).normal_(0.0, config.initializer_range, generator=generator)
