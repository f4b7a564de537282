"""Attention over all keys of a window (Triton), backward: sequences of a window in turn, and the key gradients of rows that several of them share.

A key's gradient within a sequence is one program's sum over the queries in order; where several sequences of a window may share rows of the store,
each writes its own and those of a row are added in order; windows follow one another.

Axes: N query rows, H query heads, G key heads, S rows of the store, W row width, V value width; B, T, S of a window as in `window.py`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from samepath.kernels.dense_attention.triton_forward import fits_hopper
from samepath.kernels.dense_attention.triton_gradients import BackwardTiles, launch_gradients
from samepath.kernels.sparse_attention.triton_deltas import row_deltas
from samepath.kernels.sparse_attention.triton_pairs import add_pairs_in_order
from samepath.kernels.window import AttentionPlan, Window

PAIR_BYTES = 1 << 30
"""Memory for the key gradients of the sequences of one window that are worked on at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRows:
    """What the forward leaves for the backward, all contiguous."""

    q_NHK: Tensor
    rows_GSW: Tensor
    out_NHV: Tensor
    lse_NH: Tensor
    plan: AttentionPlan
    scale: float
    value_start: int


def attend_backward(
    saved: SavedRows, grad_out_NHV: Tensor, tiles: BackwardTiles | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of the queries and of the key rows `[G, S, W]`, in their types; equal calls give equal bits."""
    q_NHK, rows_GSW = saved.q_NHK, saved.rows_GSW
    num_groups, num_rows, width = rows_GSW.shape
    grad_q_NHK = torch.zeros_like(q_NHK)
    sums_SGW = torch.zeros(num_rows, num_groups, width, dtype=torch.float32, device=rows_GSW.device)
    hopper = tiles is None and fits_hopper(q_NHK, rows_GSW, saved.value_start, grad_out_NHV.shape[2])
    # The kernels written for Hopper add Σ dO·O themselves.
    delta_NH = saved.lse_NH if hopper or not grad_out_NHV.numel() else row_deltas(saved.out_NHV, grad_out_NHV)
    for window in saved.plan.windows:
        num_sequences, num_keys = window.keys_BS.shape
        step = max(1, PAIR_BYTES // (4 * num_keys * num_groups * width))
        for start in range(0, num_sequences, step):
            part = _Part(window, slice(start, start + step))
            _window_gradients(saved, grad_out_NHV, delta_NH, part, (grad_q_NHK, sums_SGW), tiles)
    return grad_q_NHK, sums_SGW.transpose(0, 1).to(rows_GSW.dtype)


class _Part:
    """Tables of some sequences of a window."""

    def __init__(self, window: Window, sequences: slice) -> None:
        self.rows_BT = window.rows_BT[sequences]
        self.ends_BT = window.ends_BT[sequences]
        self.keys_BS = window.keys_BS[sequences]
        self.apart = window.apart


def _window_gradients(
    saved: SavedRows,
    grad_out_NHV: Tensor,
    delta_NH: Tensor,
    part: _Part,
    gradients: tuple[Tensor, Tensor],
    tiles: BackwardTiles | None,
) -> None:
    """Write the query gradients of some sequences and add their key gradients."""
    grad_q_NHK, sums_SGW = gradients
    (num_sequences, num_queries), num_keys = part.rows_BT.shape, part.keys_BS.shape[1]
    num_groups, width = sums_SGW.shape[1:]
    num_heads = saved.q_NHK.shape[1]
    # One sequence has each row at most once; several may share some.
    pairs = num_sequences > 1 and not part.apart
    target = sums_SGW
    if pairs:
        target = torch.empty(num_sequences, num_keys, num_groups, width, dtype=torch.float32, device=sums_SGW.device)
    inputs = (
        saved.q_NHK,
        saved.rows_GSW,
        grad_out_NHV,
        part.rows_BT,
        part.ends_BT,
        part.keys_BS,
        saved.lse_NH,
        delta_NH,
    )
    sizes = (
        num_queries,
        num_keys,
        num_heads,
        num_heads // num_groups,
        saved.rows_GSW.stride(0),
        width,
        saved.value_start,
    )
    if tiles is None and fits_hopper(saved.q_NHK, saved.rows_GSW, saved.value_start, grad_out_NHV.shape[2]):
        # Gluon has no interpreter, and older Triton no Gluon.
        from samepath.kernels.dense_attention.hopper_backward import backward

        backward(inputs[:6], (saved.out_NHV, saved.lse_NH), (grad_q_NHK, target), saved.scale, sizes[3:], pairs)
    else:
        launch_gradients(inputs, sizes, (grad_q_NHK, target), saved.scale, grad_out_NHV.shape[2], tiles, pairs)
    if pairs:
        longest_B = part.ends_BT.amax(1)
        add_pairs_in_order(target.view(-1, num_groups * width), part.keys_BS, longest_B, 1, sums_SGW.flatten(1))
