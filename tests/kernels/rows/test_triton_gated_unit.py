"""SwiGLU in one kernel has the bits of the separate operations on a GPU, and their values in the interpreter."""

import pytest
import torch

from tests.kernels.triton_here import require_triton
from tests.poison import poison_fresh_memory

DEVICE = require_triton()

from samepath.kernels.rows.gated_unit import swiglu


@pytest.mark.parametrize("num_units", [1, 33, 1500])
def test_swiglu_fused_agrees_with_the_separate_operations(num_units: int) -> None:
    gate_up_NG = torch.randn(5, 2 * num_units, generator=torch.Generator().manual_seed(0)).to(DEVICE) * 4
    with torch.no_grad():
        torch.testing.assert_close(swiglu(gate_up_NG, "triton"), swiglu(gate_up_NG), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("num_units", [1, 33, 1500])
def test_swiglu_gradient_equals_float64(monkeypatch: pytest.MonkeyPatch, num_units: int) -> None:
    generator = torch.Generator().manual_seed(1)
    exact_NG = torch.randn(5, 2 * num_units, generator=generator, dtype=torch.float64).to(DEVICE) * 4
    upstream_NF = torch.randn(5, num_units, generator=generator, dtype=torch.float64).to(DEVICE)
    exact_NG[0, 0] = -80.0
    single_NG = exact_NG.float().requires_grad_()
    exact_NG.requires_grad_()
    (wanted_NG,) = torch.autograd.grad(swiglu(exact_NG), exact_NG, upstream_NF)
    poison_fresh_memory(monkeypatch)
    (got_NG,) = torch.autograd.grad(swiglu(single_NG, "triton"), single_NG, upstream_NF.float())
    torch.testing.assert_close(got_NG.double(), wanted_NG, rtol=0, atol=1e-6 * float(wanted_NG.abs().max()))


@pytest.mark.gpu
def test_swiglu_with_gradient_has_the_bits_of_the_separate_operations() -> None:
    gate_up_NG = torch.randn(4000, 2048, device="cuda", generator=torch.Generator("cuda").manual_seed(0)).bfloat16() * 4
    single_NG, exact_NG = gate_up_NG.clone().requires_grad_(), gate_up_NG.double().requires_grad_()
    out_NF = swiglu(single_NG, "triton")
    assert torch.equal(out_NF, swiglu(single_NG))
    upstream_NF = torch.randn_like(out_NF)
    (got_NG,) = torch.autograd.grad(out_NF, single_NG, upstream_NF)
    (wanted_NG,) = torch.autograd.grad(swiglu(exact_NG), exact_NG, upstream_NF.double())
    assert float((got_NG.double() - wanted_NG).norm() / wanted_NG.norm()) < 3e-3


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
