"""Flips of drawn tokens against a twin that looks at one token after the other, and their way from passes to rollouts."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from samepath.rl.diagnostics.flipped_routes import FlippedRoutes, flipped_routes, flips_of_rollouts


def made(seed: int = 0) -> tuple[Any, Any]:
    """A pass of 12 rows and 7 tokens, two layers of five experts of which two are chosen; some rows without a record."""
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.stack([torch.stack([torch.randperm(5, generator=draw)[:2] for _ in range(12)]) for _ in range(2)])
    live = chosen.flip(-1).clone()
    live[0, 3] = torch.tensor([0, 1])
    live[1, 5] = torch.tensor([4, 2])
    recorded = chosen.clone()
    recorded[1, 9] = -1
    batch = SimpleNamespace(rows_M=torch.tensor([2, 3, 3, 5, 8, 9, 11]), routes_LNX=recorded)
    return batch, SimpleNamespace(live_routes=list(live))


@pytest.mark.parametrize("seed", range(4))
def test_flipped_routes_are_what_looking_at_each_token_gives(seed: int) -> None:
    batch, trace = made(seed)
    wanted = []
    for layer in range(2):
        for token, row in enumerate(batch.rows_M.tolist()):
            live, recorded = trace.live_routes[layer][row].tolist(), batch.routes_LNX[layer, row].tolist()
            if set(live) != set(recorded) and recorded[0] >= 0:
                wanted.append((token, layer, sorted(live)))
    flips = flipped_routes(batch, trace)
    assert list(zip(flips.token_F.tolist(), flips.layer_F.tolist(), flips.live_FX.tolist(), strict=True)) == wanted
    assert {token for token, _, _ in wanted} <= {1, 2, 3}


def test_flipped_routes_of_a_dense_model_are_none() -> None:
    batch, _ = made()
    assert len(flipped_routes(batch, SimpleNamespace(live_routes=[])).token_F) == 0


def test_flips_of_rollouts_go_to_their_own_tokens_in_order() -> None:
    """Two passes; rollout 1 stands in both, and rollout 2 has none."""

    def flips(*rows: tuple[int, int, int]) -> FlippedRoutes:
        columns = torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)
        return FlippedRoutes(token_F=columns[:, 0], layer_F=columns[:, 1], live_FX=columns[:, 2:])

    rollout_M = torch.tensor([1, 1, 0, 0, 2, 1, 1, 0])
    found = flips_of_rollouts(
        [(flips((3, 0, 8), (1, 1, 7), (1, 0, 6)), 5), (flips((0, 0, 5), (2, 1, 4)), 3)], rollout_M, 3
    )
    assert [one.tolist() for one in found] == [[[1, 0, 8], [2, 1, 4]], [[1, 0, 6], [1, 1, 7], [2, 0, 5]], []]
    none = flips_of_rollouts([(flips(), 5), (flips(), 3)], rollout_M, 3)
    assert [one.shape for one in none] == [(0, 2)] * 3
    assert np.concatenate(none).dtype == np.int64
