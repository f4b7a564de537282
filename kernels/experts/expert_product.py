"""Routed experts: each token's X chosen SwiGLU experts, weighted by its gates.

Axes: N tokens, D width, E experts, F expert width, X experts chosen a token, R padded rows.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samepath.kernels.backend import Backend, round_up
from samepath.kernels.experts.expert_rows import add_slots
from samepath.kernels.gpu.loading import fused_kernels
from samepath.kernels.rows.gated_unit import sigmoid, swiglu
from samepath.kernels.rows.pair_product import pair_product
from samepath.kernels.rows.row_product import row_product


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
    fused = fused_kernels(backend, "expert_product", x_ND, gates_NX, ids_NX, gate_up_EGD, down_EDF)
    if fused is not None:
        return fused.expert_product(x_ND, gates_NX, ids_NX, gate_up_EGD, down_EDF)
    if torch.is_grad_enabled():
        return _ExpertProduct.apply(x_ND, gates_NX, ids_NX, gate_up_EGD, down_EDF)  # type: ignore[no-any-return,no-untyped-call]
    plan = dispatch(ids_NX, gate_up_EGD.shape[0], x_ND.shape[1])
    gate_up_RG = _by_expert(plan, _spread(plan, x_ND, ids_NX.shape[1]), gate_up_EGD)
    return _combine(plan, _by_expert(plan, swiglu(gate_up_RG), down_EDF), gates_NX)[0].to(x_ND.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """Where each (token, slot) stands when rows are grouped by expert, each expert's rows padded to a multiple of 16."""

    rows: Tensor
    """[N·X] row in the padded layout."""
    segments: tuple[tuple[int, slice], ...]
    """(expert, its rows) for every expert that has any."""
    num_rows: int
    """R: rows of the padded layout."""
    even: bool
    """Every expert has the same number of padded rows, so one batched product runs them all."""


WIDE = 256
"""Inner widths from here on take oneDNN's product (`row_product`), expert by expert; below, its overhead outweighs its speed. By the width
alone, so that a row's bits do not depend on the load."""

MAX_EVEN_PADDING = 1.5
"""Experts get as many rows as the busiest one where that costs at most this factor: one product for all, instead of one for each."""


def dispatch(ids_NX: Tensor, num_experts: int, inner_width: int) -> Dispatch:
    """Group (token, slot) pairs by expert, in token order within an expert (stable)."""
    flat = ids_NX.flatten()
    order = flat.sort(stable=True)
    counts = torch.bincount(flat, minlength=num_experts).tolist()
    padded = [round_up(count) for count in counts]
    even = inner_width < WIDE and num_experts * max(padded) <= MAX_EVEN_PADDING * sum(padded)
    if even:
        padded = [max(padded)] * num_experts
    segments, shifts, start, place = [], [], 0, 0
    for expert, (count, size) in enumerate(zip(counts, padded)):
        shifts.append(start - place)
        if size:
            segments.append((expert, slice(start, start + size)))
        start, place = start + size, place + count
    rows = torch.empty_like(flat)
    shift_E = torch.tensor(shifts, device=flat.device)
    rows[order.indices] = shift_E[order.values].add_(torch.arange(flat.numel(), device=flat.device))
    return Dispatch(rows=rows, segments=tuple(segments), num_rows=start, even=even)


def _by_expert(plan: Dispatch, x_RD: Tensor, weight_EFD: Tensor) -> Tensor:
    """Each expert's rows times its transposed weight, `[R, F]`. A row has the same bits in one product or in its expert's own."""
    if plan.even and x_RD.shape[1] < WIDE:
        x_ERD = x_RD.view(weight_EFD.shape[0], -1, x_RD.shape[1])
        return pair_product(x_ERD, weight_EFD.transpose(1, 2)).flatten(0, 1)
    out_RF = x_RD.new_empty(plan.num_rows, weight_EFD.shape[1])
    for expert, part in plan.segments:
        _product(x_RD[part], weight_EFD[expert].T, out_RF[part])
    return out_RF


def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """left · right into `out`."""
    if left.shape[1] >= WIDE:
        out.copy_(row_product(left, right.T))
    else:
        pair_product(left[None], right[None], out=out[None])


def _spread(plan: Dispatch, x_ND: Tensor, num_slots: int) -> Tensor:
    """`[R, D]`: each token's row at each of its slots' places, 0 on padding."""
    x_RD = x_ND.new_zeros(plan.num_rows, x_ND.shape[1])
    return x_RD.index_copy_(0, plan.rows, x_ND[:, None].expand(-1, num_slots, -1).flatten(0, 1))


def _combine(plan: Dispatch, y_RD: Tensor, gates_NX: Tensor) -> tuple[Tensor, Tensor]:
    """(Σ of the slots' rows times their gates in slot order `[N, D]`, the rows themselves `[N, X, D]`)."""
    y_NXD = y_RD.index_select(0, plan.rows).view(*gates_NX.shape, -1)
    return add_slots(y_NXD, gates_NX), y_NXD


class _ExpertProduct(torch.autograd.Function):
    """One product per expert over its own rows, so that an uneven load costs nothing; the backward is written out."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, gates_NX: Tensor, ids_NX: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor
    ) -> Tensor:
        plan = dispatch(ids_NX, gate_up_EGD.shape[0], x_ND.shape[1])
        x_RD = _spread(plan, x_ND, ids_NX.shape[1])
        gate_up_RG = _by_expert(plan, x_RD, gate_up_EGD)
        hidden_RF = swiglu(gate_up_RG)
        out_ND, y_NXD = _combine(plan, _by_expert(plan, hidden_RF, down_EDF), gates_NX)
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
            _product(grad_y_RD[part].T, hidden_RF[part], grad_down_EDF[expert])
            _product(grad_y_RD[part], down_EDF[expert], grad_hidden_RF[part])
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
            _product(grad_gate_up_RG[part].T, x_RD[part], grad_weights_EGD[expert])
            _product(grad_gate_up_RG[part], gate_up_EGD[expert], grad_x_RD[part])
        grad_x_ND = grad_x_RD.index_select(0, plan.rows).view(*gates_NX.shape, -1).sum(1)
        return grad_x_ND, grad_gates_NX, None, grad_weights_EGD, grad_down_EDF
