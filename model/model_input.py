"""One batch of token rows as a network takes it.

Axes: N rows (a multiple of 16), L mixture-of-experts layers, X experts chosen.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from samepath.kernels.window import AttentionPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInput:
    """One batch of token rows, from any number of sequences."""

    token_ids_N: Tensor
    """int64 [N], padding rows hold any id. N is a multiple of 16 so that every row's bits stand alone."""
    positions_N: Tensor
    """int64 [N], position in its own sequence."""
    plan: AttentionPlan
    """Which keys each row may see."""
    replay_LNX: Tensor | None = None
    """int64 [L_moe, N, X] routes to follow, −1 rows are routed live; None: all live."""

    def to(self, device: torch.device) -> "ModelInput":
        """The same on a device; itself where it is there already."""
        if self.token_ids_N.device == device:
            return self
        return ModelInput(
            token_ids_N=self.token_ids_N.to(device),
            positions_N=self.positions_N.to(device),
            plan=self.plan.to(device),
            replay_LNX=None if self.replay_LNX is None else self.replay_LNX.to(device),
        )
