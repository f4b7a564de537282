"""Causal attention of each query row over every key that its plan shows it, for grouped key heads and for the latent of MLA.

A key row holds key and value of one token and key head side by side; with MLA the value is a part of the key. Keys may be any rows of
the store, so sequences may share a prompt, and a paged cache needs no copy of its own. Axes: N query rows, H query heads, G key heads
(H / G query heads share one), S rows of the store, W row width, K key width, V value width; B, T, S of a window as in `window.py`; M query
rows of one key head.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from samepath.kernels.backend import Backend, backends_that
from samepath.kernels.gpu.loading import fused_kernels
from samepath.kernels.rows.pair_product import MIN_ROWS, pair_product
from samepath.kernels.rows.row_product import widened
from samepath.kernels.window import AttentionPlan, Window

CHUNK_ELEMENTS = 1 << 20
"""Scores held at once by the `torch` backend (4 MiB in float32)."""

KEY_BLOCK = 128
"""Keys of one product with the probabilities; blocks are added in order. A longer inner dimension may be cut anywhere by the library,
and then a row's bits would depend on how far its neighbours reach (measured: from 208 on)."""


def dense_attend(
    q_NHK: Tensor,
    rows_GSW: Tensor,
    plan: AttentionPlan,
    *,
    scale: float,
    value_start: int,
    value_width: int,
    backend: Backend,
) -> Tensor:
    """softmax(scale · q·k) · v over the keys of each row, `[N, H, V]`, with gradients for `q` and the key rows.

    Args:
        q_NHK: queries; head h reads key head h // (H / G). rows_GSW: the first K channels are the key, V channels from `value_start` on the value.
        plan: which rows of the store each query sees; a row that sees none gives 0.

    A row's bits depend on its own keys alone (`torch` backend: float32 on CPU). Raises ValueError on shapes that do not fit.
    """
    heads, width = q_NHK.shape[1:]
    if heads % rows_GSW.shape[0] or width > rows_GSW.shape[2] or value_start + value_width > rows_GSW.shape[2]:
        raise ValueError(
            f"dense_attend needs q [N,H,K] and rows [G,S,W] with G dividing H, K ≤ W and the value inside the row; got {tuple(q_NHK.shape)}, "
            f"{tuple(rows_GSW.shape)}, value {value_start} … {value_start + value_width}"
        )
    value = slice(value_start, value_start + value_width)
    if backend == "reference":
        return _attend_reference(q_NHK, rows_GSW, plan, scale, value)
    fused = fused_kernels(backend, "dense_attend", q_NHK, rows_GSW, plan.source_N)
    if fused is not None:
        return fused.dense_attend(q_NHK, rows_GSW, plan, scale, value_start, value_width)[0]
    return _attend(q_NHK, rows_GSW, plan, scale, value)


def dense_attend_with_lse(
    q_NHK: Tensor,
    rows_GSW: Tensor,
    plan: AttentionPlan,
    *,
    scale: float,
    value_start: int,
    value_width: int,
    backend: Backend,
) -> tuple[Tensor, Tensor]:
    """`dense_attend`, and the natural logsumexp of each row's and head's scaled scores, float32 `[N, H]` without gradient.

    A row that sees no key has −inf. Raises ValueError if the backend is not a fused one.
    """
    fused = fused_kernels(backend, "dense_attend_with_lse", q_NHK, rows_GSW, plan.source_N)
    if fused is None:
        raise ValueError(f"dense_attend_with_lse needs backend {backends_that('fused')}; got {backend}")
    return fused.dense_attend(q_NHK, rows_GSW, plan, scale, value_start, value_width)


