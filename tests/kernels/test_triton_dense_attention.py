"""Triton's attention over all keys against one masked softmax in float64, and one row's bits whatever surrounds it."""

import pytest
import torch
from torch import Tensor

from tests.kernels.triton_here import require_triton
from tests.poison import poison_fresh_memory

DEVICE = require_triton()

from samepath.kernels import triton_dense_forward
from samepath.kernels.backend import Backend, round_up
from samepath.kernels.dense_attention import dense_attend
from samepath.kernels.window import AttentionPlan
from samepath.model.plan import Span, plan_spans

SHAPES = [(6, 2, 16, 16), (4, 4, 48, 32), (7, 1, 24, 80), (32, 1, 16, 16)]
"""Query heads, key heads, key width, value width; the value stands behind the key."""

LENGTHS = (21, 1, 37, 6)


def packed_plan(lengths: tuple[int, ...], heads: int) -> AttentionPlan:
    spans, row = [], 0
    for length in lengths:
        spans.append(Span(row=row, first=0, count=length, keys=torch.arange(row, row + length)))
        row += length
    return plan_spans(spans, round_up(row), heads)


def random_inputs(num_rows: int, shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """(queries, key rows) of bfloat16 numbers in float64, on the device."""
    heads, groups, key, value = shape
    generator = torch.Generator().manual_seed(seed)
    q_NHK = torch.randn(num_rows, heads, key, generator=generator)
    rows_GSW = torch.randn(groups, num_rows, key + value, generator=generator)
    return tuple(part.to(torch.bfloat16).double().to(DEVICE) for part in (q_NHK, rows_GSW))  # type: ignore[return-value]


def run(
    q_NHK: Tensor,
    rows_GSW: Tensor,
    plan: AttentionPlan,
    shape: tuple[int, ...],
    backend: Backend,
    dtype: torch.dtype,
    value_start: int | None = None,
) -> tuple[Tensor, ...]:
    """(out, grad of q, grad of the key rows) for a fixed upstream gradient."""
    q_NHK, rows_GSW = (part.to(dtype).detach().requires_grad_() for part in (q_NHK, rows_GSW))
    out_NHV = dense_attend(
        q_NHK,
        rows_GSW,
        plan.to(DEVICE),
        scale=shape[2] ** -0.5,
        value_start=shape[2] if value_start is None else value_start,
        value_width=shape[3],
        backend=backend,
    )
    upstream = torch.randn(out_NHV.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    upstream = upstream.to(torch.bfloat16).to(DEVICE, dtype)
    return out_NHV.detach(), *torch.autograd.grad(out_NHV, (q_NHK, rows_GSW), upstream)


def assert_near(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert got.shape == wanted.shape
    size = max(1.0, float(wanted.abs().max()))
    assert float((got.double() - wanted).abs().max()) <= tolerance * size


@pytest.mark.parametrize("shape", SHAPES)
def test_dense_attend_float32_equals_the_reference_with_gradients(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    """Several sequences of a window and one alone, several segments, fresh memory poisoned."""
    monkeypatch.setattr(triton_dense_forward, "SEGMENT", 32)
    plan = packed_plan(LENGTHS, shape[0])
    assert {window.rows_BT.shape[0] > 1 for window in plan.windows} == {True, False}
    inputs = random_inputs(80, shape)
    wanted = run(*inputs, plan, shape, "reference", torch.float64)
    poison_fresh_memory(monkeypatch)
    for value, truth in zip(run(*inputs, plan, shape, "triton", torch.float32), wanted, strict=True):
        assert_near(value, truth, 1e-5)
