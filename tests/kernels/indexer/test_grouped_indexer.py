"""The indexer's loss and recall over all keys of grouped-query attention: naive loops in float64, gradients, blocks, padding."""

import math

import pytest
import torch
from torch import Tensor

from samepath.kernels.indexer import grouped_indexer
from samepath.kernels.indexer.grouped_indexer import GroupedTeacher, captured_mass, grouped_indexer_loss
from samepath.kernels.window import AttentionPlan
from samepath.model.plan import Span, plan_spans

LENGTHS = (5, 1, 19)
ROWS = 32
HEADS, GROUPS, WIDTH, INDEX_HEADS, INDEX_WIDTH = 6, 2, 8, 3, 4


def plan() -> AttentionPlan:
    """Three sequences and seven rows of padding; keys stand in another order than queries."""
    spans, row = [], 0
    for length in LENGTHS:
        keys = torch.arange(row, row + length).flip(0).contiguous()
        spans.append(Span(row=row, first=0, count=length, keys=keys))
        row += length
    return plan_spans(spans, ROWS, INDEX_HEADS)


def keys_of(row: int) -> list[int]:
    first = 0
    for length in LENGTHS:
        if row < first + length:
            return list(range(first, first + length))[::-1][: row - first + 1]
        first += length
    return []


@pytest.fixture
def tensors() -> tuple[Tensor, Tensor, Tensor, GroupedTeacher]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    teacher = GroupedTeacher(q_NHK=normal(ROWS, HEADS, WIDTH), keys_GSK=normal(GROUPS, ROWS, WIDTH), scale=WIDTH**-0.5)
    return normal(ROWS, INDEX_HEADS, INDEX_WIDTH), normal(ROWS, INDEX_WIDTH), normal(ROWS, INDEX_HEADS), teacher


def naive_row(q: Tensor, k: Tensor, w: Tensor, teacher: GroupedTeacher, row: int) -> tuple[Tensor, Tensor]:
    """(p, I) of one row, number by number (arXiv:2512.02556 eq. 1, 3)."""
    keys = keys_of(row)
    total = torch.zeros(len(keys), dtype=torch.float64)
    for head in range(HEADS):
        key_head = teacher.keys_GSK[head // (HEADS // GROUPS)]
        scores = torch.stack([teacher.q_NHK[row, head] @ key_head[key] * teacher.scale for key in keys])
        total = total + scores.softmax(0)
    logits = torch.stack([sum(w[row, j] * (q[row, j] @ k[key]).relu() for j in range(INDEX_HEADS)) for key in keys])  # type: ignore[arg-type]
    return total / total.sum(), logits


@pytest.mark.parametrize("chunk", [1 << 20, 200])
def test_grouped_indexer_loss_and_gradients_equal_the_naive_ones_in_blocks_of_any_size(
    tensors: tuple[Tensor, Tensor, Tensor, GroupedTeacher], monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(grouped_indexer, "CHUNK_ELEMENTS", chunk)
    *leaves, teacher = tensors
    leaves = [leaf.requires_grad_() for leaf in leaves]
    weights_N = torch.linspace(0.5, 2, ROWS, dtype=torch.float64)
    got_N = grouped_indexer_loss(*leaves, teacher, plan())
    got = torch.autograd.grad((got_N * weights_N).sum(), leaves)
    wanted_N = []
    for row in range(sum(LENGTHS)):
        p, logits = naive_row(*leaves, teacher, row)
        wanted_N.append((p * (p / logits.softmax(0)).log()).sum())
    wanted = torch.autograd.grad((torch.stack(wanted_N) * weights_N[: len(wanted_N)]).sum(), leaves)
    torch.testing.assert_close(got_N[: len(wanted_N)], torch.stack(wanted_N), rtol=0, atol=1e-12)
    assert not got_N[len(wanted_N) :].any()
    assert float(got_N.detach().max()) > 0.1
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_grouped_indexer_loss_is_zero_without_gradient_where_the_indexer_equals_its_teacher() -> None:
    """One head of each, the indexer's logits are the scores (all positive) plus nothing: KL 0 and gradient 0."""
    x = torch.rand(16, 4, dtype=torch.float64) + 0.1
    teacher = GroupedTeacher(q_NHK=x[:, None], keys_GSK=x[None], scale=0.5)
    leaves = [x[:, None].clone(), x.clone(), torch.full((16, 1), 0.5, dtype=torch.float64)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    plan_16 = plan_spans([Span(row=0, first=0, count=16, keys=torch.arange(16))], 16, 1)
    loss_N = grouped_indexer_loss(*leaves, teacher, plan_16)
    assert float(loss_N.detach().abs().max()) < 1e-14
    for gradient in torch.autograd.grad(loss_N.sum(), leaves):
        assert float(gradient.abs().max()) < 1e-14


def test_captured_mass_is_the_share_of_the_highest_index_logits(
    tensors: tuple[Tensor, Tensor, Tensor, GroupedTeacher],
) -> None:
    amounts = (1, 4, 100)
    got_NA, best_NA = captured_mass(*tensors, plan(), amounts)
    for row in range(sum(LENGTHS)):
        p, logits = naive_row(*tensors, row)
        order = sorted(range(len(p)), key=lambda place: (-float(logits[place]), place))
        for place, amount in enumerate(amounts):
            assert math.isclose(float(got_NA[row, place]), sum(float(p[one]) for one in order[:amount]), abs_tol=1e-12)
            best = sum(sorted(p.tolist(), reverse=True)[:amount])
            assert math.isclose(float(best_NA[row, place]), best, abs_tol=1e-12)
    assert float((best_NA - got_NA)[:, 1].max()) > 0.05
    assert torch.allclose(got_NA[: sum(LENGTHS), 2], torch.ones(sum(LENGTHS), dtype=torch.float64))
    assert not got_NA[sum(LENGTHS) :].any()
    assert not best_NA[sum(LENGTHS) :].any()


def test_captured_mass_ties_go_to_the_lower_position() -> None:
    """All index logits are 0: the first keys count."""
    zeros = torch.zeros(16, 1, 4), torch.zeros(16, 4), torch.zeros(16, 1)
    q = torch.randn(16, 1, 4, generator=torch.Generator().manual_seed(0))
    teacher = GroupedTeacher(q_NHK=q, keys_GSK=q.transpose(0, 1).contiguous(), scale=1.0)
    plan_16 = plan_spans([Span(row=0, first=0, count=16, keys=torch.arange(16))], 16, 1)
    wanted = (q[15, 0] @ q[:, 0].T).softmax(0)[:3].sum()
    torch.testing.assert_close(captured_mass(*zeros, teacher, plan_16, [3])[0][15, 0], wanted)
