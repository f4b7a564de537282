"""Triton's attention over all keys against one masked softmax in float64, and one row's bits whatever surrounds it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.kernels.triton_here import require_triton
from tests.poison import poison_fresh_memory

DEVICE = require_triton()

from samepath.kernels.backend import Backend, round_up
from samepath.kernels.dense_attention import triton_backward as triton_dense_backward
from samepath.kernels.dense_attention import triton_forward as triton_dense_forward
from samepath.kernels.dense_attention import triton_latent as triton_dense_latent
from samepath.kernels.dense_attention.dense_attention import dense_attend
from samepath.kernels.window import AttentionPlan
from samepath.model.plan import Span, plan_decode, plan_spans

SHAPES = [(6, 2, 16, 16), (4, 4, 48, 32), (7, 1, 24, 80), (32, 1, 16, 16)]
"""Query heads, key heads, key width, value width; the value stands behind the key."""

LENGTHS = (5, 1, 33)


def packed_plan(lengths: tuple[int, ...], heads: int) -> AttentionPlan:
    spans, row = [], 0
    for length in lengths:
        spans.append(Span(row=row, first=0, count=length, keys=torch.arange(row, row + length)))
        row += length
    return plan_spans(spans, round_up(row), heads)


def random_inputs(num_rows: int, shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """(queries, key rows) of bfloat16 numbers in float64, on the device; values of size 0.1 where V is 64 or more, so that 8e-4 means the same there."""
    heads, groups, key, value = shape
    generator = torch.Generator().manual_seed(seed)
    q_NHK = torch.randn(num_rows, heads, key, generator=generator)
    rows_GSW = torch.randn(groups, num_rows, key + value, generator=generator)
    rows_GSW[..., key:] *= 0.1 if value >= 64 else 1.0
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
    inputs = random_inputs(48, shape)
    wanted = run(*inputs, plan, shape, "reference", torch.float64)
    poison_fresh_memory(monkeypatch)
    for value, truth in zip(run(*inputs, plan, shape, "triton", torch.float32), wanted, strict=True):
        assert_near(value, truth, 1e-5)


@pytest.mark.parametrize(
    ("groups", "lengths", "elements"), [(2, LENGTHS, 1 << 24), (1, (9, 5), 16 * 10), (2, (9, 5), 16 * 4)]
)
def test_dense_attend_of_a_value_inside_the_key_equals_the_reference_with_gradients(
    monkeypatch: pytest.MonkeyPatch, groups: int, lengths: tuple[int, ...], elements: int
) -> None:
    """The latent of MLA; a window whose key lists do not fit at once is cut by sequences, and then by queries."""
    shape = (4, groups, 48, 32)
    plan = packed_plan(lengths, 4)
    inputs = random_inputs(round_up(sum(lengths)), shape)
    wanted = run(*inputs, plan, shape, "reference", torch.float64, value_start=0)
    poison_fresh_memory(monkeypatch)
    monkeypatch.setattr(triton_dense_latent, "INDEX_ELEMENTS", elements)
    got = run(*inputs, plan, shape, "triton", torch.float32, value_start=0)
    for value, truth in zip(got, wanted, strict=True):
        assert_near(value, truth, 1e-5)


@pytest.mark.parametrize("value_start", [None, 0])
def test_dense_attend_sequences_that_share_a_prompt_teach_the_same_rows(value_start: int | None) -> None:
    """Rows 0 to 17 are a prompt; two responses follow it in one window and add to its gradient in their order."""
    shape = (4, 2, 16, 16)
    keys = [torch.cat([torch.arange(18), torch.arange(start, start + 5)]) for start in (18, 23)]
    spans = [Span(row=0, first=0, count=18, keys=torch.arange(18))]
    spans += [Span(row=start, first=18, count=5, keys=part) for start, part in zip((18, 23), keys)]
    plan = plan_spans(spans, 32, 4)
    inputs = random_inputs(32, shape)
    wanted = run(*inputs, plan, shape, "reference", torch.float64, value_start)
    got = run(*inputs, plan, shape, "triton", torch.float32, value_start)
    again = run(*inputs, plan, shape, "triton", torch.float32, value_start)
    for value, second, truth in zip(got, again, wanted, strict=True):
        assert torch.equal(value, second)
        assert_near(value, truth, 1e-5)


def test_dense_attend_sequences_apart_get_the_bits_of_gradients_added_in_order() -> None:
    shape = SHAPES[0]
    plan, inputs = packed_plan(LENGTHS, shape[0]), random_inputs(48, shape)
    assert all(window.apart for window in plan.windows)
    ordered = replace(plan, windows=tuple(replace(window, apart=False) for window in plan.windows))
    for value, wanted in zip(
        run(*inputs, plan, shape, "triton", torch.float32),
        run(*inputs, ordered, shape, "triton", torch.float32),
        strict=True,
    ):
        assert torch.equal(value, wanted)


@pytest.mark.gpu
def test_dense_attend_sequences_apart_get_those_bits_at_a_real_size() -> None:
    shape = (32, 4, 128, 128)
    plan, inputs = packed_plan((2048, 1500, 1999), 0), random_inputs(5552, shape)
    ordered = replace(plan, windows=tuple(replace(window, apart=False) for window in plan.windows))
    got, wanted = (run(*inputs, one, shape, "triton", torch.bfloat16) for one in (plan, ordered))
    for value, truth in zip(got, wanted, strict=True):
        assert torch.equal(value, truth)


def test_dense_attend_pieces_of_a_window_change_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = SHAPES[0]
    plan, inputs = packed_plan(LENGTHS, shape[0]), random_inputs(48, shape)
    whole = run(*inputs, plan, shape, "triton", torch.float32)
    monkeypatch.setattr(triton_dense_backward, "PAIR_BYTES", 1)
    for value, wanted in zip(run(*inputs, plan, shape, "triton", torch.float32), whole, strict=True):
        assert_near(value, wanted.double(), 1e-6)


def decoded(
    q_NHK: Tensor, rows_GSW: Tensor, ends: list[int], shape: tuple[int, ...], dtype: torch.dtype, value_start: int
) -> Tensor:
    """Rows `ends` − 1 of a sequence, each decoded alone from a cache whose rows lie scattered among numbers that nobody may read."""
    length = rows_GSW.shape[1]
    places = torch.randperm(length, generator=torch.Generator().manual_seed(1)) + 3
    store = torch.full((rows_GSW.shape[0], length + 9, rows_GSW.shape[2]), torch.nan, dtype=dtype, device=DEVICE)
    store[:, places.to(DEVICE)] = rows_GSW.to(dtype)
    keys_BS = torch.zeros(len(ends), round_up(max(ends)) + 16, dtype=torch.int64)
    for place, end in enumerate(ends):
        keys_BS[place, :end] = places[:end]
    plan = plan_decode(torch.tensor(ends), keys_BS, round_up(len(ends)), 1)
    rows = torch.tensor([end - 1 for end in ends] + [0] * (round_up(len(ends)) - len(ends)))
    out_NHV = dense_attend(
        q_NHK[rows.to(DEVICE)].to(dtype),
        store,
        plan.to(DEVICE),
        scale=shape[2] ** -0.5,
        value_start=value_start,
        value_width=shape[3],
        backend="triton",
    )
    assert not out_NHV[len(ends) :].any()
    return out_NHV[: len(ends)]


@pytest.mark.parametrize(
    ("segment", "shape"),
    [
        (32, SHAPES[0]),
        (2048, SHAPES[1]),
        pytest.param(32, SHAPES[1], marks=pytest.mark.slow),
        pytest.param(2048, SHAPES[0], marks=pytest.mark.slow),
    ],
)
def test_dense_attend_decoded_rows_are_those_of_the_packed_pass(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], segment: int
) -> None:
    """Within rounding in the interpreter, whose products round by a row's place in the tile; to the bit on a GPU (below)."""
    monkeypatch.setattr(triton_dense_forward, "SEGMENT", segment)
    q_NHK, rows_GSW = random_inputs(80, shape)
    packed = run(q_NHK, rows_GSW, packed_plan((70,), shape[0]), shape, "triton", torch.float32)[0]
    ends = [1, 16, 31, 32, 33, 70]
    poison_fresh_memory(monkeypatch)
    got = decoded(q_NHK, rows_GSW, ends, shape, torch.float32, shape[2])
    assert_near(got, packed[[end - 1 for end in ends]].double(), 1e-6)


