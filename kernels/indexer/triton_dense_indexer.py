"""The indexer's loss over all keys with its gradients (Triton): KL(p ‖ softmax(I)) row by row, from attention mass and index logits of some rows.

The forward keeps two numbers per row, Σ mass and logsumexp(I). The backward makes the mass again, some rows at a time, and recomputes the index
products in the kernels of `triton_dense_gradients`.

Axes: N query rows, S key rows of the store or of a window, I indexer heads, J index head width; B, T of a window as in `window.py`; C products of
one step, (query row, head) pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.gpu.loading import interpreting
from samepath.kernels.indexer.dense_indexer import Teacher
from samepath.kernels.indexer.triton_dense_gradients import key_gradients, row_gradients, tile_shape
from samepath.kernels.indexer.triton_index_logits import index_logits
from samepath.kernels.indexer.triton_mass import window_mass
from samepath.kernels.sparse_attention.triton_pairs import add_pairs_in_order
from samepath.kernels.window import AttentionPlan

PIECE_ELEMENTS = 1 << 27
"""Elements of the mass that are held at once (512 MiB), and as many index logits in the forward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """Tables of some query rows of some sequences of a window."""

    rows_BT: Tensor
    ends_BT: Tensor
    keys_BS: Tensor


def _pieces(plan: AttentionPlan) -> Iterator[_Piece]:
    """The plan's windows, cut so that one piece's mass stays within `PIECE_ELEMENTS`."""
    for window in plan.windows:
        (num_sequences, num_queries), num_keys = window.rows_BT.shape, window.keys_BS.shape[1]
        queries = max(16, min(num_queries, PIECE_ELEMENTS // num_keys // 16 * 16))
        sequences = max(1, PIECE_ELEMENTS // (num_keys * queries))
        for start in range(0, num_sequences, sequences):
            part = slice(start, start + sequences)
            for first in range(0, num_queries, queries):
                place = (part, slice(first, first + queries))
                yield _Piece(
                    rows_BT=window.rows_BT[place].contiguous(),
                    ends_BT=window.ends_BT[place].contiguous(),
                    keys_BS=window.keys_BS[part],
                )


@triton.jit
def _row_losses(mass, logits, rows, ends, losses, sums, lses, num_keys, KEYS: tl.constexpr):
    """KL of one row, Σ mass and logsumexp of its logits; rows of the padding write nothing."""
    place = tl.full((), 0, tl.int64) + tl.program_id(0)
    row = tl.load(rows + place)
    end = tl.load(ends + place).to(tl.int32)
    slots = tl.arange(0, KEYS)
    top = tl.full((KEYS,), -1e30, tl.float32)
    total, mass_sum = tl.zeros((KEYS,), tl.float32), tl.zeros((KEYS,), tl.float32)
    entropy, cross = tl.zeros((KEYS,), tl.float32), tl.zeros((KEYS,), tl.float32)
    for first in range(0, end, KEYS):
        live = first + slots < end
        p = tl.load(mass + place * num_keys + first + slots, mask=live, other=0.0)
        logit = tl.load(logits + place * num_keys + first + slots, mask=live, other=-1e30)
        new_top = tl.maximum(top, logit)
        total = total * tl.exp(top - new_top) + tl.where(live, tl.exp(logit - new_top), 0.0)
        top = new_top
        mass_sum += p
        entropy += tl.where(p > 0, p * tl.log(tl.where(p > 0, p, 1.0)), 0.0)
        cross += tl.where(live, p * logit, 0.0)
    if end > 0:
        best = tl.max(top, 0)
        lse = best + tl.log(tl.sum(total * tl.exp(top - best), 0))
        sum_p = tl.sum(mass_sum, 0)
        # Σ p̂ log p̂ − Σ p̂ I + lse with p̂ = p / Σ p.
        loss = (tl.sum(entropy, 0) - tl.sum(cross, 0)) / sum_p - tl.log(sum_p) + lse
        tl.store(losses + row, loss)
        tl.store(sums + row, sum_p)
        tl.store(lses + row, lse)


def dense_indexer_loss(
    q_NIJ: Tensor, k_SJ: Tensor, weights_NI: Tensor, teacher: Teacher, plan: AttentionPlan
) -> Tensor:
    """float32 [N] KL of each row, nats, with gradients for the index queries, keys and head weights; 0 for rows without keys."""
    losses_N: Tensor = _DenseIndexerLoss.apply(q_NIJ, k_SJ, weights_NI, teacher, plan)
    return losses_N


class _DenseIndexerLoss(torch.autograd.Function):
    """Keeps two numbers per row; the backward makes the mass and the index products again."""

    @staticmethod
    def forward(
        ctx: Any, q_NIJ: Tensor, k_SJ: Tensor, weights_NI: Tensor, teacher: Teacher, plan: AttentionPlan
    ) -> Tensor:
        q_NIJ, k_SJ, weights_NI = q_NIJ.contiguous(), k_SJ.contiguous(), weights_NI.contiguous()
        num_rows = q_NIJ.shape[0]
        losses_N, sums_N, lses_N = (torch.zeros(num_rows, dtype=torch.float32, device=k_SJ.device) for _ in range(3))
        for piece in _pieces(plan):
            mass_BTS = _mass(teacher, piece)
            bounds = (torch.zeros_like(piece.ends_BT, dtype=torch.int32), piece.ends_BT.to(torch.int32))
            logits_BTS = index_logits(q_NIJ[piece.rows_BT], k_SJ[piece.keys_BS], weights_NI[piece.rows_BT], bounds)
            _row_losses[(piece.rows_BT.numel(),)](
                mass_BTS,
                logits_BTS,
                piece.rows_BT,
                piece.ends_BT,
                losses_N,
                sums_N,
                lses_N,
                mass_BTS.shape[2],
                KEYS=16 if interpreting() else 1024,
            )
        ctx.save_for_backward(q_NIJ, k_SJ, weights_NI, sums_N, lses_N)
        ctx.teacher, ctx.plan = teacher, plan
        return losses_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_NIJ, k_SJ, weights_NI, sums_N, lses_N = ctx.saved_tensors
        num_heads, width = q_NIJ.shape[1:]
        grad_q_NIJ = torch.zeros_like(q_NIJ)
        grad_weights_NI = torch.zeros(weights_NI.shape, dtype=torch.float32, device=q_NIJ.device)
        sums_SJ = torch.zeros(k_SJ.shape, dtype=torch.float32, device=k_SJ.device)
        by_rows, by_keys = tile_shape(q_NIJ, 256, 8), tile_shape(q_NIJ, 64, 4)
        for piece in _pieces(ctx.plan):
            mass_BTS = _mass(ctx.teacher, piece)
            num_sequences, num_queries, num_keys = mass_BTS.shape
            tables = (piece.rows_BT, piece.ends_BT, piece.keys_BS)
            numbers = (sums_N, lses_N, grads[0].contiguous())
            inputs = (q_NIJ, k_SJ, weights_NI, tables, mass_BTS, numbers)
            sizes = (num_queries, num_keys, num_heads, width)
            row_gradients[(triton.cdiv(num_queries, by_rows["ROWS"]), num_sequences)](
                *inputs, grad_q_NIJ, grad_weights_NI, sizes, **by_rows
            )
            pairs = num_sequences > 1
            target = sums_SJ
            if pairs:
                target = torch.empty(num_sequences, num_keys, width, dtype=torch.float32, device=k_SJ.device)
            key_gradients[(triton.cdiv(num_keys, by_keys["KEYS"]), num_sequences)](
                *inputs, target, sizes, **by_keys, PAIRS=pairs
            )
            if pairs:
                add_pairs_in_order(target.view(-1, width), piece.keys_BS, piece.ends_BT.amax(1), 1, sums_SJ)
        return grad_q_NIJ, sums_SJ.to(k_SJ.dtype), grad_weights_NI.to(weights_NI.dtype), None, None


def _mass(teacher: Teacher, piece: _Piece) -> Tensor:
    return window_mass(
        teacher.q_NHK, teacher.kv_SK, teacher.lse_NH, piece.rows_BT, piece.ends_BT, piece.keys_BS, teacher.scale
    )
