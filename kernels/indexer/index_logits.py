"""Lightning-indexer logits I_{t,s} = Σ_j w_{t,j} · ReLU(q_{t,j} · k_s) (arXiv:2512.02556 eq. 1).

Axes: B sequences of a window, T query rows of each, S keys of each, I indexer heads, K index head width, N rows, C selected keys.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding

from samepath.kernels.backend import Backend, round_up
from samepath.kernels.gpu.loading import fused_kernels
from samepath.kernels.rows.pair_product import pair_product
from samepath.kernels.rows.row_product import widened


def index_logits(q_BTIK: Tensor, k_BSK: Tensor, weights_BTI: Tensor, backend: Backend) -> Tensor:
    """Index logits of every query row against every key of its own sequence, float32 (float64 stays) `[B, T, S]`.

    `weights_BTI` already holds the factors heads^-½ · width^-½. No causality here: `select` gets the bounds.
    """
    if q_BTIK.shape[0] != k_BSK.shape[0] or q_BTIK.shape[3] != k_BSK.shape[2] or q_BTIK.shape[:3] != weights_BTI.shape:
        raise ValueError(
            f"index_logits needs q [B,T,I,K], k [B,S,K], weights [B,T,I]; got {tuple(q_BTIK.shape)}, {tuple(k_BSK.shape)}, {tuple(weights_BTI.shape)}"
        )
    if backend == "reference":
        scores = torch.einsum("btik,bsk->btis", q_BTIK, k_BSK).relu()
        return torch.einsum("btis,bti->bts", scores, weights_BTI)
    fused = fused_kernels(backend, "index_logits", q_BTIK, k_BSK, weights_BTI)
    if fused is not None:
        return fused.index_logits(q_BTIK, k_BSK, weights_BTI)
    q_BTIK, k_BSK, weights_BTI = widened(q_BTIK), widened(k_BSK), widened(weights_BTI)
    num_sequences, num_rows, num_heads, width = q_BTIK.shape
    rows = num_rows * num_heads
    q_BRK = q_BTIK.reshape(num_sequences, rows, width)
    if rows % 16:
        q_BRK = torch.nn.functional.pad(q_BRK, (0, 0, 0, round_up(rows) - rows))
    scores_BRS = pair_product(q_BRK, k_BSK.transpose(1, 2))[:, :rows]
    scores_BTIS = scores_BRS.relu_().view(num_sequences, num_rows, num_heads, -1)
    # Head by head: a reduction's grouping may depend on the shape, this order never does.
    logits_BTS = scores_BTIS[:, :, 0] * weights_BTI[:, :, :1]
    for head in range(1, num_heads):
        logits_BTS = logits_BTS + scores_BTIS[:, :, head] * weights_BTI[:, :, head : head + 1]
    return logits_BTS


def cached_index_logits(
    q_BTIK: Tensor, keys_SK: Tensor, table_BS: Tensor, weights_BTI: Tensor, ends_BT: Tensor, backend: Backend
) -> Tensor:
    """Index logits of every query row against the rows of a key store that `table_BS` lists, `[B, T, S]`, the bits of `index_logits` on a copy.

    What stands from a row's end on may be anything: a fused backend reads keys where they are and leaves out what no row sees.

    Args:
        table_BS: int64, row of `keys_SK` of each position of a sequence. ends_BT: int64, number of positions that a query may see.
    """
    if (
        table_BS.shape[0] != q_BTIK.shape[0]
        or ends_BT.shape != q_BTIK.shape[:2]
        or weights_BTI.shape != q_BTIK.shape[:3]
    ):
        raise ValueError(
            f"cached_index_logits needs q [B,T,I,K], table [B,S], weights [B,T,I], ends [B,T]; got {tuple(q_BTIK.shape)}, "
            f"{tuple(table_BS.shape)}, {tuple(weights_BTI.shape)}, {tuple(ends_BT.shape)}"
        )
    if q_BTIK.shape[3] != keys_SK.shape[1]:
        raise ValueError(f"queries and keys must be equally wide; got {q_BTIK.shape[3]} and {keys_SK.shape[1]}")
    fused = fused_kernels(backend, "cached_index_logits", q_BTIK, keys_SK, table_BS, weights_BTI, ends_BT)
    if fused is not None:
        return fused.cached_index_logits(q_BTIK, keys_SK, table_BS, weights_BTI, ends_BT)
    # Whole rows are copied, which indexing does number by number on a CPU.
    return index_logits(q_BTIK, embedding(table_BS, keys_SK), weights_BTI, backend)


def selected_index_logits(
    q_NIK: Tensor, k_SK: Tensor, weights_NI: Tensor, indices_NC: Tensor, backend: Backend = "torch"
) -> Tensor:
    """Differentiable index logits at the selected keys only, `[N, C]`; entries of the −1 tail are those of key 0."""
    fused = fused_kernels(backend, "selected_index_logits", q_NIK, k_SK, weights_NI, indices_NC)
    if fused is not None:
        return fused.selected_index_logits(q_NIK, k_SK, weights_NI, indices_NC)
    k_NCK = k_SK[indices_NC.clamp(min=0).long()]
    return torch.einsum("nic,ni->nc", torch.einsum("nik,nck->nic", q_NIK, k_NCK).relu(), weights_NI)


def indexer_loss(selected_logits_NC: Tensor, attention_mass_NC: Tensor, count_N: Tensor) -> Tensor:
    """Per-row KL(p ‖ softmax(I)) over the selected set, `[N]` nats (arXiv:2512.02556 eq. 3, 4).

    p is the head-summed attention mass, L1-normalised, constant. Rows with at most one key give 0.
    """
    valid_NC = torch.arange(selected_logits_NC.shape[1], device=count_N.device) < count_N[:, None]
    log_probs_NC = selected_logits_NC.masked_fill(~valid_NC, -torch.inf).log_softmax(-1).masked_fill(~valid_NC, 0.0)
    teacher_NC = attention_mass_NC.detach() * valid_NC
    teacher_NC = teacher_NC / teacher_NC.sum(-1, keepdim=True).clamp(min=torch.finfo(teacher_NC.dtype).tiny)
    return (torch.xlogy(teacher_NC, teacher_NC) - teacher_NC * log_probs_NC).sum(-1)
