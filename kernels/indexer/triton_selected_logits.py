"""Index logits at the selected keys with gradients (Triton): the indexer's training path, one program a query row.

Gradients of a key come from many rows; as in the attention's backward, each (row, key) pair writes its own, and a key's are added in row order.
Axes: N query rows, S key rows, I indexer heads, K index head width, C selected keys.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.gpu.loading import interpreting
from samepath.kernels.gpu.tiles import operand_type
from samepath.kernels.sparse_attention.triton_pairs import add_pairs_in_order

PAIR_BYTES = 1 << 31
"""Memory for the pair gradients of the rows that are worked on at once."""


def selected_index_logits(q_NIK: Tensor, k_SK: Tensor, weights_NI: Tensor, indices_NC: Tensor) -> Tensor:
    """float32 [N, C] logits at the given keys; an index of −1 counts as key 0."""
    logits_NC: Tensor = _SelectedLogits.apply(q_NIK, k_SK, weights_NI, indices_NC)
    return logits_NC


@triton.jit
def _scores(
    q,
    k,
    indices,
    row,
    slots,
    num_heads,
    num_selected,
    width,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """(q of all heads [HEADS, WIDTH], keys [KEYS, WIDTH], their products [KEYS, HEADS]) of some slots of a row."""
    head = tl.arange(0, HEADS)
    channel = tl.arange(0, WIDTH)
    inside = (channel < width)[None, :]
    q_HK = tl.load(
        q + (row * num_heads + head)[:, None] * width + channel[None, :],
        mask=(head < num_heads)[:, None] & inside,
        other=0.0,
    ).to(OPERAND)
    live = slots < num_selected
    key = tl.maximum(tl.load(indices + row * num_selected + slots, mask=live, other=0), 0).to(tl.int64)
    k_CK = tl.load(k + key[:, None] * width + channel[None, :], mask=live[:, None] & inside, other=0.0).to(OPERAND)
    return q_HK, k_CK, tl.dot(k_CK, tl.trans(q_HK), input_precision="ieee")


@triton.jit
def _selected_logits(
    q,
    k,
    weights,
    indices,
    logits,
    num_heads,
    num_selected,
    width,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    KEYS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    row = tl.full((), 0, tl.int64) + tl.program_id(0)
    head = tl.arange(0, HEADS)
    weight = tl.load(weights + row * num_heads + head, mask=head < num_heads, other=0.0).to(tl.float32)
    slots = tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    _, _, scores = _scores(q, k, indices, row, slots, num_heads, num_selected, width, HEADS, WIDTH, OPERAND)
    sums = tl.sum(tl.maximum(scores, 0.0) * weight[None, :], 1)
    tl.store(logits + row * num_selected + slots, sums, mask=slots < num_selected)


@triton.jit
def _selected_gradients(
    q,
    k,
    weights,
    indices,
    upstream,
    grad_q,
    grad_weights,
    pairs,
    num_heads,
    num_selected,
    width,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    KEYS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    row = tl.full((), 0, tl.int64) + tl.program_id(0)
    head = tl.arange(0, HEADS)
    channel = tl.arange(0, WIDTH)
    weight = tl.load(weights + row * num_heads + head, mask=head < num_heads, other=0.0).to(tl.float32)
    total_q = tl.zeros((HEADS, WIDTH), tl.float32)
    total_weight = tl.zeros((HEADS,), tl.float32)
    for first in range(0, num_selected, KEYS):
        slots = first + tl.arange(0, KEYS)
        live = slots < num_selected
        q_HK, k_CK, scores = _scores(q, k, indices, row, slots, num_heads, num_selected, width, HEADS, WIDTH, OPERAND)
        grad = tl.load(upstream + row * num_selected + slots, mask=live, other=0.0).to(tl.float32)
        total_weight += tl.sum(tl.maximum(scores, 0.0) * grad[:, None], 0)
        grads = tl.where(scores > 0, grad[:, None] * weight[None, :], 0.0).to(OPERAND)
        total_q = tl.dot(tl.trans(grads), k_CK, total_q, input_precision="ieee")
        grad_k = tl.dot(grads, q_HK, input_precision="ieee")
        place = (row * num_selected + slots)[:, None] * width + channel[None, :]
        tl.store(pairs + place, grad_k.to(pairs.dtype.element_ty), mask=live[:, None] & (channel < width)[None, :])
    place = (row * num_heads + head)[:, None] * width + channel[None, :]
    keep = (head < num_heads)[:, None] & (channel < width)[None, :]
    tl.store(grad_q + place, total_q.to(grad_q.dtype.element_ty), mask=keep)
    tl.store(grad_weights + row * num_heads + head, total_weight, mask=head < num_heads)


class _SelectedLogits(torch.autograd.Function):
    """Recomputes the products in the backward."""

    @staticmethod
    def forward(ctx: Any, q_NIK: Tensor, k_SK: Tensor, weights_NI: Tensor, indices_NC: Tensor) -> Tensor:
        q_NIK, k_SK, weights_NI = q_NIK.contiguous(), k_SK.contiguous(), weights_NI.contiguous()
        indices_NC = indices_NC.contiguous()
        ctx.save_for_backward(q_NIK, k_SK, weights_NI, indices_NC)
        num_rows, num_selected = indices_NC.shape
        logits_NC = torch.empty(num_rows, num_selected, dtype=torch.float32, device=q_NIK.device)
        shape = _tile_shape(q_NIK)
        if logits_NC.numel():
            _selected_logits[(num_rows, triton.cdiv(num_selected, shape["KEYS"]))](
                q_NIK, k_SK, weights_NI, indices_NC, logits_NC, q_NIK.shape[1], num_selected, k_SK.shape[1], **shape
            )
        return logits_NC

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_NIK, k_SK, weights_NI, indices_NC = ctx.saved_tensors
        num_rows, num_selected = indices_NC.shape
        grad_q_NIK = torch.zeros_like(q_NIK)
        grad_weights_NI = torch.zeros(weights_NI.shape, dtype=torch.float32, device=q_NIK.device)
        sums_SK = torch.zeros(k_SK.shape, dtype=torch.float32, device=k_SK.device)
        upstream_NC = grads[0].contiguous()
        row_bytes = max(1, num_selected) * k_SK.shape[1] * k_SK.element_size()
        # A multiple of 16, so that no row of a later piece is less aligned.
        step = max(16, PAIR_BYTES // row_bytes // 16 * 16)
        for start in range(0, num_rows if num_selected else 0, step):
            rows = slice(start, min(start + step, num_rows))
            indices = indices_NC[rows]
            pairs = torch.empty(indices.numel(), k_SK.shape[1], dtype=k_SK.dtype, device=k_SK.device)
            _selected_gradients[(indices.shape[0],)](
                q_NIK[rows],
                k_SK,
                weights_NI[rows],
                indices,
                upstream_NC[rows],
                grad_q_NIK[rows],
                grad_weights_NI[rows],
                pairs,
                q_NIK.shape[1],
                num_selected,
                k_SK.shape[1],
                **_tile_shape(q_NIK),
            )
            every = torch.full((indices.shape[0],), num_selected, dtype=torch.int32, device=k_SK.device)
            add_pairs_in_order(pairs, indices.clamp(min=0), every, 1, sums_SK)
        return grad_q_NIK, sums_SK.to(k_SK.dtype), grad_weights_NI.to(weights_NI.dtype), None


def _tile_shape(q_NIK: Tensor) -> dict[str, Any]:
    """Compile-time arguments of both kernels."""
    return {
        "HEADS": max(16, triton.next_power_of_2(q_NIK.shape[1])),
        "WIDTH": max(16, triton.next_power_of_2(q_NIK.shape[2])),
        "KEYS": 16 if interpreting() else 64,
        "OPERAND": operand_type(q_NIK.dtype),
    }
