"""Attention over all keys whose value is the front of the key, MLA's latent (Triton): forward through sparse attention, backward by whole products.

Forward: every row lists all keys of its window, so that dense and sparse attention over the same keys, packed or decoded, agree to the last bit.
Backward: one kernel writes P and dS of some rows, each product done once, and the matrix library multiplies them with keys, queries and output
gradients; a tile of a 576 wide gradient would not fit beside its inputs in a kernel of its own.

Axes: N query rows, H query heads, G key heads, S rows of the store, W row width, K key width, V value width, C keys of a window; B, T of a window as
in `window.py`; R rows worked on at once, M (row, head) pairs.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.triton_attention_backward import add_pairs_in_order, row_deltas
from samepath.kernels.triton_attention_forward import LOG2_E, attend_forward
from samepath.kernels.triton_dense_backward import SavedRows
from samepath.kernels.triton_loading import interpreting
from samepath.kernels.triton_product import operand_type
from samepath.kernels.window import AttentionPlan, Window

INDEX_ELEMENTS = 1 << 24
"""Key indices held at once where every row gets its own list of keys (64 MiB)."""

SCORE_ELEMENTS = 1 << 28
"""Elements of P, and as many of dS, held at once (512 MiB each in bfloat16)."""


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


@triton.jit
def _product_tile(left, left_rows, left_live, right, right_rows, right_live, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
                  M: tl.constexpr, KEYS: tl.constexpr, OPERAND: tl.constexpr):  # fmt: skip
    """left · rightᵀ [M, KEYS] of rows of the given width, CHUNK channels a step."""
    total = tl.zeros((M, KEYS), tl.float32)
    for first in range(0, WIDTH, CHUNK):
        channel = first + tl.arange(0, CHUNK)
        inside = (channel < WIDTH)[None, :]
        a = tl.load(left + left_rows[:, None] + channel[None, :], mask=left_live[:, None] & inside, other=0.0)
        b = tl.load(right + right_rows[:, None] + channel[None, :], mask=right_live[:, None] & inside, other=0.0)
        total = tl.dot(a.to(OPERAND), tl.trans(b.to(OPERAND)), total, input_precision="ieee")
    return total


@triton.jit
def _pair_scores(
    q,
    keys,
    grad_out,
    lse,
    delta,
    ends,
    probs,
    grads,
    scale,
    num_pairs,
    num_keys,
    num_heads,
    KEY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    M: tl.constexpr,
    KEYS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """P and dS of a tile of (row, head) pairs and a tile of keys of one sequence; 0 for keys that a row does not see."""
    sequence = tl.full((), 0, tl.int64) + tl.program_id(2)
    pair = tl.program_id(1) * M + tl.arange(0, M)
    key = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    live, inside = pair < num_pairs, key < num_keys
    place = sequence * num_pairs + pair
    end = tl.load(ends + place // num_heads, mask=live, other=0).to(tl.int32)
    p = tl.zeros((M, KEYS), tl.float32)
    ds = p
    if tl.program_id(0) * KEYS < tl.max(end, 0):
        key_rows = (sequence * num_keys + key) * KEY_WIDTH
        scores = _product_tile(q, place * KEY_WIDTH, live, keys, key_rows, inside, KEY_WIDTH, CHUNK, M, KEYS, OPERAND)
        grad_probs = _product_tile(
            grad_out, place * VALUE_WIDTH, live, keys, key_rows, inside, VALUE_WIDTH, CHUNK, M, KEYS, OPERAND
        )
        lse_M = tl.load(lse + place, mask=live, other=float("inf")) * LOG2_E
        delta_M = tl.load(delta + place, mask=live, other=0.0)
        p = tl.where(key[None, :] < end[:, None], tl.exp2(scores * (scale * LOG2_E) - lse_M[:, None]), 0.0)
        ds = p * (grad_probs - delta_M[:, None]) * scale
    target = place[:, None] * num_keys + key[None, :]
    keep = live[:, None] & inside[None, :]
    tl.store(probs + target, p.to(probs.dtype.element_ty), mask=keep)
    tl.store(grads + target, ds.to(grads.dtype.element_ty), mask=keep)


def latent_backward(saved: SavedRows, grad_out_NHV: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the queries and of the key rows; those of a key are added piece by piece in the plan's order."""
    q_NHK, rows_GSW = saved.q_NHK, saved.rows_GSW
    num_rows, num_heads, width = q_NHK.shape
    grad_q_NHK = torch.zeros(num_rows + 1, num_heads, width, dtype=q_NHK.dtype, device=q_NHK.device)
    sums_GSW = torch.zeros(rows_GSW.shape, dtype=torch.float32, device=rows_GSW.device)
    delta_NH = row_deltas(saved.out_NHV, grad_out_NHV) if grad_out_NHV.numel() else saved.lse_NH
    for group, (heads, keys_SK) in enumerate(_groups(q_NHK, rows_GSW)):
        rows = (q_NHK[:, heads], grad_out_NHV[:, heads], saved.lse_NH[:, heads], delta_NH[:, heads])
        sums_SK = sums_GSW[group, :, :width].contiguous()
        for window in saved.plan.windows:
            _window_gradients(rows, keys_SK, window, saved.scale, grad_q_NHK[:, heads], sums_SK)
        sums_GSW[group, :, :width] = sums_SK
    return grad_q_NHK[:num_rows], sums_GSW.to(rows_GSW.dtype)


