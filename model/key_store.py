"""Where attention finds its keys: the rows of the packed batch itself (learner) or a paged cache (engine).

Axes: N rows, K key width, J indexer key width, L layers, X experts chosen.
"""

from typing import Protocol

import torch
from torch import Tensor

from samepath.model.config import ModelConfig


class KeyStore(Protocol):
    """Takes a layer's new key rows and returns all rows that the plan's `keys_BS` point into."""

    def update(self, layer: int, keys_NK: Tensor, index_keys_NJ: Tensor) -> tuple[Tensor, Tensor]:
        """(latent keys [rows, K], indexer keys [rows, J]) of this layer, new rows included."""
        ...


class PackedKeys:
    """The batch's own rows are the store; gradients flow through."""

    def update(self, layer: int, keys_NK: Tensor, index_keys_NJ: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows as they are."""
        return keys_NK, index_keys_NJ


class SlotCache:
    """Paged cache: one slot a token and layer, with the token's routes and selection fingerprints beside its keys.

    Slot 0 is scratch: padding rows write there and nobody reads it.
    """

    def __init__(
        self, config: ModelConfig, num_slots: int, dtype: torch.dtype, device: torch.device | None = None
    ) -> None:
        layers, moe_layers = config.num_hidden_layers, len(config.moe_layers)
        self.latent = torch.zeros(layers, num_slots, config.key_width, dtype=dtype, device=device)
        self.index = torch.zeros(layers, num_slots, config.index_head_dim, dtype=dtype, device=device)
        self.routes = torch.full(
            (num_slots, moe_layers, config.num_experts_per_tok), -1, dtype=torch.int16, device=device
        )
        self.fingerprints = torch.zeros(num_slots, layers, dtype=torch.int64, device=device)

    @property
    def size_bytes(self) -> int:
        """Memory held."""
        return sum(tensor.nbytes for tensor in (self.latent, self.index, self.routes, self.fingerprints))

    def copy_slots(self, sources: Tensor, targets: Tensor) -> None:
        """Copy whole tokens (all layers) from slot to slot: the tail page of a shared prompt."""
        self.latent[:, targets] = self.latent[:, sources]
        self.index[:, targets] = self.index[:, sources]
        self.routes[targets] = self.routes[sources]
        self.fingerprints[targets] = self.fingerprints[sources]


class CachedKeys:
    """Writes the batch's rows into their slots and serves the whole cache."""

    def __init__(self, cache: SlotCache, slots_N: Tensor) -> None:
        self.cache = cache
        self.slots_N = slots_N

    def update(self, layer: int, keys_NK: Tensor, index_keys_NJ: Tensor) -> tuple[Tensor, Tensor]:
        """Write, then return the layer's cache rows."""
        self.cache.latent[layer].index_copy_(0, self.slots_N, keys_NK)
        self.cache.index[layer].index_copy_(0, self.slots_N, index_keys_NJ)
        return self.cache.latent[layer], self.cache.index[layer]
