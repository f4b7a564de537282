"""How closely the learner followed the sampler's path in one update: route flips, missing rows, expert load, selections.

Axes: N rows run, R rows of all sequences (a shared prompt counts for each of them), L mixture-of-experts layers (A: all layers),
X experts chosen, E experts, B rollouts of a pass.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samepath.model.shape import ModelShape
from samepath.model.trace import ForwardTrace
from samepath.rl.batch.pack import PackedBatch
from samepath.rl.diagnostics.routing import routing_metrics, selection_metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class PassFlips:
    """Of each rollout of a pass, what its mean of flips is made from."""

    flips_B: Tensor
    """[B] sum over its rows of the share of layers whose live route differs."""
    rows_B: Tensor
    """int64 [B] its rows."""


class PathCounts:
    """Sums over the passes of one update."""

    def __init__(self, shape: ModelShape) -> None:
        self._shape = shape
        layers = len(shape.moe_layers)
        self._rows, self._fingerprinted = 0, 0
        self._flips_L, self._missing_L = np.zeros(layers, np.int64), np.zeros(layers, np.int64)
        self._counts_LE = np.zeros((layers, shape.n_routed_experts), np.int64)
        self._mismatch_A = np.zeros(len(shape.sparse_layers), np.int64)
        self.last_flips = PassFlips(flips_B=torch.zeros(0), rows_B=torch.zeros(0, dtype=torch.int64))

    def add(self, batch: PackedBatch, trace: ForwardTrace, replayed: bool) -> None:
        """Count one pass. Without replay the flips are against the routes that the sampler recorded all the same."""
        rows_R = batch.rows_R
        self._rows += len(rows_R)
        if batch.fingerprints_NL is not None and self._shape.sparse_layers:
            mismatch_NA = trace.stacked_fingerprints() != batch.fingerprints_NL
            self._mismatch_A += mismatch_NA[rows_R].sum(0).numpy()
            self._fingerprinted += len(rows_R)
        rows_B = torch.bincount(batch.rollout_R)
        self.last_flips = PassFlips(flips_B=torch.zeros(len(rows_B)), rows_B=rows_B)
        if not trace.routes:
            return
        live_LNX = torch.stack(trace.live_routes).sort(-1).values
        recorded_LNX = (torch.stack(trace.routes) if replayed else batch.routes_LNX).sort(-1).values
        missing_LR = batch.routes_LNX[:, rows_R, 0] < 0
        flips_LR = (live_LNX != recorded_LNX).any(-1)[:, rows_R] & ~missing_LR
        self._flips_L += flips_LR.sum(1).numpy()
        self._missing_L += missing_LR.sum(1).numpy()
        for layer, routes_NX in enumerate(trace.routes):
            self._counts_LE[layer] += torch.bincount(
                routes_NX[rows_R].flatten(), minlength=self._shape.n_routed_experts
            ).numpy()
        share_R = flips_LR.float().mean(0)
        self.last_flips = PassFlips(
            flips_B=torch.zeros(len(rows_B)).index_add_(0, batch.rollout_R, share_R), rows_B=rows_B
        )

    def merge(self, other: "PathCounts") -> None:
        """Take what another counted of other passes."""
        self._rows += other._rows
        self._fingerprinted += other._fingerprinted
        self._flips_L += other._flips_L
        self._missing_L += other._missing_L
        self._counts_LE += other._counts_LE
        self._mismatch_A += other._mismatch_A
        self.last_flips = other.last_flips

    @property
    def flip_rate(self) -> float:
        """Share of recorded (row, layer) whose live choice differs."""
        total = self._rows * len(self._flips_L) - int(self._missing_L.sum())
        return int(self._flips_L.sum()) / total if total else 0.0

    def metrics(self) -> dict[str, float]:
        """`routing/…` of this update."""
        selection = {}
        if self._fingerprinted:
            selection = selection_metrics(self._shape.sparse_layers, self._mismatch_A, self._fingerprinted)
        if not self._shape.moe_layers:
            return selection
        return {
            **selection,
            **routing_metrics(self._shape.moe_layers, self._flips_L, self._missing_L, self._rows, self._counts_LE),
        }