def _window_gradients(
    rows: tuple[Tensor, Tensor, Tensor, Tensor],
    keys_SK: Tensor,
    window: Window,
    scale: float,
    grad_q_NHK: Tensor,
    sums_SK: Tensor,
) -> None:
    """Write the query gradients of a window's rows and add their key gradients, some sequences and queries at a time."""
    num_sequences, num_queries = window.rows_BT.shape
    most_keys, num_heads = window.keys_BS.shape[1], rows[0].shape[1]
    queries = max(1, min(num_queries, SCORE_ELEMENTS // (num_heads * most_keys)))
    sequences = max(1, SCORE_ELEMENTS // (num_heads * most_keys * queries))
    for start in range(0, num_sequences, sequences):
        part = slice(start, start + sequences)
        keys_BS = window.keys_BS[part]
        keys_BSK = keys_SK[keys_BS]
        totals = [
            torch.zeros(*keys_BS.shape, width, dtype=torch.float32, device=keys_SK.device)
            for width in (keys_SK.shape[1], rows[1].shape[2])
        ]
        for first in range(0, num_queries, queries):
            place = (part, slice(first, first + queries))
            rows_BT, ends_BT = window.rows_BT[place].contiguous(), window.ends_BT[place].contiguous()
            # Where a sequence's queries begin with it, none of these sees a key behind the last of them.
            num_keys = min(most_keys, first + queries) if window.whole else most_keys
            grid = tuple(values[rows_BT].flatten(1, 2) for values in rows)
            grad_BMK = _piece_gradients(grid, keys_BSK[:, :num_keys], ends_BT, scale, [t[:, :num_keys] for t in totals])
            targets_BT = rows_BT.masked_fill(ends_BT == 0, len(grad_q_NHK) - 1)
            grad_q_NHK[targets_BT] = grad_BMK.view(*rows_BT.shape, num_heads, -1)
        totals[0][..., : totals[1].shape[2]] += totals[1]
        add_pairs_in_order(totals[0].flatten(0, 1), keys_BS, window.ends_BT[part].amax(1), 1, sums_SK)


def _piece_gradients(
    grid: tuple[Tensor, ...], keys_BSK: Tensor, ends_BT: Tensor, scale: float, totals: list[Tensor]
) -> Tensor:
    """dQ [B, M, K] of some rows; adds to the totals of dK [B, S, K] and dV [B, S, V]. `grid`: q, output gradients, LSE, Σ dO·O, by (row, head)."""
    q_BMK, grad_BMV, lse_BM, delta_BM = grid
    keys_BSK = keys_BSK.contiguous()
    num_sequences, num_pairs, width = q_BMK.shape
    num_keys, num_heads = keys_BSK.shape[1], num_pairs // ends_BT.shape[1]
    probs_BMS, grads_BMS = (
        torch.empty(num_sequences, num_pairs, num_keys, dtype=q_BMK.dtype, device=q_BMK.device) for _ in range(2)
    )
    shape = _tile_shape(q_BMK.dtype)
    _pair_scores[(triton.cdiv(num_keys, shape["KEYS"]), triton.cdiv(num_pairs, shape["M"]), num_sequences)](
        q_BMK,
        keys_BSK,
        grad_BMV,
        lse_BM,
        delta_BM,
        ends_BT,
        probs_BMS,
        grads_BMS,
        scale,
        num_pairs,
        num_keys,
        num_heads,
        KEY_WIDTH=width,
        VALUE_WIDTH=grad_BMV.shape[2],
        OPERAND=operand_type(q_BMK.dtype),
        **shape,
    )
    _add_products(totals[0], grads_BMS.transpose(1, 2), q_BMK)
    _add_products(totals[1], probs_BMS.transpose(1, 2), grad_BMV)
    return torch.bmm(grads_BMS, keys_BSK)


def _add_products(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left · right, sequence by sequence, with a float32 sum."""
    if left.dtype == torch.float32:
        total.baddbmm_(left, right)
    else:
        total += torch.bmm(left, right, out_dtype=torch.float32)


def _tile_shape(dtype: torch.dtype) -> dict[str, int]:
    if interpreting():
        return {"M": 16, "KEYS": 16, "CHUNK": 16, "num_warps": 4, "num_stages": 1}
    if dtype == torch.float32:
        return {"M": 32, "KEYS": 32, "CHUNK": 32, "num_warps": 4, "num_stages": 1}
    return {"M": 128, "KEYS": 128, "CHUNK": 64, "num_warps": 8, "num_stages": 3}
