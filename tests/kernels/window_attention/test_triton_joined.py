"""Triton's attention in expanded form against one dense masked softmax in float64, by pointers and by tensor maps.

Tolerances: float32 1e-5 of the largest value; bfloat16 (GPU only) out and mass 1 %, gradients 2 % in norm.
"""

import pytest
import torch

from tests.kernels.triton_here import require_triton
from tests.poison import poison_fresh_memory

DEVICE = require_triton()

from samepath.kernels.window_attention import triton_grid
from samepath.kernels.window_attention.triton_bits import PACKED, pack_bits
from tests.kernels.window_problems import window_problem

WINDOWS = [
    (((0, 37), (0, 12)), 40, (2, 40, 24)),
    (((0, 37), (0, 12)), 6, (2, 24, 8)),
    (((30, 35), (0, 33), (61, 1)), 90, (3, 16, 16)),
    (((30, 35), (0, 33), (61, 1)), 11, (2, 48, 16)),
]
"""Spans, C and (H, K, V): whole sequences and others, within the selection's limit and beyond, more than one tile, padding."""


def assert_close(problem: object, dtype: torch.dtype = torch.float32) -> None:
    for got, wanted in zip(problem.run("triton", dtype), problem.wanted(), strict=True):  # type: ignore[attr-defined]
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-5 * max(1.0, float(wanted.abs().max())))


@pytest.mark.parametrize(("spans", "num_selected", "sizes"), WINDOWS)
def test_window_attend_triton_equals_a_masked_softmax(spans, num_selected, sizes, monkeypatch) -> None:
    poison_fresh_memory(monkeypatch)
    assert_close(window_problem(spans, num_selected, sizes, DEVICE))


@pytest.mark.skipif(DEVICE.type == "cuda", reason="on a GPU float32 tiles of this size do not come by tensor maps")
@pytest.mark.parametrize("num_selected", [90, 11])
def test_window_attend_triton_equals_a_masked_softmax_by_tensor_maps(num_selected, monkeypatch) -> None:
    monkeypatch.setattr(triton_grid, "mapped", lambda grid: True)
    poison_fresh_memory(monkeypatch)
    assert_close(window_problem(((30, 35), (0, 33), (61, 1)), num_selected, (2, 48, 16), DEVICE))


@pytest.mark.parametrize("shape", [(2, 5, 9), (1, PACKED, 2 * PACKED), (2, PACKED + 1, PACKED - 1)])
def test_pack_bits_holds_every_key_along_both_axes(shape: tuple[int, int, int], monkeypatch) -> None:
    poison_fresh_memory(monkeypatch)
    seen = torch.rand(*shape[:2], shape[2] + 1, generator=torch.Generator().manual_seed(0)) < 0.5
    for words, wanted in zip(pack_bits(seen.to(DEVICE)[..., 1:]), (seen[..., 1:], seen[..., 1:].transpose(1, 2))):
        bits = (words.cpu()[..., None] >> torch.arange(32)) & 1
        assert words.shape[2] % 2 == 0
        assert torch.equal(bits.flatten(2)[..., : wanted.shape[2]].bool(), wanted)
        assert not bits.flatten(2)[..., wanted.shape[2] :].any()


@pytest.mark.gpu
@pytest.mark.parametrize("num_selected", [64, 2048])
def test_window_attend_published_widths_in_bfloat16(num_selected: int) -> None:
    problem = window_problem(
        ((0, 400), (0, 150)) if num_selected == 64 else ((300, 500), (0, 431)), num_selected, (16, 192, 128), DEVICE
    )
    got, wanted = problem.run("triton", torch.bfloat16), problem.wanted()
    for limit, one, other in zip((0.01, 0.01, 0.02, 0.02, 0.02), got, wanted, strict=True):
        assert float((one.double() - other).norm() / other.norm()) < limit
    for one, other in zip(got, problem.run("triton", torch.bfloat16), strict=True):
        assert torch.equal(one, other)
