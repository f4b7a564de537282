"""Attention over all keys whose value is the front of the key, MLA's latent (Triton): through the kernels of sparse attention.

Every row lists all keys of its window, so that dense and sparse attention over the same keys, packed or decoded, agree to the last bit.

Axes: N query rows, H query heads, G key heads, S rows of the store, W row width, K key width, V value width, C keys of a window; B, T of a window as
in `window.py`; R rows worked on at once.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from samepath.kernels.dense_attention.triton_backward import SavedRows
from samepath.kernels.sparse_attention.triton_backward import attend_backward
from samepath.kernels.sparse_attention.triton_forward import attend_forward
from samepath.kernels.sparse_attention.triton_gradients import SavedRows as SelectedRows
from samepath.kernels.window import AttentionPlan

INDEX_ELEMENTS = 1 << 24
"""Key indices held at once where every row gets its own list of keys (64 MiB)."""


def _selections(plan: AttentionPlan, num_rows: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Some rows at a time: (rows [R], where they go, their keys int32 [R, C], key counts int32 [R]); padding has count 0 and goes to row N."""
    for window in plan.windows:
        num_sequences, num_queries = window.rows_BT.shape
        num_keys = window.keys_BS.shape[1]
        queries = max(1, min(num_queries, INDEX_ELEMENTS // max(1, num_keys)))
        sequences = max(1, INDEX_ELEMENTS // max(1, num_keys * num_queries))
        for start in range(0, num_sequences, sequences):
            keys_BS = window.keys_BS[start : start + sequences].to(torch.int32)
            for first in range(0, num_queries, queries):
                place = (slice(start, start + sequences), slice(first, first + queries))
                rows_BT, ends_BT = window.rows_BT[place], window.ends_BT[place]
                keys_BTS = keys_BS[:, None].expand(-1, rows_BT.shape[1], -1)
                targets_BT = rows_BT.masked_fill(ends_BT == 0, num_rows)
                keys_RC = keys_BTS.flatten(0, 1).contiguous()
                yield rows_BT.flatten(), targets_BT.flatten(), keys_RC, ends_BT.flatten().to(torch.int32)


def _groups(q_NHK: Tensor, rows_GSW: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(query heads, key rows [S, K]) of each key head."""
    shared = q_NHK.shape[1] // rows_GSW.shape[0]
    for group, rows_SW in enumerate(rows_GSW):
        yield slice(group * shared, (group + 1) * shared), rows_SW[:, : q_NHK.shape[2]].contiguous()


def latent_forward(
    q_NHK: Tensor, rows_GSW: Tensor, plan: AttentionPlan, scale: float, value_start: int, value_width: int
) -> tuple[Tensor, Tensor]:
    """(out, lse): each row attends to the keys that its window lists, as sparse attention does."""
    num_rows, num_heads = q_NHK.shape[:2]
    out_NHV = torch.zeros(num_rows + 1, num_heads, value_width, dtype=q_NHK.dtype, device=q_NHK.device)
    lse_NH = torch.full((num_rows + 1, num_heads), -torch.inf, dtype=torch.float32, device=q_NHK.device)
    for heads, keys_SK in _groups(q_NHK, rows_GSW):
        for rows_R, targets_R, keys_RC, count_R in _selections(plan, num_rows):
            picked = q_NHK[rows_R, heads].contiguous()
            out_NHV[targets_R, heads], lse_NH[targets_R, heads] = attend_forward(
                picked, keys_SK, keys_RC, count_R, scale, value_width
            )
    return out_NHV[:num_rows], lse_NH[:num_rows]


def latent_backward(saved: SavedRows, grad_out_NHV: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the queries and of the key rows; those of a key are added piece by piece in the plan's order."""
    q_NHK, rows_GSW = saved.q_NHK, saved.rows_GSW
    num_rows, num_heads, width = q_NHK.shape
    grad_q_NHK = torch.zeros(num_rows + 1, num_heads, width, dtype=q_NHK.dtype, device=q_NHK.device)
    sums_GSW = torch.zeros(rows_GSW.shape, dtype=torch.float32, device=rows_GSW.device)
    for group, (heads, keys_SK) in enumerate(_groups(q_NHK, rows_GSW)):
        for rows_R, targets_R, keys_RC, count_R in _selections(saved.plan, num_rows):
            part = SelectedRows(
                q_NHK=q_NHK[rows_R, heads].contiguous(),
                kv_SK=keys_SK,
                indices_NC=keys_RC,
                count_N=count_R,
                out_NHV=saved.out_NHV[rows_R, heads].contiguous(),
                lse_NH=saved.lse_NH[rows_R, heads].contiguous(),
                scale=saved.scale,
            )
            gradients = attend_backward(part, grad_out_NHV[rows_R, heads].contiguous())
            grad_q_NHK[targets_R, heads] = gradients.q_NHK
            sums_GSW[group, :, :width] += gradients.kv_SK
    return grad_q_NHK[:num_rows], sums_GSW.to(rows_GSW.dtype)
