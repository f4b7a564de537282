"""Sizes of a model by part, as memory and cost depend on them.

Letters: D width, H query heads, G key/value heads, K head width, F feed-forward width, E experts, X experts chosen, L layers.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSizes:
    """Parameters of one layer by part.

    Example: SmolLM2-135M: LayerSizes(attention=884736, indexer=0, dense=2654208, expert=0, shared=0, router=0, norms=1152)
    """

    attention: int
    """Projections and norms inside attention, without the indexer."""
    indexer: int
    """Lightning indexer; 0 without one."""
    dense: int
    """Feed-forward that every token runs; 0 in a mixture-of-experts layer."""
    expert: int
    """One routed expert; 0 in a dense layer."""
    shared: int
    """Shared experts with their gate; 0 without."""
    router: int
    """Scores of the experts."""
    norms: int
    """The two norms around the residual stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSizes:
    """What memory depends on.

    Example: Qwen3-30B-A3B has parameters=30.5e9, active=3.3e9, num_layers=48, num_moe_layers=48, cache_width=1024.
    """

    model_type: str
    """As in config.json."""
    vocab_size: int
    """V."""
    width: int
    """D."""
    num_layers: int
    """L."""
    num_moe_layers: int
    """Layers with routed experts."""
    num_experts: int
    """E; 0 for a dense model."""
    experts_per_token: int
    """X."""
    tied: bool
    """One matrix for embedding and head."""
    max_positions: int
    """Longest sequence, tokens."""
    dense_layer: LayerSizes
    """A layer with a dense feed-forward."""
    moe_layer: LayerSizes
    """A layer with routed experts; equal to `dense_layer` for a dense model."""
    attention_elements: int
    """Elements that the backward pass needs of one token inside one layer's attention: queries, keys and values after their
    norms and rotations, the output, and what those norms keep; scores are not counted (fused kernels keep none)."""
    cache_width: int
    """Elements that an engine's cache keeps of one token and layer: 2·G·K, or latent and rotary key, with the indexer's key."""
    unfolded_cache_width: int
    """The same where an engine runs latent attention as ordinary attention: keys of all heads, and values as wide; else equal."""
    latent: bool
    """True for latent attention, whose cache every tensor-parallel device holds whole."""
    dense_width: int
    """F of dense layers; 0 without."""
    expert_width: int
    """F of one expert; 0 without."""
    shared_width: int
    """F of all shared experts together."""

    @property
    def parts(self) -> dict[str, int]:
        """All parameters by part."""
        moe, dense = self.num_moe_layers, self.num_layers - self.num_moe_layers
        embeddings = self.vocab_size * self.width
        both = [(self.moe_layer, moe), (self.dense_layer, dense)]
        return {
            "embedding": embeddings,
            "head": 0 if self.tied else embeddings,
            "attention": sum(layer.attention * count for layer, count in both),
            "indexer": sum(layer.indexer * count for layer, count in both),
            "dense feed-forward": self.dense_layer.dense * dense,
            "shared experts": self.moe_layer.shared * moe,
            "routed experts": self.moe_layer.expert * self.num_experts * moe,
            "routers": self.moe_layer.router * moe,
            "norms": sum(layer.norms * count for layer, count in both) + self.width,
        }

    @property
    def parameters(self) -> int:
        """All of them."""
        return sum(self.parts.values())

    @property
    def active(self) -> int:
        """Those that one token runs through: all but the experts that it does not choose (embeddings counted whole)."""
        idle = self.num_experts - self.experts_per_token if self.num_experts else 0
        return self.parameters - self.moe_layer.expert * idle * self.num_moe_layers

    @property
    def largest_layer(self) -> int:
        """Parameters of the largest layer, all its experts included."""
        return max(layer_total(self.moe_layer, self.num_experts), layer_total(self.dense_layer, 0))

    @property
    def largest_layer_without_experts(self) -> int:
        """The same with the routed experts left out."""
        return max(layer_total(self.moe_layer, 0), layer_total(self.dense_layer, 0))


def layer_total(layer: LayerSizes, num_experts: int) -> int:
    """Parameters of one layer with so many experts."""
    rest = layer.attention + layer.indexer + layer.dense + layer.shared + layer.router + layer.norms
    return rest + layer.expert * num_experts
