"""Attention over all keys: against a loop, backends and gradients against each other, and one row's bits whatever surrounds it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samepath.kernels.backend import round_up
from samepath.kernels.dense_attention import dense_attention
from samepath.kernels.dense_attention.dense_attention import dense_attend
from samepath.kernels.window import AttentionPlan
from samepath.model.plan import Span, plan_decode, plan_spans
from tests.poison import poison_fresh_memory

SHAPES = [(1, 1, 16, 16), (4, 2, 8, 8), (6, 2, 16, 24), (3, 3, 32, 16), (9, 3, 64, 64), (4, 1, 40, 32)]
"""Query heads, key heads, key width, value width."""


def packed_plan(lengths: list[int], heads: int) -> AttentionPlan:
    spans, row = [], 0
    for length in lengths:
        spans.append(Span(row=row, first=0, count=length, keys=torch.arange(row, row + length)))
        row += length
    return plan_spans(spans, round_up(row), heads)


def random_inputs(
    num_rows: int, shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """(queries, key rows with the value after the key)."""
    heads, groups, key, value = shape
    generator = torch.Generator().manual_seed(seed)
    q_NHK = torch.randn(num_rows, heads, key, generator=generator, dtype=torch.float64)
    rows_GSW = torch.randn(groups, num_rows, key + value, generator=generator, dtype=torch.float64)
    return q_NHK.to(dtype), rows_GSW.to(dtype)


def attend(
    q_NHK: Tensor, rows_GSW: Tensor, plan: AttentionPlan, shape: tuple[int, int, int, int], backend: str
) -> Tensor:
    return dense_attend(
        q_NHK,
        rows_GSW,
        plan,
        scale=0.3,
        value_start=shape[2],
        value_width=shape[3],
        backend=backend,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_dense_attend_equals_a_loop_over_queries_and_heads(backend: str) -> None:
    shape, lengths = (6, 2, 16, 24), [5, 1, 20]
    q_NHK, rows_GSW = random_inputs(32, shape, torch.float64)
    out_NHV = attend(q_NHK, rows_GSW, packed_plan(lengths, 6), shape, backend)
    start = 0
    for length in lengths:
        for row in range(start, start + length):
            for head in range(6):
                seen_SW = rows_GSW[head // 3, start : row + 1]
                probs_S = (seen_SW[:, :16] @ q_NHK[row, head] * 0.3).softmax(0)
                torch.testing.assert_close(out_NHV[row, head], probs_S @ seen_SW[:, 16:], rtol=0, atol=1e-12)
        start += length
    assert not out_NHV[start:].any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("value_in_key", [False, True])
@pytest.mark.parametrize("chunk_elements", [1, 1 << 20])
def test_dense_attend_backends_agree_with_gradients(
    shape: tuple[int, int, int, int], value_in_key: bool, chunk_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value beside the key (grouped queries) and inside it (MLA), whole windows and one sequence at a time, memory poisoned."""
    poison_fresh_memory(monkeypatch)
    monkeypatch.setattr(dense_attention, "CHUNK_ELEMENTS", chunk_elements)
    heads, _, key, value = shape
    start, value = (0, min(key, value)) if value_in_key else (key, value)
    plan = packed_plan([150, 3, 17, 1, 40], heads)
    results = []
    for backend in ("reference", "torch"):
        q_NHK, rows_GSW = (part.requires_grad_() for part in random_inputs(224, shape, torch.float64))
        out_NHV = dense_attend(
            q_NHK,
            rows_GSW,
            plan,
            scale=0.3,
            value_start=start,
            value_width=value,
            backend=backend,  # type: ignore[arg-type]
        )
        weight = torch.randn(out_NHV.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        results.append((out_NHV, *torch.autograd.grad((out_NHV * weight).sum(), (q_NHK, rows_GSW))))
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)


