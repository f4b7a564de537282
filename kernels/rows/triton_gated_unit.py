"""SwiGLU in one kernel (Triton), rounded where the separate operations round. Axes: N rows, F units."""

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


def swiglu(gate_up_NG: Tensor) -> Tensor:
    """SiLU(gate) · up `[N, F]` of a product `[N, 2F]`, gate first; without gradient."""
    gate_up_NG = gate_up_NG.contiguous()
    num_rows, num_units = gate_up_NG.shape[0], gate_up_NG.shape[1] // 2
    out_NF = torch.empty(num_rows, num_units, dtype=gate_up_NG.dtype, device=gate_up_NG.device)
    units = min(1024, triton.next_power_of_2(num_units))
    if out_NF.numel():
        grid = (num_rows, triton.cdiv(num_units, units))
        _swiglu[grid](gate_up_NG, out_NF, num_units, UNITS=units, LIBRARY=not interpreting(), num_warps=4)
    return out_NF
