"""SwiGLU in one kernel (Triton), rounded where the separate operations round, and its gradients in another. Axes: N rows, F units."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from samepath.kernels.gpu.loading import interpreting


@triton.jit
def _swiglu(gate_up, out, num_units, UNITS: tl.constexpr, LIBRARY: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    keep = unit < num_units
    kind = out.dtype.element_ty
    gate = tl.load(gate_up + row * 2 * num_units + unit, mask=keep, other=0.0).to(tl.float32)
    up = tl.load(gate_up + (row * 2 + 1) * num_units + unit, mask=keep, other=0.0).to(tl.float32)
    if LIBRARY:
        # PyTorch's exponential function; Triton's own rounds otherwise.
        power = libdevice.exp(-gate)
    else:
        power = tl.exp(-gate)
    total = (power.to(kind).to(tl.float32) + 1.0).to(kind).to(tl.float32)
    share = tl.div_rn(tl.full((UNITS,), 1.0, tl.float32), total).to(kind).to(tl.float32)
    silu = (share * gate).to(kind).to(tl.float32)
    tl.store(out + row * num_units + unit, (silu * up).to(kind), mask=keep)


@triton.jit
def _swiglu_backward(gate_up, grad_out, grad_gate_up, num_units, UNITS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    keep = unit < num_units
    gate = tl.load(gate_up + row * 2 * num_units + unit, mask=keep, other=0.0).to(tl.float32)
    up = tl.load(gate_up + (row * 2 + 1) * num_units + unit, mask=keep, other=0.0).to(tl.float32)
    upstream = tl.load(grad_out + row * num_units + unit, mask=keep, other=0.0).to(tl.float32)
    share = 1.0 / (1.0 + tl.exp(-gate))
    silu = gate * share
    kind = grad_gate_up.dtype.element_ty
    # d SiLU = σ·(1 + g·(1 − σ))
    grad_gate = upstream * up * (share + silu * (1.0 - share))
    tl.store(grad_gate_up + row * 2 * num_units + unit, grad_gate.to(kind), mask=keep)
    tl.store(grad_gate_up + (row * 2 + 1) * num_units + unit, (upstream * silu).to(kind), mask=keep)


def swiglu(gate_up_NG: Tensor) -> Tensor:
    """SiLU(gate) · up `[N, F]` of a product `[N, 2F]`, gate first; with gradient."""
    out_NF: Tensor = _Swiglu.apply(gate_up_NG)
    return out_NF


def _grid(out_NF: Tensor) -> tuple[tuple[int, int], int]:
    """(programs, units of one)."""
    units = min(1024, triton.next_power_of_2(out_NF.shape[1]))
    return (out_NF.shape[0], triton.cdiv(out_NF.shape[1], units)), units


class _Swiglu(torch.autograd.Function):
    """Keeps the product."""

    @staticmethod
    def forward(ctx: Any, gate_up_NG: Tensor) -> Tensor:
        gate_up_NG = gate_up_NG.contiguous()
        ctx.save_for_backward(gate_up_NG)
        out_NF = torch.empty(
            gate_up_NG.shape[0], gate_up_NG.shape[1] // 2, dtype=gate_up_NG.dtype, device=gate_up_NG.device
        )
        grid, units = _grid(out_NF)
        if out_NF.numel():
            _swiglu[grid](gate_up_NG, out_NF, out_NF.shape[1], UNITS=units, LIBRARY=not interpreting(), num_warps=4)
        return out_NF

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gate_up_NG,) = ctx.saved_tensors
        grad_out_NF, grad_NG = grads[0].contiguous(), torch.empty_like(gate_up_NG)
        grid, units = _grid(grad_out_NF)
        if grad_NG.numel():
            _swiglu_backward[grid](gate_up_NG, grad_out_NF, grad_NG, grad_out_NF.shape[1], UNITS=units, num_warps=4)
        return (grad_NG,)
