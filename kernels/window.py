"""Which keys each row of a batch may see, as padded grids of sequences; made by `model/plan.py`.

Axes: N rows of the batch, B sequences of a window, T query rows of a sequence, S keys of a sequence.
"""

from dataclasses import dataclass, replace

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
    """At least the largest of `ends_BT`: a bound that the host knows."""
    in_order: bool = False
    """One query a sequence, and `rows_BT` counts 0, 1, 2 …: a decoding batch."""
    hidden_BS: Tensor | None = None
    """bool, True where position s of sequence b is not seen (one query a sequence only): made once, used by every layer."""
    whole: bool = False
    """Every sequence's queries begin at its first position, so query t sees the keys up to t."""
    apart: bool = False
    """No key row belongs to two of the sequences, as in a packed batch without a common beginning: their gradients need not be added in order."""

    def part(self, start: int, stop: int) -> "Window":
        """The sequences from `start` to `stop` alone."""
        return replace(
            self,
            rows_BT=self.rows_BT[start:stop],
            ends_BT=self.ends_BT[start:stop],
            keys_BS=self.keys_BS[start:stop],
            in_order=False,
            hidden_BS=None if self.hidden_BS is None else self.hidden_BS[start:stop],
        )

    def to(self, device: torch.device) -> "Window":
        """The same on a device."""
        return replace(
            self,
            rows_BT=self.rows_BT.to(device),
            ends_BT=self.ends_BT.to(device),
            keys_BS=self.keys_BS.to(device),
            hidden_BS=None if self.hidden_BS is None else self.hidden_BS.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPlan:
    """All windows of a batch, and where each batch row's result stands in their concatenation."""

    windows: tuple[Window, ...]
    source_N: Tensor
    """int64 [N] index into the concatenated windows' queries; padding rows point at an entry that sees no key."""
    division: "Division | None" = None
    """Which rows latent attention runs in expanded form; None: all rows in absorbed form."""

    @property
    def row_by_row(self) -> bool:
        """True if batch row n is query n of the only window: its results need no other order."""
        return (
            len(self.windows) == 1 and self.windows[0].in_order and len(self.source_N) == len(self.windows[0].rows_BT)
        )

    def to(self, device: torch.device) -> "AttentionPlan":
        """The same on a device."""
        if self.source_N.device == device:
            return self
        return AttentionPlan(
            windows=tuple(window.to(device) for window in self.windows),
            source_N=self.source_N.to(device),
            division=None if self.division is None else self.division.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """A plan's rows, shared between the two forms of latent attention; made by `model/network/dispatch.py`. Axis: M rows in absorbed form."""

    absorbed: AttentionPlan
    """The plan of the M rows alone, which it numbers from 0."""
    rows_M: Tensor
    """int64, their batch rows, ascending."""
    expanded: tuple[Window, ...]
    """The windows whose attention runs with a key and a value for each head."""
    source_N: Tensor
    """int64 [N] index into the M rows, the expanded windows' queries and one entry that sees no key, in this order."""

    def to(self, device: torch.device) -> "Division":
        """The same on a device."""
        return Division(
            absorbed=self.absorbed.to(device),
            rows_M=self.rows_M.to(device),
            expanded=tuple(window.to(device) for window in self.expanded),
            source_N=self.source_N.to(device),
        )
