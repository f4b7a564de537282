"""What the indexer learns from grouped-query attention over all keys, and how much of that attention its best keys hold.

Both go over the queries block by block, so that no more than `CHUNK_ELEMENTS` scores of all heads are held. Plain operations of torch, for
backends without kernels of their own. Axes: N query rows, S key rows, G key heads, H attention heads, K key width, I indexer heads,
J indexer width, A amounts of selected keys; T queries of a block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

# Sets the mode of MKL, which must stand before a process's first product.
import samepath.kernels.mkl_mode  # noqa: F401
from samepath.kernels.window import AttentionPlan

CHUNK_ELEMENTS = 1 << 20
"""Scores held at once (4 MiB in float32)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedTeacher:
    """The main attention whose probabilities the indexer learns; constant."""

    q_NHK: Tensor
    """Queries; head h reads key head h // (H / G)."""
    keys_GSK: Tensor
    """Key rows of the store."""
    scale: float
    """Softmax scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """Some queries of one sequence, and the keys up to the end of the last."""

    rows_T: Tensor
    keys_S: Tensor
    hidden_TS: Tensor
    """bool, True behind a query's end."""


def grouped_indexer_loss(
    q_NIJ: Tensor, k_SJ: Tensor, weights_NI: Tensor, teacher: GroupedTeacher, plan: AttentionPlan
) -> Tensor:
    """Per-row KL(p ‖ softmax(I)) over all keys of the row, `[N]` nats, with gradients for the indexer's queries, keys and head weights.

    p is the attention probability summed over heads, L1-normalised (arXiv:2512.02556 eq. 3); rows without keys give 0. The backward computes
    both again, block by block.
    """
    index = (_wide(q_NIJ), _wide(k_SJ), _wide(weights_NI))
    loss_N: Tensor = _GroupedLoss.apply(*index, _wide_teacher(teacher), plan)  # type: ignore[no-untyped-call]
    return loss_N


