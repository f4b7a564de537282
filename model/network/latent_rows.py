"""What attention passes between its steps, and how the results of several windows become those of the batch's rows.

Axes: N rows, S rows of the key store, H heads, E channels of a head's query, K latent key width, V value head width, I indexer heads,
J indexer width, C selected keys, P results of all parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRows:
    """The indexer's projections."""

    q_NIJ: Tensor
    """Queries."""
    keys_SJ: Tensor
    """Keys of all rows of the store."""
    weights_NI: Tensor
    """Head weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentRows:
    """The queries of some rows and the keys of all."""

    q_nope_NHE: Tensor
    """Channels without position."""
    q_rope_NHE: Tensor
    """Rotated channels."""
    keys_SK: Tensor
    """Latents with the rotated key that all heads share."""
    index: IndexRows | None
    """None without an indexer."""

    def part(self, rows_M: Tensor) -> "LatentRows":
        """The queries of these rows."""
        index = self.index
        if index is not None:
            index = replace(index, q_NIJ=index.q_NIJ[rows_M], weights_NI=index.weights_NI[rows_M])
        return replace(self, q_nope_NHE=self.q_nope_NHE[rows_M], q_rope_NHE=self.q_rope_NHE[rows_M], index=index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The keys that each row attends to."""

    rows_NC: Tensor
    """int32 rows of the store, −1 behind the last."""
    positions_NC: Tensor
    """int32 positions in the sequence, ascending, −1 behind the last."""
    count_N: Tensor
    """int32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attended:
    """What attention gives for some rows."""

    out_NHV: Tensor
    """Before the output matrix."""
    mass_NC: Tensor | None = None
    """Head-summed probability of each selected key, if asked for."""
    selection: Selection | None = None
    """None where nothing was selected, or nobody asks what was."""


def merged_selection(parts: Sequence[Selection], source_N: Tensor, num_selected: int) -> Selection:
    """The selections of the batch's rows: `source_N` points into the parts, laid end to end, or behind them at a row without keys."""
    nothing_1C = torch.full((1, num_selected), -1, dtype=torch.int32, device=source_N.device)
    return Selection(
        rows_NC=torch.cat([*(part.rows_NC for part in parts), nothing_1C])[source_N],
        positions_NC=torch.cat([*(part.positions_NC for part in parts), nothing_1C])[source_N],
        count_N=torch.cat([*(part.count_N for part in parts), nothing_1C.new_zeros(1)])[source_N],
    )


def merged(parts: Sequence[Attended], source_N: Tensor, num_selected: int) -> Attended:
    """The same of attention's results; masses are asked of all parts or of none, selections are merged if every part has one."""
    outs = [part.out_NHV for part in parts]
    masses = [part.mass_NC for part in parts if part.mass_NC is not None]
    selections = [part.selection for part in parts if part.selection is not None]
    return Attended(
        out_NHV=torch.cat([*outs, outs[0].new_zeros(1, *outs[0].shape[1:])])[source_N],
        mass_NC=torch.cat([*masses, masses[0].new_zeros(1, num_selected)])[source_N] if masses else None,
        selection=merged_selection(selections, source_N, num_selected) if len(selections) == len(parts) else None,
    )
