"""Where attention finds its keys: the rows of the packed batch itself (learner) or a paged cache (engine).

Axes: N rows, G key heads, W width of a key row (key and value), J indexer key width, L layers, X experts chosen.
"""

from typing import Protocol

import torch
from torch import Tensor

from samepath.model.config import ModelConfig

CPU = torch.device("cpu")


class KeyStore(Protocol):
    """Takes a layer's new key rows and returns all rows that the plan's `keys_BS` point into."""

    def update(self, layer: int, rows_GNW: Tensor) -> Tensor:
        """Key rows [G, rows, W] of this layer, new rows included."""
        ...

    def update_index(self, layer: int, index_keys_NJ: Tensor) -> Tensor:
        """Indexer keys [rows, J] of this layer, new rows included."""
        ...


class PackedKeys:
    """The batch's own rows are the store; gradients flow through."""

    def update(self, layer: int, rows_GNW: Tensor) -> Tensor:
        """Return the rows as they are."""
        return rows_GNW

    def update_index(self, layer: int, index_keys_NJ: Tensor) -> Tensor:
        """Return the rows as they are."""
        return index_keys_NJ


class SlotCache:
    """Paged cache: one slot a token and layer, with the token's routes and selection fingerprints beside its keys.

    Slot 0 is scratch: padding rows write there and nobody reads it.
    """

    def __init__(self, config: ModelConfig, num_slots: int, dtype: torch.dtype, device: torch.device = CPU) -> None:
        layers, moe_layers, sparse_layers = config.num_hidden_layers, len(config.moe_layers), len(config.sparse_layers)
        self.rows = torch.zeros(layers, config.key_heads, num_slots, config.key_row_width, dtype=dtype, device=device)
        self.index = torch.zeros(sparse_layers, num_slots, config.index_head_dim, dtype=dtype, device=device)
        self.routes = torch.full(
            (num_slots, moe_layers, config.num_experts_per_tok), -1, dtype=torch.int16, device=device
        )
        self.fingerprints = torch.zeros(num_slots, sparse_layers, dtype=torch.int64, device=device)

    @property
    def size_bytes(self) -> int:
        """Memory held."""
        return sum(tensor.nbytes for tensor in (self.rows, self.index, self.routes, self.fingerprints))

    def copy_slots(self, sources: Tensor, targets: Tensor) -> None:
        """Copy whole tokens (all layers) from slot to slot: the tail page of a shared prompt."""
        self.rows[:, :, targets] = self.rows[:, :, sources]
        self.index[:, targets] = self.index[:, sources]
        self.routes[targets] = self.routes[sources]
        self.fingerprints[targets] = self.fingerprints[sources]


class CachedKeys:
    """Writes the batch's rows into their slots and serves the whole cache."""

    def __init__(self, cache: SlotCache, slots_N: Tensor) -> None:
        self.cache = cache
        self.slots_N = slots_N

    def update(self, layer: int, rows_GNW: Tensor) -> Tensor:
        """Write, then return the layer's cache rows."""
        return self.cache.rows[layer].index_copy_(1, self.slots_N, rows_GNW)

    def update_index(self, layer: int, index_keys_NJ: Tensor) -> Tensor:
        """Write, then return the layer's indexer keys."""
        return self.cache.index[layer].index_copy_(0, self.slots_N, index_keys_NJ)
