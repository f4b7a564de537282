"""Sparse attention backward (Triton): some rows at a time, pair gradients from one pass over each row's tiles, then their sums for each key.

Key gradients of one key come from many rows: each (row, key) pair's gradient is written, in the keys' own type, and those of a key are added in row
order.

Axes: N query rows, S key rows, H heads, K key width, V value width, C selected keys, P pairs of a row chunk.
"""

from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from samepath.kernels.gpu.loading import interpreting
from samepath.kernels.sparse_attention.triton_deltas import row_deltas
from samepath.kernels.sparse_attention.triton_forward import fits_hopper, row_launches
from samepath.kernels.sparse_attention.triton_gradients import SavedRows, Tiles, backward_by_tiles, num_blocks
from samepath.kernels.sparse_attention.triton_pairs import pair_order, sum_pairs

PAIR_BYTES = 1 << 32
"""Memory for P, dS and the pair gradients of the rows that are worked on at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionGradients:
    """What the backward of one attention call gives."""

    q_NHK: Tensor
    """Gradient of the queries, in their type."""
    kv_SK: Tensor
    """Gradient of the key rows, in their type."""
    mass_NC: Tensor
    """float32 head-summed attention probability of each selected key, 0 in the tail."""


def attend_backward(saved: SavedRows, grad_out_NHV: Tensor, *, tiles: Tiles | None = None) -> AttentionGradients:
    """Gradients of `attend` for the upstream gradient `grad_out_NHV`; equal calls give equal bits."""
    q_NHK, kv_SK = saved.q_NHK, saved.kv_SK
    num_rows, num_selected = saved.indices_NC.shape
    tiles = tiles or default_tiles(q_NHK, grad_out_NHV.shape[2])
    gradients = AttentionGradients(
        q_NHK=torch.empty_like(q_NHK),
        kv_SK=torch.empty_like(kv_SK),
        mass_NC=torch.empty(num_rows, num_selected, dtype=torch.float32, device=kv_SK.device),
    )
    if not num_rows or not num_selected:
        gradients.q_NHK.zero_()
        gradients.kv_SK.zero_()
        return gradients
    pieces = row_launches(num_rows, _rows_at_once(saved, tiles))
    # Sums of several pieces stay in float32 until the last.
    sums_SK = torch.empty(kv_SK.shape if len(pieces) > 1 else (0,), dtype=torch.float32, device=kv_SK.device)
    for number, rows in enumerate(pieces):
        part = replace(
            saved,
            q_NHK=q_NHK[rows],
            indices_NC=saved.indices_NC[rows],
            count_N=saved.count_N[rows],
            out_NHV=saved.out_NHV[rows],
            lse_NH=saved.lse_NH[rows],
        )
        pairs_PK = _backward_rows(part, grad_out_NHV[rows], gradients.q_NHK[rows], gradients.mass_NC[rows], tiles)
        before = None if number == 0 else sums_SK
        after = gradients.kv_SK if number == len(pieces) - 1 else sums_SK
        blocks = pairs_PK.shape[0] // part.indices_NC.numel()
        order = pair_order(part.indices_NC, part.count_N, blocks, kv_SK.shape[0])
        sum_pairs(pairs_PK, order, before, after, tiles.hopper)
    return gradients


def _rows_at_once(saved: SavedRows, tiles: Tiles) -> int:
    """Rows of equal pieces whose P, dS and pairs fit into PAIR_BYTES, a multiple of 16 so that every piece is aligned like the first."""
    num_rows, num_heads, key_width = saved.q_NHK.shape
    numbers = num_heads * (2 if tiles.hopper else 1) + num_blocks(num_heads, tiles) * key_width
    most = max(1, PAIR_BYTES // (numbers * saved.indices_NC.shape[1] * saved.kv_SK.element_size()))
    rows = triton.cdiv(num_rows, triton.cdiv(num_rows, most))
    return rows if rows < 16 else min(triton.cdiv(rows, 16), max(1, most // 16)) * 16


def _backward_rows(saved: SavedRows, grad_out_NHV: Tensor, grad_q_NHK: Tensor, mass_NC: Tensor, tiles: Tiles) -> Tensor:
    """Write the query gradients and the mass of some rows; return their pair gradients [blocks · N · C, K]."""
    delta_NH = row_deltas(saved.out_NHV, grad_out_NHV)
    rows = (saved.q_NHK, saved.kv_SK, saved.indices_NC, saved.count_N, saved.lse_NH, saved.scale)
    if tiles.hopper:
        # Gluon has no interpreter, and older Triton no Gluon.
        from samepath.kernels.sparse_attention.hopper_backward import backward_rows

        pairs_PK, masses = backward_rows(*rows, grad_out_NHV, delta_NH, grad_q_NHK)
    else:
        pairs_PK, masses = backward_by_tiles(saved, grad_out_NHV, delta_NH, grad_q_NHK, tiles)
    torch.sum(masses, 0, out=mass_NC)
    return pairs_PK


def default_tiles(q_NHK: Tensor, value_width: int) -> Tiles:
    """Tiles that fit the multiprocessor for this type and width."""
    if interpreting() or q_NHK.dtype == torch.float32:
        return Tiles(heads=16, keys=16)
    if fits_hopper(q_NHK, value_width):
        return Tiles(heads=128, hopper=True)
    if q_NHK.shape[2] <= 256:
        return Tiles(num_warps=4)
    return Tiles(heads=32, keys=32, num_stages=2)