def test_dense_attend_a_row_has_the_same_bits_whatever_follows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer neighbours, more segments than its own and padding behind it."""
    monkeypatch.setattr(triton_dense_forward, "SEGMENT", 32)
    shape = (2, 1, 16, 16)
    q_NHK, rows_GSW = random_inputs(112, shape)
    alone = run(q_NHK[:48], rows_GSW[:, :48], packed_plan((40,), 2), shape, "triton", torch.float32)[0]
    longer = run(q_NHK, rows_GSW, packed_plan((110,), 2), shape, "triton", torch.float32)[0]
    assert torch.equal(alone[:40], longer[:40])


def test_dense_attend_a_value_across_the_key_is_refused() -> None:
    q_NHK, rows_GSW = random_inputs(48, (2, 1, 16, 16))
    with pytest.raises(ValueError, match="value at channel 0 of a key row or behind"):
        run(q_NHK, rows_GSW, packed_plan((40,), 2), (2, 1, 16, 16), "triton", torch.float32, value_start=8)


def one_minus_cosine(got: Tensor, wanted: Tensor) -> float:
    got, wanted = got.double().flatten(), wanted.double().flatten()
    return 1 - float(got @ wanted / (got.norm() * wanted.norm()))


REAL_SHAPES = [(32, 8, 128, 128), (14, 2, 64, 64), (6, 3, 80, 80), (4, 2, 192, 128)]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", REAL_SHAPES)
def test_dense_attend_bfloat16_real_sizes_meet_the_limits(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    lengths = (300, 1, 517, 64, 128)
    plan, inputs = packed_plan(lengths, shape[0]), random_inputs(round_up(sum(lengths)), shape)
    out, grad_q, grad_rows = run(*inputs, plan, shape, "reference", torch.float64)
    poison_fresh_memory(monkeypatch)
    got = run(*inputs, plan, shape, "triton", torch.bfloat16)
    assert ((got[0].double() - out).abs() <= 8e-4 + 3 / 128 * out.abs()).all()
    assert one_minus_cosine(got[0], out) < 7e-6
    assert one_minus_cosine(got[1], grad_q) < 1e-5
    assert one_minus_cosine(got[2], grad_rows) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [*REAL_SHAPES, (128, 1, 576, 512)])
def test_dense_attend_row_has_the_same_bits_decoded_alone_and_packed(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Past a segment, with other sequences beside it, from a scattered store; MLA's value lies inside its key."""
    value_start = 0 if shape[2] == 576 else shape[2]
    length = 300 if value_start == 0 else 2400
    if value_start == 0:
        shape = (*shape[:2], 576, 512)
    q_NHK, rows_GSW = random_inputs(length + 320, shape)
    if value_start == 0:
        rows_GSW = rows_GSW[..., :576].contiguous()
    packed = run(q_NHK, rows_GSW, packed_plan((length, 100, 209), 1), shape, "triton", dtype, value_start)[0]
    alone = run(
        q_NHK[: round_up(length)],
        rows_GSW[:, : round_up(length)],
        packed_plan((length,), 1),
        shape,
        "triton",
        dtype,
        value_start,
    )[0]
    assert torch.equal(alone[:length], packed[:length])
    ends = [end for end in (1, 63, 64, 65, 299, 2047, 2048, 2049, 2400) if end <= length]
    got = decoded(q_NHK, rows_GSW[:, :length], ends, shape, dtype, value_start)
    assert torch.equal(got, packed[[end - 1 for end in ends]])


@pytest.mark.gpu
def test_dense_attend_100_repeats_give_equal_bits() -> None:
    shape = REAL_SHAPES[0]
    lengths = (300, 1, 517, 64, 128)
    plan, inputs = packed_plan(lengths, shape[0]), random_inputs(round_up(sum(lengths)), shape)
    wanted = run(*inputs, plan, shape, "triton", torch.bfloat16)
    for _ in range(100):
        for got, first in zip(run(*inputs, plan, shape, "triton", torch.bfloat16), wanted, strict=True):
            assert torch.equal(got, first)
