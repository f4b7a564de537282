"""Gates of chosen experts with their gradient, one kernel each (Triton): the additions and the division of the `torch` way in its order.

One program a few rows. Axes: N tokens, E experts, X experts chosen.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from samepath.kernels.experts.expert_choice import ChoiceRule
from samepath.kernels.experts.triton_choice import choose


@triton.jit
def _gates(
    scores,
    ids,
    gates,
    num_rows,
    num_experts,
    scale,
    NORMALISED: tl.constexpr,
    SCALED: tl.constexpr,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Scores at the given ids, over their sum if so ruled, times the scale."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    live = row < num_rows
    total = tl.full((ROWS,), 1e-20, tl.float32)
    if NORMALISED:
        total = tl.zeros((ROWS,), tl.float32)
        for slot in tl.static_range(SLOTS):
            place = tl.load(ids + row * SLOTS + slot, mask=live, other=0)
            total += tl.load(scores + row * num_experts + place, mask=live, other=0.0)
        total += 1e-20
    for slot in tl.static_range(SLOTS):
        place = tl.load(ids + row * SLOTS + slot, mask=live, other=0)
        gate = tl.load(scores + row * num_experts + place, mask=live, other=0.0)
        if NORMALISED:
            gate = tl.div_rn(gate, total)
        if SCALED:
            gate = gate * scale
        tl.store(gates + row * SLOTS + slot, gate, mask=live)


@triton.jit
def _gates_backward(
    scores,
    ids,
    grad_gates,
    grad_scores,
    num_rows,
    num_experts,
    scale,
    NORMALISED: tl.constexpr,
    SLOTS: tl.constexpr,
    EXPERTS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """ds_x = scale · (dg_x / T − Σ_y dg_y·s_y / T²) at the chosen experts, T the sum of their scores; 0 at the others."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    live = row < num_rows
    expert = tl.arange(0, EXPERTS)[None, :]
    total = tl.zeros((ROWS, 1), tl.float32)
    joint = tl.zeros((ROWS, 1), tl.float32)
    if NORMALISED:
        for slot in tl.static_range(SLOTS):
            place = tl.load(ids + row * SLOTS + slot, mask=live, other=0)
            score = tl.load(scores + row * num_experts + place, mask=live, other=0.0)
            total += score
            joint += score * tl.load(grad_gates + row * SLOTS + slot, mask=live, other=0.0)
        total += 1e-20
        joint = joint / total
    result = tl.zeros((ROWS, EXPERTS), tl.float32)
    for slot in tl.static_range(SLOTS):
        place = tl.load(ids + row * SLOTS + slot, mask=live, other=0)
        gradient = tl.load(grad_gates + row * SLOTS + slot, mask=live, other=0.0)
        if NORMALISED:
            gradient = (gradient - joint) / total
        # An expert that a replayed row names twice gets both.
        result += tl.where(expert == place, gradient * scale, 0.0)
    tl.store(grad_scores + row * num_experts + expert, result, mask=live & (expert < num_experts))


def gate_weights(scores_NE: Tensor, ids_NX: Tensor, rule: ChoiceRule) -> Tensor:
    """Gates float32 [N, X] of float32 scores at the given ids, as `expert_choice.gate_weights` describes."""
    _check(scores_NE)
    gates_NX: Tensor = _GatesAt.apply(scores_NE, ids_NX, rule)
    return gates_NX


def choose_with_gates(scores_NE: Tensor, bias_E: Tensor | None, rule: ChoiceRule) -> tuple[Tensor, Tensor]:
    """(ids, gates) of the live choice, the gates with gradient."""
    _check(scores_NE)
    ids_NX, gates_NX = _Chosen.apply(scores_NE, bias_E, rule)
    return ids_NX, gates_NX


def _check(scores_NE: Tensor) -> None:
    if scores_NE.dtype != torch.float32:
        raise ValueError(f"backend triton weighs experts by float32 scores; got {scores_NE.dtype}. Use backend torch.")


class _GatesAt(torch.autograd.Function):
    """Keeps scores and ids."""

    @staticmethod
    def forward(ctx: Any, scores_NE: Tensor, ids_NX: Tensor, rule: ChoiceRule) -> Tensor:
        scores_NE, ids_NX = scores_NE.contiguous(), ids_NX.contiguous()
        ctx.save_for_backward(scores_NE, ids_NX)
        ctx.rule = rule
        num_rows, num_experts = scores_NE.shape
        gates_NX = torch.empty(ids_NX.shape, dtype=torch.float32, device=scores_NE.device)
        if num_rows:
            _gates[(triton.cdiv(num_rows, 32),)](
                scores_NE,
                ids_NX,
                gates_NX,
                num_rows,
                num_experts,
                float(rule.scale),
                NORMALISED=rule.normalised,
                SCALED=rule.scale != 1,
                SLOTS=ids_NX.shape[1],
                ROWS=32,
                num_warps=1,
            )
        return gates_NX

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scores_NE, ids_NX = ctx.saved_tensors
        return _gradient(scores_NE, ids_NX, grads[0], ctx.rule), None, None


class _Chosen(torch.autograd.Function):
    """Keeps scores and the ids chosen."""

    @staticmethod
    def forward(ctx: Any, scores_NE: Tensor, bias_E: Tensor | None, rule: ChoiceRule) -> tuple[Tensor, Tensor]:
        scores_NE = scores_NE.contiguous()
        ids_NX, gates_NX = choose(scores_NE, bias_E, rule)
        ctx.save_for_backward(scores_NE, ids_NX)
        ctx.rule = rule
        ctx.mark_non_differentiable(ids_NX)
        return ids_NX, gates_NX

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scores_NE, ids_NX = ctx.saved_tensors
        return _gradient(scores_NE, ids_NX, grads[1], ctx.rule), None, None


def _gradient(scores_NE: Tensor, ids_NX: Tensor, grad_gates_NX: Tensor, rule: ChoiceRule) -> Tensor:
    num_rows, num_experts = scores_NE.shape
    grad_NE = torch.empty_like(scores_NE)
    experts = triton.next_power_of_2(num_experts)
    rows = max(1, 512 // experts)
    if num_rows:
        _gates_backward[(triton.cdiv(num_rows, rows),)](
            scores_NE,
            ids_NX,
            grad_gates_NX.contiguous(),
            grad_NE,
            num_rows,
            num_experts,
            float(rule.scale),
            NORMALISED=rule.normalised,
            SLOTS=ids_NX.shape[1],
            EXPERTS=experts,
            ROWS=rows,
            num_warps=1,
        )
    return grad_NE
