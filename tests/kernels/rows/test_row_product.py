"""The product of rows with weights: gradients, and one row's bits whatever stands around it."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samepath.kernels.rows import row_product as row_product_module
from samepath.kernels.rows.row_product import processor_maker, row_product

WIDTHS = st.sampled_from([1, 2, 4, 16, 24, 48, 96, 128, 208, 576, 1536])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    inner=WIDTHS,
    outer=WIDTHS,
    start=st.integers(0, 500),
    groups=st.integers(1, 32),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_row_product_row_has_the_same_bits_for_any_count_offset_and_thread_count(
    inner: int, outer: int, start: int, groups: int, threads: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_ND, weight_FD = torch.randn(1024, inner, generator=generator), torch.randn(outer, inner, generator=generator)
    whole_NF = row_product(x_ND, weight_FD)
    torch.set_num_threads(threads)
    try:
        assert torch.equal(
            row_product(x_ND[start : start + 16 * groups], weight_FD), whole_NF[start : start + 16 * groups]
        )
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("rows", "inner", "outer"), [(16, 16, 1), (48, 576, 96), (160, 24, 200)])
def test_row_product_and_its_gradients_equal_the_product_in_float64(
    rows: int, inner: int, outer: int, with_bias: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, inner), (outer, inner), *([(outer,)] if with_bias else [])]
    wide = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    weight = torch.randn(rows, outer, generator=generator, dtype=torch.float64)
    wanted = wide[0] @ wide[1].T + (wide[2] if with_bias else 0)
    narrow = [part.detach().float().requires_grad_() for part in wide]
    got = row_product(*narrow)
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=2e-4)
    for one, other in zip(
        torch.autograd.grad((got * weight.float()).sum(), narrow),
        torch.autograd.grad((wanted * weight).sum(), wide),
        strict=True,
    ):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=3e-4)


def test_row_product_gradient_expanded_from_one_number_is_right() -> None:
    x_ND, weight_FD = torch.ones(16, 3, requires_grad=True), torch.arange(6.0).view(2, 3).requires_grad_()
    row_product(x_ND, weight_FD).sum().backward()
    assert x_ND.grad.equal(torch.tensor([3.0, 5.0, 7.0]).expand(16, 3))
    assert weight_FD.grad.equal(torch.full((2, 3), 16.0))


@pytest.mark.parametrize("learned", [(True, False), (False, True)])
def test_row_product_computes_only_the_gradients_that_are_wanted(learned: tuple[bool, bool]) -> None:
    x_ND, weight_FD = (torch.ones(16, 16, requires_grad=wanted) for wanted in learned)
    row_product(x_ND, weight_FD).sum().backward()
    assert (x_ND.grad is not None, weight_FD.grad is not None) == learned


def test_row_product_without_onednn_is_the_ordinary_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_product_module, "ONEDNN", False)
    x_ND, weight_FD = torch.randn(16, 300), torch.randn(8, 300)
    assert torch.equal(row_product(x_ND, weight_FD), torch.nn.functional.linear(x_ND, weight_FD))


def test_processor_maker_is_read_from_the_system_or_empty(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    assert processor_maker(info) == ""
    info.write_text("processor\t: 0\nvendor_id\t: GenuineIntel\nvendor_id\t: AuthenticAMD\n")
    assert processor_maker(info) == "GenuineIntel"
    info.write_text("Processor: ARMv8\n")
    assert processor_maker(info) == ""
