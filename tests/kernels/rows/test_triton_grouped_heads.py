"""Queries and key rows from the joint product: one kernel against float64, against the separate operations, and each row alone."""

import pytest
import torch
from torch import Tensor

from tests.kernels.triton_here import require_triton
from tests.poison import poison_fresh_memory

DEVICE = require_triton()

from samepath.kernels.backend import Backend
from samepath.kernels.rows import triton_grouped_heads
from samepath.kernels.rows.dense_rows import rms_norm
from samepath.kernels.rows.grouped_heads import HeadNorms, grouped_heads, rotate_whole

EPS = 1e-6
SHAPES = [(5, 3, 1, 8, 8), (17, 4, 2, 20, 12), (3, 14, 2, 64, 64), (2, 1, 1, 256, 64)]
"""(N rows, H query heads, G key heads, K head width, R rotated channels)."""


def make_inputs(shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Product, weights of queries and keys, rotary table, and the gradients of both results, float64."""
    num_rows, heads, groups, width, rotary = shape
    generator = torch.Generator().manual_seed(heads)
    shapes = [
        (num_rows, heads + 2 * groups, width), (width,), (width,), (num_rows, 2, rotary),
        (num_rows, heads, width), (groups, num_rows, 2 * width),
    ]  # fmt: skip
    return tuple(torch.randn(one, generator=generator, dtype=torch.float64).to(DEVICE) for one in shapes)


def run(inputs: tuple[Tensor, ...], dtype: torch.dtype, backend: Backend, *, normed: bool) -> list[Tensor]:
    """Queries and rows, then the gradients of the product and of both weights."""
    cast = [one.to(dtype) for one in inputs]
    qkv_NXK, query_K, key_K = (one.detach().requires_grad_() for one in cast[:3])
    norms = HeadNorms(query_K=query_K, key_K=key_K, eps=EPS) if normed else None
    results = grouped_heads(qkv_NXK, norms, cast[3], cast[4].shape[1], backend)
    wanted = (qkv_NXK, query_K, key_K) if normed else (qkv_NXK,)
    return [*(one.detach() for one in results), *torch.autograd.grad(results, wanted, cast[4:])]


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_grouped_heads_equal_float64(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], normed: bool) -> None:
    # Few programs, so that each has several rows here as on a GPU.
    monkeypatch.setattr(triton_grouped_heads, "MAX_PROGRAMS", 3)
    inputs = make_inputs(shape)
    wanted = run(inputs, torch.float64, "torch", normed=normed)
    poison_fresh_memory(monkeypatch)
    for got, truth in zip(run(inputs, torch.float32, "triton", normed=normed), wanted, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), truth, rtol=0, atol=1e-5 * max(1.0, float(truth.abs().max())))


def apart(qkv_NXK: Tensor, norms: HeadNorms | None, rope_N2R: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """The separate operations, the norm by the kernel for norms alone."""
    rotary, moved = rope_N2R.shape[2], (num_heads + qkv_NXK.shape[1]) // 2
    qk_NXK = qkv_NXK[:, :moved]
    if norms is not None:
        weights = norms.query_K.expand(num_heads, -1), norms.key_K.expand(moved - num_heads, -1)
        plain = rms_norm(qk_NXK.flatten(0, 1), torch.ones_like(norms.query_K), norms.eps, "triton")
        qk_NXK = plain.view(qk_NXK.shape) * torch.cat(weights)
    turned = rotate_whole(qk_NXK[..., :rotary], rope_N2R[:, :1], rope_N2R[:, 1:])
    turned = torch.cat([turned, qk_NXK[..., rotary:]], -1)
    keys = torch.cat([turned[:, num_heads:], qkv_NXK[:, moved:]], -1)
    return turned[:, :num_heads], keys.transpose(0, 1)


def test_grouped_heads_without_norms_have_the_bits_of_the_separate_operations() -> None:
    for shape in SHAPES:
        qkv_NXK, _, _, rope_N2R, *_ = (one.float() for one in make_inputs(shape))
        wanted = apart(qkv_NXK, None, rope_N2R, shape[1])
        for got, one in zip(grouped_heads(qkv_NXK, None, rope_N2R, shape[1], "triton"), wanted, strict=True):
            assert torch.equal(got, one)


# Triton's interpreter adds in NumPy's order, and cuts off where a GPU rounds to bfloat16.
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(3000, 32, 4, 128, 128), (700, 14, 2, 64, 64), (300, 8, 8, 256, 128), (64, 4, 2, 16, 16)]
)  # fmt: skip
def test_grouped_heads_have_the_bits_of_the_separate_operations(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    qkv_NXK, query_K, key_K, rope_N2R, *_ = (one.to(dtype) for one in make_inputs(shape))
    for norms in (None, HeadNorms(query_K=query_K, key_K=key_K, eps=EPS)):
        wanted = apart(qkv_NXK, norms, rope_N2R, shape[1])
        for got, one in zip(grouped_heads(qkv_NXK, norms, rope_N2R, shape[1], "triton"), wanted, strict=True):
            assert torch.equal(got, one)


# Where a head's width is no power of two, the kernel for norms alone adds in another order (seen on an H200, heads of 24 and 96 channels).
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_heads_of_other_widths_are_the_separate_operations_within_rounding(dtype: torch.dtype) -> None:
    shape = (700, 9, 3, 96, 48)
    qkv_NXK, query_K, key_K, rope_N2R, *_ = (one.to(dtype) for one in make_inputs(shape))
    norms = HeadNorms(query_K=query_K, key_K=key_K, eps=EPS)
    wanted = apart(qkv_NXK, norms, rope_N2R, shape[1])
    step = torch.finfo(dtype).eps
    for got, one in zip(grouped_heads(qkv_NXK, norms, rope_N2R, shape[1], "triton"), wanted, strict=True):
        torch.testing.assert_close(got, one, rtol=4 * step, atol=8 * step)


def test_grouped_heads_of_a_row_and_their_gradients_do_not_depend_on_its_neighbours() -> None:
    inputs = [one.float() for one in make_inputs((17, 4, 2, 20, 12))]
    whole = run(tuple(inputs), torch.float32, "triton", normed=True)
    qkv_NXK, query_K, key_K, rope_N2R, grad_q_NHK, grad_rows_GNW = inputs
    for rows in (slice(0, 1), slice(3, 12), slice(12, 17)):
        part = (qkv_NXK[rows], query_K, key_K, rope_N2R[rows], grad_q_NHK[rows], grad_rows_GNW[:, rows])
        q_NHK, rows_GNW, grad_NXK, *_ = run(part, torch.float32, "triton", normed=True)
        assert torch.equal(q_NHK, whole[0][rows])
        assert torch.equal(rows_GNW, whole[1][:, rows])
        assert torch.equal(grad_NXK, whole[2][rows])


@pytest.mark.gpu
def test_grouped_heads_gradients_in_bfloat16_at_real_sizes() -> None:
    """Against float64; 20 repeats and parts of the batch have equal bits."""
    inputs = tuple(one.bfloat16() for one in make_inputs((5000, 32, 4, 128, 128)))
    whole = run(inputs, torch.bfloat16, "triton", normed=True)
    truth = run(tuple(one.double() for one in inputs), torch.float64, "torch", normed=True)
    for got, wanted in zip(whole, truth, strict=True):
        assert float((got.double() - wanted).norm() / wanted.norm()) < 4e-3
    for _ in range(20):
        for got, one in zip(run(inputs, torch.bfloat16, "triton", normed=True), whole, strict=True):
            assert torch.equal(got, one)
    qkv_NXK, query_K, key_K, rope_N2R, grad_q_NHK, grad_rows_GNW = inputs
    for rows in (slice(0, 1), slice(100, 357), slice(1000, 5000)):
        part = (qkv_NXK[rows], query_K, key_K, rope_N2R[rows], grad_q_NHK[rows], grad_rows_GNW[:, rows])
        assert torch.equal(run(part, torch.bfloat16, "triton", normed=True)[2], whole[2][rows])


def test_grouped_heads_refuses_heads_that_are_not_queries_keys_and_values() -> None:
    with pytest.raises(ValueError, match="as many key as value heads"):
        grouped_heads(torch.zeros(2, 5, 8), None, torch.zeros(2, 2, 8), 2, "torch")
