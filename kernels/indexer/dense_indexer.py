"""The indexer's loss over all keys that a row sees: the dense warm-up (arXiv:2512.02556 eq. 3), without a selection.

Axes: N query rows, S key rows of the store, H attention heads, K key width, I indexer heads, J index head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from samepath.kernels.backend import Backend
from samepath.kernels.gpu.loading import fused_kernels
from samepath.kernels.window import AttentionPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """The main attention whose probabilities the indexer learns; constant."""

    q_NHK: Tensor
    """Queries."""
    kv_SK: Tensor
    """Key rows of the store."""
    lse_NH: Tensor
    """float32 logsumexp of each row's and head's scaled scores over the keys that it sees."""
    scale: float
    """Softmax scale."""


def dense_indexer_loss(
    q_NIJ: Tensor,
    k_SJ: Tensor,
    weights_NI: Tensor,
    teacher: Teacher,
    plan: AttentionPlan,
    backend: Backend,
) -> Tensor:
    """Per-row KL(p ‖ softmax(I)) over all keys of the row, `[N]` nats, with gradients for the indexer's queries, keys and head weights.

    p is the attention probability summed over heads, L1-normalised; I_s = Σ_j w_j · ReLU(q_j · k_s). Rows without keys give 0.
    Backends without kernels of their own go row by row: a definition to compare with.
    """
    fused = fused_kernels(backend, "dense_indexer_loss", q_NIJ, k_SJ, weights_NI, teacher.q_NHK, plan.source_N)
    if fused is not None:
        return fused.dense_indexer_loss(q_NIJ, k_SJ, weights_NI, teacher, plan)
    losses = [q_NIJ.new_zeros(())] * q_NIJ.shape[0]
    for window in plan.windows:
        for rows_T, ends_T, keys_S in zip(window.rows_BT, window.ends_BT, window.keys_BS):
            for row, end in zip(rows_T.tolist(), ends_T.tolist()):
                if end:
                    losses[row] = _row_loss(q_NIJ[row], k_SJ, weights_NI[row], teacher, row, keys_S[:end])
    return torch.stack(losses)


def _row_loss(q_IJ: Tensor, k_SJ: Tensor, weights_I: Tensor, teacher: Teacher, row: int, keys_C: Tensor) -> Tensor:
    """The definition, for one row and its keys."""
    logits_C = weights_I @ (q_IJ @ k_SJ[keys_C].T).relu()
    with torch.no_grad():
        scores_HC = teacher.q_NHK[row] @ teacher.kv_SK[keys_C].T * teacher.scale
        mass_C = (scores_HC - teacher.lse_NH[row, :, None]).exp().sum(0)
        p_C = mass_C / mass_C.sum()
    return (torch.xlogy(p_C, p_C) - p_C * logits_C.log_softmax(0)).sum()
