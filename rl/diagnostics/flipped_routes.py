"""Which drawn tokens the learner's live router would have sent to other experts than the sampler recorded, and to which.

Axes: M trained tokens of a pass, L mixture-of-experts layers, N rows run, X experts chosen, F flips.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samepath.model.trace import ForwardTrace
from samepath.rl.batch.pack import PackedBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class FlippedRoutes:
    """The flips of one pass, at the rows that predict its trained tokens."""

    token_F: Tensor
    """int64 [F] trained token, its place in the pass."""
    layer_F: Tensor
    """int64 [F] place of the layer among the mixture-of-experts layers."""
    live_FX: Tensor
    """int64 [F, X] what the live router chooses, ascending."""


def flipped_routes(batch: PackedBatch, trace: ForwardTrace) -> FlippedRoutes:
    """Compare the live routes with the recorded ones; a row without a record has no flip, nor has a dense model."""
    if not trace.live_routes:
        nothing = torch.zeros(0, dtype=torch.int64)
        return FlippedRoutes(token_F=nothing, layer_F=nothing, live_FX=nothing.reshape(0, 0))
    live_LMX = torch.stack(trace.live_routes)[:, batch.rows_M].sort(-1).values
    recorded_LMX = batch.routes_LNX[:, batch.rows_M].sort(-1).values
    flips_LM = (live_LMX != recorded_LMX).any(-1) & (recorded_LMX[..., 0] >= 0)
    layer_F, token_F = flips_LM.nonzero(as_tuple=True)
    return FlippedRoutes(token_F=token_F, layer_F=layer_F, live_FX=live_LMX[layer_F, token_F])


def flips_of_rollouts(
    passes: Sequence[tuple[FlippedRoutes, int]], rollout_M: Tensor, count: int
) -> list[NDArray[np.int64]]:
    """Of each of `count` rollouts its flips as rows of `[place among its trained tokens, place of the layer, experts…]`, in this order.

    `passes` are the flips of each pass and its number of trained tokens; `rollout_M` the rollout of every token of all of them, in their order.
    """
    starts = np.cumsum([0, *(tokens for _, tokens in passes)])
    token_F = np.concatenate([flips.token_F.numpy() + start for (flips, _), start in zip(passes, starts)])
    layer_F = np.concatenate([flips.layer_F.numpy() for flips, _ in passes])
    order_M = rollout_M.argsort(stable=True)
    sizes_B = torch.bincount(rollout_M, minlength=count)
    place_M = torch.empty_like(order_M)
    place_M[order_M] = torch.arange(len(order_M)) - (sizes_B.cumsum(0) - sizes_B).repeat_interleave(sizes_B)
    wide = [flips.live_FX.numpy() for flips, _ in passes if len(flips.token_F)]
    if not wide:
        return [np.zeros((0, 2), np.int64)] * count
    rows = np.column_stack([place_M.numpy()[token_F], layer_F, np.concatenate(wide)])
    owner_F = rollout_M.numpy()[token_F]
    order_F = np.lexsort((layer_F, rows[:, 0], owner_F))
    return np.split(rows[order_F], np.cumsum(np.bincount(owner_F, minlength=count))[:-1])