def test_dense_attend_sequences_that_share_a_prompt_read_and_teach_the_same_rows() -> None:
    """Rows 0 to 19 are a prompt; two responses follow it. Both forms give each response what it gets on its own."""
    shape = (4, 2, 16, 16)
    q_NHK, rows_GSW = (part.requires_grad_() for part in random_inputs(48, shape, torch.float64))
    keys = [torch.cat([torch.arange(20), torch.arange(start, start + 10)]) for start in (20, 30)]
    spans = [Span(row=0, first=0, count=20, keys=torch.arange(20))]
    spans += [Span(row=start, first=20, count=10, keys=part) for start, part in zip((20, 30), keys)]
    plan = plan_spans(spans, 48, 4)
    out, wanted = (attend(q_NHK, rows_GSW, plan, shape, backend) for backend in ("torch", "reference"))
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)
    alone = attend(q_NHK[keys[1]], rows_GSW[:, keys[1]], packed_plan([30], 4), shape, "reference")
    torch.testing.assert_close(out[30:40], alone[20:30], rtol=0, atol=1e-12)
    for got, right in zip(
        torch.autograd.grad(out.square().sum(), (q_NHK, rows_GSW)),
        torch.autograd.grad(wanted.square().sum(), (q_NHK, rows_GSW)),
        strict=True,
    ):
        torch.testing.assert_close(got, right, rtol=0, atol=1e-11)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 420), min_size=1, max_size=4),
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 9),
    threads=st.sampled_from([1, 2]),
)
def test_dense_attend_row_has_the_same_bits_alone_decoded_chunked_and_packed(
    lengths: list[int], shape: tuple[int, int, int, int], seed: int, threads: int
) -> None:
    """Past several key blocks, with neighbours of other lengths, from a scattered store, and with two threads."""
    total = sum(lengths)
    q_NHK, rows_GSW = random_inputs(round_up(total), shape, seed=seed)
    packed = attend(q_NHK, rows_GSW, packed_plan(lengths, shape[0]), shape, "torch")
    torch.set_num_threads(threads)
    try:
        scattered = torch.randperm(total, generator=torch.Generator().manual_seed(seed)) + 3
        store = torch.randn(rows_GSW.shape[0], total + 7, rows_GSW.shape[2])
        store[:, scattered] = rows_GSW[:, :total]
        start, first, last = 0, [], []
        for length in lengths:
            rows = slice(start, start + length)
            plan = packed_plan([length], shape[0])
            alone = attend(
                torch.cat([q_NHK[rows], q_NHK[: round_up(length) - length]]), rows_GSW[:, rows], plan, shape, "torch"
            )
            assert torch.equal(alone[:length], packed[rows])
            cut = length // 3
            tail = [Span(row=0, first=cut, count=length - cut, keys=scattered[rows])]
            chunk = attend(q_NHK[start + cut :], store, plan_spans(tail, total - start - cut, shape[0]), shape, "torch")
            assert torch.equal(chunk[: length - cut], packed[start + cut : start + length])
            first.append(start)
            last.append(start + length - 1)
            start += length
        keys_BS = torch.zeros(len(lengths), round_up(max(lengths)) + 16, dtype=torch.int64)
        for place, (begin, length) in enumerate(zip(first, lengths)):
            keys_BS[place, :length] = scattered[begin : begin + length]
        decode = plan_decode(torch.tensor(lengths), keys_BS, 16, shape[0])
        rows = q_NHK[torch.tensor(last + [0] * (16 - len(last)))]
        assert torch.equal(attend(rows, store, decode, shape, "torch")[: len(lengths)], packed[last])
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(("shape", "value_width"), [((4, 3, 16, 16), 16), ((4, 2, 48, 16), 16), ((4, 2, 16, 16), 64)])
def test_dense_attend_shapes_that_do_not_fit_are_refused(shape: tuple[int, int, int, int], value_width: int) -> None:
    q_NHK, rows_GSW = torch.zeros(16, shape[0], shape[2]), torch.zeros(shape[1], 16, 32)
    with pytest.raises(ValueError, match="dense_attend needs q"):
        dense_attend(
            q_NHK, rows_GSW, packed_plan([16], 4), scale=1.0, value_start=0, value_width=value_width, backend="torch"
        )
