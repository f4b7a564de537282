"""The two key stores: packed rows pass through with gradients; cached rows land in their slots."""

import torch

from samepath.model.key_store import CachedKeys, PackedKeys, SlotCache
from tests.conftest import tiny_config


def test_packed_keys_are_the_rows_themselves() -> None:
    rows, index_keys = torch.zeros(1, 3, 4, requires_grad=True), torch.zeros(3, 2)
    store = PackedKeys()
    assert store.update(1, rows) is rows
    assert store.update_index(1, index_keys) is index_keys


def test_cached_keys_write_only_their_layer_and_slots() -> None:
    config = tiny_config()
    cache = SlotCache(config, 10, torch.float32)
    store = CachedKeys(cache, torch.tensor([7, 2]))
    keys, index_keys = torch.randn(1, 2, config.key_width), torch.randn(2, config.index_head_dim)
    rows, index_rows = store.update(1, keys), store.update_index(1, index_keys)
    assert torch.equal(rows[:, [7, 2]], keys)
    assert torch.equal(index_rows[[7, 2]], index_keys)
    assert not cache.rows[[0, 2]].any()
    assert int((rows[0].abs().sum(1) > 0).sum()) == 2


def test_copy_slots_takes_keys_routes_and_fingerprints_of_every_layer() -> None:
    config = tiny_config()
    cache = SlotCache(config, 10, torch.float32)
    cache.rows[:, :, 3], cache.index[:, 3], cache.routes[3], cache.fingerprints[3] = 1.5, 2.5, 4, 9
    cache.copy_slots(torch.tensor([3, 3]), torch.tensor([5, 8]))
    for slot in (5, 8):
        assert bool((cache.rows[:, :, slot] == 1.5).all())
        assert bool((cache.index[:, slot] == 2.5).all())
        assert bool((cache.routes[slot] == 4).all())
        assert bool((cache.fingerprints[slot] == 9).all())
    assert not cache.rows[:, :, 4].any()


def test_slot_cache_size_counts_every_tensor() -> None:
    """Each slot: 3 layers · (40 + 16) floats, 2 MoE layers · 2 int16 routes, 3 int64 fingerprints = 672 + 8 + 24 bytes."""
    assert SlotCache(tiny_config(), 10, torch.float32).size_bytes == 10 * 704
