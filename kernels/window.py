"""Which keys each row of a batch may see, as padded grids of sequences; made by `model/plan.py`.

Axes: N rows of the batch, B sequences of a window, T query rows of a sequence, S keys of a sequence.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Some sequences of similar length, on a padded grid."""

    rows_BT: Tensor
    """int64, batch row of each query; padding repeats row 0."""
    ends_BT: Tensor
    """int64, number of keys the query may see (its position + 1); 0 for padding."""
    keys_BS: Tensor
    """int64, row of the key store of each position; padding is 0. S is a multiple of 16."""
    longest: int
    """Largest of `ends_BT`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPlan:
    """All windows of a batch, and where each batch row's result stands in their concatenation."""

    windows: tuple[Window, ...]
    source_N: Tensor
    """int64 [N] index into the concatenated windows' queries; padding rows point at an entry that sees no key."""

    def to(self, device: torch.device) -> "AttentionPlan":
        """The same plan with its tensors on `device`; plans are made on the CPU."""
        windows = tuple(
            Window(
                rows_BT=window.rows_BT.to(device),
                ends_BT=window.ends_BT.to(device),
                keys_BS=window.keys_BS.to(device),
                longest=window.longest,
            )
            for window in self.windows
        )
        return AttentionPlan(windows=windows, source_N=self.source_N.to(device))
