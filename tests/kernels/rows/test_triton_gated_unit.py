"""SwiGLU in one kernel has the bits of the separate operations on a GPU, and their values in the interpreter."""

import pytest
import torch

from tests.kernels.triton_here import require_triton

DEVICE = require_triton()

from samepath.kernels.rows.gated_unit import swiglu


@pytest.mark.parametrize("num_units", [1, 33, 1500])
def test_swiglu_fused_agrees_with_the_separate_operations(num_units: int) -> None:
    gate_up_NG = torch.randn(5, 2 * num_units, generator=torch.Generator().manual_seed(0)).to(DEVICE) * 4
    with torch.no_grad():
        torch.testing.assert_close(swiglu(gate_up_NG, "triton"), swiglu(gate_up_NG), rtol=1e-6, atol=1e-7)


@pytest.mark.gpu
def test_swiglu_fused_has_the_bits_of_the_separate_operations_for_every_bfloat16_gate() -> None:
    gates = torch.arange(1 << 16, device="cuda").to(torch.int16).view(torch.bfloat16)
    gates = gates[gates.isfinite()]
    for up in (1.0, -0.37, 1.7e5):
        gate_up_NG = torch.stack([gates, torch.full_like(gates, up)], 1)
        with torch.no_grad():
            assert torch.equal(swiglu(gate_up_NG, "triton").nan_to_num(), swiglu(gate_up_NG).nan_to_num())


@pytest.mark.gpu
def test_swiglu_fused_has_the_bits_of_the_separate_operations_in_float32() -> None:
    gate_up_NG = torch.randn(4000, 2048, device="cuda", generator=torch.Generator("cuda").manual_seed(0)) * 8
    with torch.no_grad():
        assert torch.equal(swiglu(gate_up_NG, "triton"), swiglu(gate_up_NG))
