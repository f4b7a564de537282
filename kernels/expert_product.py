"""Routed experts: each token's X chosen SwiGLU experts, weighted by its gates.

Axes: N tokens, D width, E experts, F expert width, X experts chosen a token, R padded rows of one expert.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from samepath.kernels.backend import Backend, round_up


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^−x) from operations whose bits do not depend on an element's place (torch.sigmoid's do, on CPU)."""
    return (1 + (-x).exp()).reciprocal()


def swiglu(gate_up: Tensor) -> Tensor:
    """SiLU(gate) · up of a `[…, 2F]` product (gate first), in position-independent operations."""
    gate, up = gate_up.chunk(2, dim=-1)
    return gate * sigmoid(gate) * up


def expert_product(
    x_ND: Tensor, gates_NX: Tensor, ids_NX: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, backend: Backend
) -> Tensor:
    """Σ_x gate_x · Expert_{id_x}(token), `[N, D]`, with gradients for tokens, gates and both weights.

    Args:
        ids_NX: chosen expert ids, 0 ≤ id < E. gate_up_EGD: gate and up weights stacked, G = 2F. down_EDF: down weights.

    Slots are summed in slot order, so a replayed row gives the same bits.
    """
    if ids_NX.shape != gates_NX.shape or ids_NX.shape[0] != x_ND.shape[0]:
        raise ValueError(
            f"expert_product needs ids and gates [N, X]; got {tuple(ids_NX.shape)}, {tuple(gates_NX.shape)} for {x_ND.shape[0]} tokens"
        )
    if backend == "reference":
        slots = []
        for slot in range(ids_NX.shape[1]):
            gate_up_NG = torch.einsum("nd,ngd->ng", x_ND, gate_up_EGD[ids_NX[:, slot]])
            hidden = torch.einsum("nf,ndf->nd", swiglu(gate_up_NG), down_EDF[ids_NX[:, slot]])
            slots.append(hidden * gates_NX[:, slot : slot + 1])
        return torch.stack(slots).sum(0)
    return _ExpertProduct.apply(x_ND, gates_NX, ids_NX, gate_up_EGD, down_EDF)  # type: ignore[no-any-return,no-untyped-call]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """Where each (token, slot) stands when rows are grouped by expert and padded to equal blocks."""

    rows: Tensor
    """[N·X] row in the padded `[E · R]` layout."""
    tokens: Tensor
    """[N·X] token of each (token, slot), that is n repeated X times."""
    block_rows: int
    """R: rows of one expert's block, a multiple of 16."""


def dispatch(ids_NX: Tensor, num_experts: int) -> Dispatch:
    """Group (token, slot) pairs by expert, in token order within an expert (stable)."""
    flat = ids_NX.flatten()
    order = flat.sort(stable=True)
    counts_E = torch.bincount(flat, minlength=num_experts)
    starts_E = counts_E.cumsum(0) - counts_E
    block_rows = round_up(max(1, int(counts_E.max())))
    ranks = torch.arange(flat.numel(), device=flat.device) - starts_E[order.values]
    rows = torch.empty_like(flat)
    rows[order.indices] = order.values * block_rows + ranks
    tokens = torch.arange(ids_NX.shape[0], device=flat.device).repeat_interleave(ids_NX.shape[1])
    return Dispatch(rows=rows, tokens=tokens, block_rows=block_rows)


class _ExpertProduct(torch.autograd.Function):
    """One batched product over equal blocks; the backward is written out so that nothing is gathered twice."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, gates_NX: Tensor, ids_NX: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor
    ) -> Tensor:
        num_experts, width = gate_up_EGD.shape[0], x_ND.shape[1]
        plan = dispatch(ids_NX, num_experts)
        x_ERD = x_ND.new_zeros(num_experts * plan.block_rows, width)
        x_ERD[plan.rows] = x_ND[plan.tokens]
        x_ERD = x_ERD.view(num_experts, plan.block_rows, width)
        gate_up_ERG = torch.bmm(x_ERD, gate_up_EGD.transpose(1, 2))
        hidden_ERF = swiglu(gate_up_ERG)
        y_RD = torch.bmm(hidden_ERF, down_EDF.transpose(1, 2)).flatten(0, 1)
        y_NXD = y_RD[plan.rows].view(*ids_NX.shape, width)
        out_ND = y_NXD[:, 0] * gates_NX[:, :1]
        for slot in range(1, ids_NX.shape[1]):
            out_ND = out_ND + y_NXD[:, slot] * gates_NX[:, slot : slot + 1]
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x_ERD, gates_NX, gate_up_ERG, hidden_ERF, y_NXD, gate_up_EGD, down_EDF, plan.rows)
        return out_ND

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_ERD, gates_NX, gate_up_ERG, hidden_ERF, y_NXD, gate_up_EGD, down_EDF, rows = ctx.saved_tensors
        grad_out_ND = grads[0]
        grad_gates_NX = torch.einsum("nxd,nd->nx", y_NXD, grad_out_ND)
        grad_y_RD = x_ERD.new_zeros(x_ERD.shape[0] * x_ERD.shape[1], x_ERD.shape[2])
        grad_y_RD[rows] = (grad_out_ND[:, None] * gates_NX[..., None]).flatten(0, 1)
        grad_y_ERD = grad_y_RD.view_as(x_ERD)
        grad_down_EDF = torch.bmm(grad_y_ERD.transpose(1, 2), hidden_ERF)
        grad_hidden_ERF = torch.bmm(grad_y_ERD, down_EDF)
        gate, up = gate_up_ERG.chunk(2, dim=-1)
        share = sigmoid(gate)
        grad_gate_up_ERG = torch.empty_like(gate_up_ERG)
        grad_gate, grad_up = grad_gate_up_ERG.chunk(2, dim=-1)
        torch.mul(grad_hidden_ERF, gate * share, out=grad_up)
        torch.mul(grad_hidden_ERF * up, share * (1 + gate * (1 - share)), out=grad_gate)
        grad_weights_EGD = torch.bmm(grad_gate_up_ERG.transpose(1, 2), x_ERD)
        grad_x_RD = torch.bmm(grad_gate_up_ERG, gate_up_EGD).flatten(0, 1)
        grad_x_ND = grad_x_RD[rows].view(*gates_NX.shape, -1).sum(1)
        return grad_x_ND, grad_gates_NX, None, grad_weights_EGD, grad_down_EDF


def shared_expert(x_ND: Tensor, gate_up_GD: Tensor, down_DF: Tensor) -> Tensor:
    """Dense SwiGLU feed-forward, `[N, D]`; N must be a multiple of 16 for row-exact results."""
    return linear(swiglu(linear(x_ND, gate_up_GD)), down_DF)
