"""Routed experts: each token's X chosen SwiGLU experts, weighted by its gates.

Axes: N tokens, D width, E experts, F expert width, X experts chosen a token, R padded rows.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from samepath.kernels.backend import ROW_MULTIPLE, Backend
from samepath.kernels.triton_loading import triton_kernels


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
    if backend == "triton":
        kernels = triton_kernels("expert_product", x_ND, gates_NX, ids_NX, gate_up_EGD, down_EDF)
        return kernels.expert_product(x_ND, gates_NX, ids_NX, gate_up_EGD, down_EDF)  # type: ignore[no-any-return]
    return _ExpertProduct.apply(x_ND, gates_NX, ids_NX, gate_up_EGD, down_EDF)  # type: ignore[no-any-return,no-untyped-call]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """Where each (token, slot) stands when rows are grouped by expert, each expert's rows padded to a multiple of 16."""

    rows: Tensor
    """[N·X] row in the padded layout."""
    tokens: Tensor
    """[N·X] token of each (token, slot), that is n repeated X times."""
    segments: tuple[tuple[int, slice], ...]
    """(expert, its rows) for every expert that has any."""
    num_rows: int
    """R: rows of the padded layout."""


def dispatch(ids_NX: Tensor, num_experts: int) -> Dispatch:
    """Group (token, slot) pairs by expert, in token order within an expert (stable)."""
    flat = ids_NX.flatten()
    order = flat.sort(stable=True)
    counts_E = torch.bincount(flat, minlength=num_experts)
    padded_E = (counts_E + (ROW_MULTIPLE - 1)) // ROW_MULTIPLE * ROW_MULTIPLE
    shift_E = (padded_E.cumsum(0) - padded_E) - (counts_E.cumsum(0) - counts_E)
    places = torch.arange(flat.numel(), device=flat.device)
    rows = torch.empty_like(flat)
    rows[order.indices] = places + shift_E[order.values]
    segments, start = [], 0
    for expert, size in enumerate(padded_E.tolist()):
        if size:
            segments.append((expert, slice(start, start + size)))
        start += size
    tokens = places // ids_NX.shape[1]
    return Dispatch(rows=rows, tokens=tokens, segments=tuple(segments), num_rows=start)


class _ExpertProduct(torch.autograd.Function):
    """One product an expert over its own rows, so that an uneven load costs nothing; the backward is written out."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, gates_NX: Tensor, ids_NX: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor
    ) -> Tensor:
        plan = dispatch(ids_NX, gate_up_EGD.shape[0])
        x_RD = x_ND.new_zeros(plan.num_rows, x_ND.shape[1])
        x_RD.index_copy_(0, plan.rows, x_ND.index_select(0, plan.tokens))
        gate_up_RG = x_ND.new_empty(plan.num_rows, gate_up_EGD.shape[1])
        for expert, part in plan.segments:
            torch.mm(x_RD[part], gate_up_EGD[expert].T, out=gate_up_RG[part])
        hidden_RF = swiglu(gate_up_RG)
        y_RD = torch.empty_like(x_RD)
        for expert, part in plan.segments:
            torch.mm(hidden_RF[part], down_EDF[expert].T, out=y_RD[part])
        y_NXD = y_RD.index_select(0, plan.rows).view(*ids_NX.shape, -1)
        out_ND = y_NXD[:, 0] * gates_NX[:, :1]
        for slot in range(1, ids_NX.shape[1]):
            out_ND = out_ND + y_NXD[:, slot] * gates_NX[:, slot : slot + 1]
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x_RD, gates_NX, gate_up_RG, hidden_RF, y_NXD, gate_up_EGD, down_EDF)
            ctx.plan = plan
        return out_ND

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_RD, gates_NX, gate_up_RG, hidden_RF, y_NXD, gate_up_EGD, down_EDF = ctx.saved_tensors
        plan: Dispatch = ctx.plan
        grad_out_ND = grads[0]
        grad_gates_NX = (y_NXD * grad_out_ND[:, None]).sum(-1)
        grad_y_RD = torch.zeros_like(x_RD)
        grad_y_RD.index_copy_(0, plan.rows, (grad_out_ND[:, None] * gates_NX[..., None]).flatten(0, 1))
        grad_down_EDF, grad_hidden_RF = torch.zeros_like(down_EDF), torch.empty_like(hidden_RF)
        for expert, part in plan.segments:
            torch.mm(grad_y_RD[part].T, hidden_RF[part], out=grad_down_EDF[expert])
            torch.mm(grad_y_RD[part], down_EDF[expert], out=grad_hidden_RF[part])
        gate, up = gate_up_RG.chunk(2, dim=-1)
        share = sigmoid(gate)
        silu = gate * share
        grad_gate_up_RG = torch.empty_like(gate_up_RG)
        grad_gate, grad_up = grad_gate_up_RG.chunk(2, dim=-1)
        torch.mul(grad_hidden_RF, silu, out=grad_up)
        # d SiLU = σ·(1 + g·(1 − σ)) = σ + s − s·σ with s = g·σ
        torch.mul(grad_hidden_RF.mul_(up), (share + silu).sub_(silu.mul_(share)), out=grad_gate)
        grad_weights_EGD, grad_x_RD = torch.zeros_like(gate_up_EGD), torch.empty_like(x_RD)
        for expert, part in plan.segments:
            torch.mm(grad_gate_up_RG[part].T, x_RD[part], out=grad_weights_EGD[expert])
            torch.mm(grad_gate_up_RG[part], gate_up_EGD[expert], out=grad_x_RD[part])
        grad_x_ND = grad_x_RD.index_select(0, plan.rows).view(*gates_NX.shape, -1).sum(1)
        return grad_x_ND, grad_gates_NX, None, grad_weights_EGD, grad_down_EDF


def shared_expert(x_ND: Tensor, gate_up_GD: Tensor, down_DF: Tensor) -> Tensor:
    """Dense SwiGLU feed-forward, `[N, D]`; N must be a multiple of 16 for row-exact results."""
    return linear(swiglu(linear(x_ND, gate_up_GD)), down_DF)