def _attend_reference(q_NHK: Tensor, rows_GSW: Tensor, plan: AttentionPlan, scale: float, value: slice) -> Tensor:
    """The definition: one masked softmax over the whole store, query head by query head."""
    seen_NS = torch.zeros(q_NHK.shape[0], rows_GSW.shape[1], dtype=torch.bool, device=q_NHK.device)
    for window in plan.windows:
        for rows_T, ends_T, keys_S in zip(window.rows_BT, window.ends_BT, window.keys_BS):
            for row, end in zip(rows_T.tolist(), ends_T.tolist()):
                seen_NS[row, keys_S[:end]] = True
    shared = q_NHK.shape[1] // rows_GSW.shape[0]
    outs = []
    for head in range(q_NHK.shape[1]):
        rows_SW = rows_GSW[head // shared]
        scores_NS = q_NHK[:, head] @ rows_SW[:, : q_NHK.shape[2]].T * scale
        probs_NS = torch.nan_to_num(scores_NS.masked_fill(~seen_NS, -torch.inf).softmax(-1), nan=0.0)
        outs.append(probs_NS @ rows_SW[:, value])
    return torch.stack(outs, 1)


def _parts(plan: AttentionPlan, heads: int) -> Iterator[Window]:
    """The plan's windows, cut by sequences so that the scores of one part stay within `CHUNK_ELEMENTS`."""
    for window in plan.windows:
        num_sequences, num_queries = window.rows_BT.shape
        step = max(1, CHUNK_ELEMENTS // (num_queries * heads * window.keys_BS.shape[1]))
        if step >= num_sequences:
            yield window
            continue
        for start in range(0, num_sequences, step):
            yield window.part(start, start + step)


def _attend(q_NHK: Tensor, rows_GSW: Tensor, plan: AttentionPlan, scale: float, value: slice) -> Tensor:
    if torch.is_grad_enabled() and (q_NHK.requires_grad or rows_GSW.requires_grad):
        return _DenseAttention.apply(q_NHK, rows_GSW, plan, scale, value)  # type: ignore[no-any-return,no-untyped-call]
    return _attend_windows(widened(q_NHK), widened(rows_GSW), plan, scale, value).to(q_NHK.dtype)


def _attend_windows(q_NHK: Tensor, rows_GSW: Tensor, plan: AttentionPlan, scale: float, value: slice) -> Tensor:
    """Masked products over each window's grid."""
    num_heads, key_width = q_NHK.shape[1:]
    num_groups = rows_GSW.shape[0]
    outs = []
    for part in _parts(plan, num_heads):
        keys = _gather(rows_GSW, part)
        queries = _to_grid(q_NHK, part, num_groups, scale)
        probs = _probabilities(queries, keys[:, :, :key_width], part, num_heads // num_groups)
        outs.append(_from_grid(_weighted_sum(probs, keys[:, :, value]), part, num_groups, num_heads))
    return _to_rows(outs, plan)


class _DenseAttention(torch.autograd.Function):
    """The backward recomputes the probabilities instead of storing them."""

    @staticmethod
    def forward(ctx: Any, q_NHK: Tensor, rows_GSW: Tensor, plan: AttentionPlan, scale: float, value: slice) -> Tensor:
        out_NHV = _attend_windows(q_NHK, rows_GSW, plan, scale, value)
        ctx.save_for_backward(q_NHK, rows_GSW, out_NHV)
        ctx.plan, ctx.scale, ctx.value = plan, scale, value
        return out_NHV

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_NHK, rows_GSW, out_NHV = ctx.saved_tensors
        plan, scale, value = ctx.plan, ctx.scale, ctx.value
        num_heads, key_width = q_NHK.shape[1:]
        num_groups = rows_GSW.shape[0]
        delta_NH1 = (grads[0] * out_NHV).sum(-1, keepdim=True)
        grad_rows_GSW, grads_q = torch.zeros_like(rows_GSW), []
        for part in _parts(plan, num_heads):
            keys = _gather(rows_GSW, part)
            queries = _to_grid(q_NHK, part, num_groups, scale)
            # Rows of the padding take the gradient of row 0 with them: they must not reach the keys.
            live = (part.ends_BT > 0).flatten()[:, None, None]
            grad_out = _to_grid(grads[0], part, num_groups, live)
            probs = _probabilities(queries, keys[:, :, :key_width], part, num_heads // num_groups)
            grad_scores = torch.bmm(grad_out, keys[:, :, value].transpose(1, 2))
            grad_scores.sub_(_to_grid(delta_NH1, part, num_groups, live)).mul_(probs)
            grads_q.append(
                _from_grid(torch.bmm(grad_scores, keys[:, :, :key_width]).mul_(scale), part, num_groups, num_heads)
            )
            grad_keys = torch.zeros_like(keys)
            grad_keys[:, :, :key_width] = torch.bmm(grad_scores.transpose(1, 2), queries)
            grad_keys[:, :, value] += torch.bmm(probs.transpose(1, 2), grad_out)
            for group, grad_BSW in enumerate(grad_keys.view(num_groups, -1, keys.shape[2])):
                # Serial on CPU, so the sum has one order; keys beyond a sequence's end carry exact zeros to row 0.
                grad_rows_GSW[group].index_add_(0, part.keys_BS.flatten(), grad_BSW)
        return _to_rows(grads_q, plan), grad_rows_GSW, None, None, None


def _gather(rows_GSW: Tensor, part: Window) -> Tensor:
    """`[G·B, S, W]` key rows of every sequence."""
    keys = rows_GSW.index_select(1, part.keys_BS.flatten())
    return keys.view(-1, part.keys_BS.shape[1], rows_GSW.shape[2])


def _to_grid(values_NHK: Tensor, part: Window, num_groups: int, factor: Tensor | float) -> Tensor:
    """`[G·B, M, K]`: `factor` times the queries of each key head, position by position, padded with 0 to `MIN_ROWS`."""
    num_sequences, num_queries = part.rows_BT.shape
    num_heads, width = values_NHK.shape[1:]
    shared = num_heads // num_groups
    picked = values_NHK[:num_sequences] if part.in_order else values_NHK.index_select(0, part.rows_BT.flatten())
    if isinstance(factor, Tensor):
        picked, factor = picked * factor, 1.0
    num_rows = num_queries * shared
    shape = (num_groups, num_sequences, max(num_rows, MIN_ROWS), width)
    grid = picked.new_zeros(shape) if num_rows < MIN_ROWS else picked.new_empty(shape)
    target = grid[:, :, :num_rows].view(num_groups, num_sequences, num_queries, shared, width)
    torch.mul(
        picked.view(num_sequences, num_queries, num_groups, shared, width).permute(2, 0, 1, 3, 4), factor, out=target
    )
    return grid.view(-1, *shape[2:])


def _from_grid(grid: Tensor, part: Window, num_groups: int, num_heads: int) -> Tensor:
    """`[B·T, H, V]` back from `[G·B, M, V]`."""
    num_sequences, num_queries = part.rows_BT.shape
    shared = num_heads // num_groups
    values = grid[:, : num_queries * shared].view(num_groups, num_sequences, num_queries, shared, -1)
    return values.permute(1, 2, 0, 3, 4).reshape(num_sequences * num_queries, num_heads, -1)


def _to_rows(grids: list[Tensor], plan: AttentionPlan) -> Tensor:
    """Put the windows' results into the order of the batch; padding rows get 0."""
    if len(plan.windows) == len(grids) == 1 and plan.windows[0].in_order and len(plan.source_N) == len(grids[0]):
        return grids[0]
    nothing = grids[0].new_zeros(1, *grids[0].shape[1:])
    return torch.cat([*grids, nothing]).index_select(0, plan.source_N)


def _probabilities(queries: Tensor, keys: Tensor, part: Window, shared: int) -> Tensor:
    """`[G·B, M, S]`. Masked keys have probability 0, which ends a sum without changing it, so a row's bits do not depend on S.

    `shared` query heads read one key head, so M is `shared` rows a position, and padding.
    """
    num_sequences = part.rows_BT.shape[0]
    scores = pair_product(queries, keys.transpose(1, 2))
    hidden_BMS = _hidden(part, queries.shape[1], shared) if part.hidden_BS is None else part.hidden_BS[:, None]
    scores.view(-1, num_sequences, *scores.shape[1:]).masked_fill_(hidden_BMS, -torch.inf)
    return scores.softmax(-1)


def _hidden(part: Window, num_rows: int, shared: int) -> Tensor:
    """bool `[B, M, S]`, True for keys behind a query's end. Queries of the padding see key 0 rather than nothing, which would be NaN."""
    ends_BM = part.ends_BT.clamp(min=1)
    if part.rows_BT.shape[1] > 1:
        ends_BM = ends_BM.repeat_interleave(shared, 1)
        ends_BM = pad(ends_BM, (0, num_rows - ends_BM.shape[1]), value=1)
    return torch.arange(part.keys_BS.shape[1], device=ends_BM.device) >= ends_BM[:, :, None]


def _weighted_sum(probs: Tensor, values: Tensor) -> Tensor:
    """probs · values, in blocks of `KEY_BLOCK` keys added in order."""
    if probs.shape[2] <= KEY_BLOCK:
        return pair_product(probs, values)
    total = pair_product(probs[:, :, :KEY_BLOCK], values[:, :KEY_BLOCK])
    for start in range(KEY_BLOCK, probs.shape[2], KEY_BLOCK):
        block = slice(start, start + KEY_BLOCK)
        total += pair_product(probs[:, :, block], values[:, block])
    return total