@torch.no_grad()
def captured_mass(
    q_NIJ: Tensor,
    k_SJ: Tensor,
    weights_NI: Tensor,
    teacher: GroupedTeacher,
    plan: AttentionPlan,
    amounts: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """The share of a row's attention over all its keys, mean over heads, that falls on so many keys, `[N, A]` each.

    First on those which the indexer scores highest, ties going to the lower position as in `select`; then on the best that could be selected: those with
    the most attention. Rows without keys give 0.
    """
    q_NIJ, k_SJ, weights_NI, teacher = _wide(q_NIJ), _wide(k_SJ), _wide(weights_NI), _wide_teacher(teacher)
    captured_NA, best_NA = weights_NI.new_zeros(2, len(q_NIJ), len(amounts))
    for block in _blocks(plan, max(teacher.q_NHK.shape[1], q_NIJ.shape[1])):
        logits_TS, _ = _logits(q_NIJ, k_SJ, weights_NI, block)
        order_TS = logits_TS.masked_fill(block.hidden_TS, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
        mass_TS = _mass(teacher, block)
        places_A = torch.tensor(amounts, device=mass_TS.device).clamp(max=mass_TS.shape[1]) - 1
        captured_NA[block.rows_T] = mass_TS.gather(1, order_TS).cumsum(1)[:, places_A]
        best_NA[block.rows_T] = mass_TS.sort(dim=-1, descending=True).values.cumsum(1)[:, places_A]
    return captured_NA, best_NA


class _GroupedLoss(torch.autograd.Function):
    """Nothing of a block outlives it."""

    @staticmethod
    def forward(
        ctx: Any, q_NIJ: Tensor, k_SJ: Tensor, weights_NI: Tensor, teacher: GroupedTeacher, plan: AttentionPlan
    ) -> Tensor:
        ctx.save_for_backward(q_NIJ, k_SJ, weights_NI)
        ctx.teacher, ctx.plan = teacher, plan
        loss_N = q_NIJ.new_zeros(len(q_NIJ))
        for block in _blocks(plan, max(teacher.q_NHK.shape[1], q_NIJ.shape[1])):
            mass_TS = _mass(teacher, block)
            logits_TS, _ = _logits(q_NIJ, k_SJ, weights_NI, block)
            log_probs_TS = logits_TS.masked_fill(block.hidden_TS, -torch.inf).log_softmax(-1)
            log_probs_TS.masked_fill_(block.hidden_TS, 0.0)
            loss_N[block.rows_T] = (torch.xlogy(mass_TS, mass_TS) - mass_TS * log_probs_TS).sum(-1)
        return loss_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_NIJ, k_SJ, weights_NI = ctx.saved_tensors
        grad_q, grad_k, grad_weights = (torch.zeros_like(tensor) for tensor in (q_NIJ, k_SJ, weights_NI))
        for block in _blocks(ctx.plan, max(ctx.teacher.q_NHK.shape[1], q_NIJ.shape[1])):
            rows_T = block.rows_T
            logits_TS, scores_TIS = _logits(q_NIJ, k_SJ, weights_NI, block)
            probs_TS = logits_TS.masked_fill(block.hidden_TS, -torch.inf).softmax(-1)
            grad_TS = probs_TS.sub_(_mass(ctx.teacher, block)).mul_(grads[0][rows_T, None])
            grad_weights[rows_T] = torch.einsum("tis,ts->ti", scores_TIS, grad_TS)
            grad_TIS = weights_NI[rows_T][..., None] * grad_TS[:, None] * (scores_TIS > 0)
            grad_q[rows_T] = torch.einsum("tis,sj->tij", grad_TIS, k_SJ[block.keys_S])
            # Serial on CPU, so the sum has one order.
            grad_k.index_add_(0, block.keys_S, torch.einsum("tis,tij->sj", grad_TIS, q_NIJ[rows_T]))
        return grad_q, grad_k, grad_weights, None, None


def _wide(values: Tensor) -> Tensor:
    """In float32 at least: index logits of lower precision tie."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _wide_teacher(teacher: GroupedTeacher) -> GroupedTeacher:
    return replace(teacher, q_NHK=_wide(teacher.q_NHK), keys_GSK=_wide(teacher.keys_GSK))


def _blocks(plan: AttentionPlan, heads: int) -> Iterator[_Block]:
    """The queries of every sequence, some at a time; those of the padding are left out."""
    for window in plan.windows:
        step = max(1, CHUNK_ELEMENTS // (heads * window.keys_BS.shape[1]))
        for all_rows_T, all_ends_T, keys_S in zip(window.rows_BT, window.ends_BT, window.keys_BS):
            live_T = all_ends_T > 0
            for rows_T, ends_T in zip(all_rows_T[live_T].split(step), all_ends_T[live_T].split(step)):
                longest = int(ends_T.max()) if len(ends_T) else 0
                if longest:
                    hidden_TS = torch.arange(longest, device=ends_T.device) >= ends_T[:, None]
                    yield _Block(rows_T=rows_T, keys_S=keys_S[:longest], hidden_TS=hidden_TS)


def _mass(teacher: GroupedTeacher, block: _Block) -> Tensor:
    """`[T, S]` attention probabilities, mean over heads: their sum, L1-normalised."""
    heads, groups = teacher.q_NHK.shape[1], len(teacher.keys_GSK)
    q_TGHK = teacher.q_NHK[block.rows_T].view(len(block.rows_T), groups, heads // groups, -1)
    total_TS = torch.zeros(block.hidden_TS.shape, dtype=q_TGHK.dtype, device=q_TGHK.device)
    for group, keys_SK in enumerate(teacher.keys_GSK):
        scores_THS = (q_TGHK[:, group] @ keys_SK[block.keys_S].T).mul_(teacher.scale)
        total_TS += scores_THS.masked_fill_(block.hidden_TS[:, None], -torch.inf).softmax(-1).sum(1)
    return total_TS / heads


def _logits(q_NIJ: Tensor, k_SJ: Tensor, weights_NI: Tensor, block: _Block) -> tuple[Tensor, Tensor]:
    """(index logits [T, S], each head's rectified scores [T, I, S])."""
    scores_TIS = (q_NIJ[block.rows_T] @ k_SJ[block.keys_S].T).relu_()
    return torch.einsum("tis,ti->ts", scores_TIS, weights_NI[block.rows_T]), scores_TIS
