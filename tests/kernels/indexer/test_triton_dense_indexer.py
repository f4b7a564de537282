"""The indexer's loss over all keys on Triton against its definition in float64, with gradients."""

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from tests.kernels.triton_here import require_triton
from tests.poison import poison_fresh_memory

DEVICE = require_triton()

from samepath.kernels.backend import round_up
from samepath.kernels.indexer import triton_dense_indexer
from samepath.kernels.indexer.dense_indexer import Teacher, dense_indexer_loss
from samepath.kernels.indexer.triton_mass import window_mass
from samepath.kernels.window import AttentionPlan
from samepath.model.plan import Span, plan_spans

SHAPES = [(3, 48, 2, 16), (20, 16, 5, 24), (2, 80, 32, 16)]
"""Attention heads, key width, index heads, index width."""

LENGTHS = (5, 1, 33)


def packed_plan(lengths: tuple[int, ...], heads: int) -> AttentionPlan:
    spans, row = [], 0
    for length in lengths:
        spans.append(Span(row=row, first=0, count=length, keys=torch.arange(row, row + length)))
        row += length
    return plan_spans(spans, round_up(row), heads)


def seen(plan: AttentionPlan, num_rows: int, num_keys: int) -> Tensor:
    """bool [N, S], True where a row sees a key."""
    seen_NS = torch.zeros(num_rows, num_keys, dtype=torch.bool)
    for window in plan.windows:
        for rows_T, ends_T, keys_S in zip(window.rows_BT, window.ends_BT, window.keys_BS):
            for row, end in zip(rows_T.tolist(), ends_T.tolist()):
                seen_NS[row, keys_S[:end]] = True
    return seen_NS.to(DEVICE)


class Problem:
    """Random bfloat16 numbers in float64; the loss by its definition and by the kernels."""

    def __init__(self, shape: tuple[int, ...], lengths: tuple[int, ...] = LENGTHS, plan: AttentionPlan | None = None):
        heads, key, index_heads, index = shape
        generator = torch.Generator().manual_seed(0)
        self.plan = plan or packed_plan(lengths, 1)
        rows = self.plan.source_N.shape[0]

        def normal(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator).to(torch.bfloat16).double().to(DEVICE)

        self.q_NHK, self.kv_SK = normal(rows, heads, key), normal(rows, key)
        self.indexer = normal(rows, index_heads, index), normal(rows, index), normal(rows, index_heads) / 4
        self.upstream_N = normal(rows).abs()
        self.scale = key**-0.5
        self.seen_NS = seen(self.plan, rows, rows)
        scores = torch.einsum("nhk,sk->nhs", self.q_NHK, self.kv_SK) * self.scale
        self.scores_NHS = scores.masked_fill(~self.seen_NS[:, None], -torch.inf)
        self.lse_NH = self.scores_NHS.logsumexp(-1)
        self.mass_NS = torch.nan_to_num(self.scores_NHS.softmax(-1), nan=0.0).sum(1)

    def defined(self) -> tuple[Tensor, ...]:
        """(losses, gradients of index queries, keys and head weights), row by row in float64."""
        q_NIJ, k_SJ, weights_NI = leaves = [part.detach().requires_grad_() for part in self.indexer]
        losses = []
        for row in range(q_NIJ.shape[0]):
            mine = self.seen_NS[row]
            if not mine.any():
                losses.append(q_NIJ.new_zeros(()))
                continue
            logits_S = (weights_NI[row, :, None] * (q_NIJ[row] @ k_SJ[mine].T).relu()).sum(0)
            p_S = self.mass_NS[row, mine] / self.mass_NS[row, mine].sum()
            losses.append((torch.xlogy(p_S, p_S) - p_S * logits_S.log_softmax(0)).sum())
        losses_N = torch.stack(losses)
        return losses_N.detach(), *torch.autograd.grad(losses_N, leaves, self.upstream_N)

    def run(self, dtype: torch.dtype, backend: Literal["reference", "triton"] = "triton") -> tuple[Tensor, ...]:
        """The same by the kernels."""
        leaves = [part.to(dtype).detach().requires_grad_() for part in self.indexer]
        teacher = Teacher(
            q_NHK=self.q_NHK.to(dtype), kv_SK=self.kv_SK.to(dtype), lse_NH=self.lse_NH.float(), scale=self.scale
        )
        losses_N = dense_indexer_loss(*leaves, teacher, self.plan.to(DEVICE), backend)
        return losses_N.detach(), *torch.autograd.grad(losses_N, leaves, self.upstream_N.float())


def assert_near(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert got.shape == wanted.shape
    size = max(1.0, float(wanted.abs().max()))
    assert float((got.double() - wanted).abs().max()) <= tolerance * size


@pytest.mark.parametrize("shape", SHAPES)
def test_dense_indexer_loss_float32_equals_its_definition_with_gradients(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    problem = Problem(shape)
    wanted = problem.defined()
    poison_fresh_memory(monkeypatch)
    for value, truth in zip(problem.run(torch.float32), wanted, strict=True):
        assert_near(value, truth, 1e-5)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_dense_indexer_loss_by_hand(backend: Literal["reference", "triton"]) -> None:
    """Two keys, one attention head with scores 0 and ln 3, one index head with logits 0 and ln 2.

    p = (1/4, 3/4), softmax(I) = (1/3, 2/3): KL = ¼ ln ¾ + ¾ ln 9/8 = 0.016416 nats, and ∂KL/∂I₂ = 2/3 − 3/4 = −1/12.
    """
    plan = packed_plan((2,), 1)
    q_NHK, kv_SK = torch.zeros(16, 1, 16), torch.zeros(16, 16)
    q_NHK[1, 0, 0], kv_SK[1, 0] = 1.0, math.log(3)
    lse_NH = torch.zeros(16, 1)
    lse_NH[1] = math.log(4)
    q_NIJ, k_SJ, weights_NI = torch.zeros(16, 1, 16), torch.zeros(16, 16), torch.ones(16, 1)
    q_NIJ[1, 0, 0], k_SJ[1, 0], weights_NI[1] = 2.0, math.log(2), 0.5
    leaves = [part.to(DEVICE).requires_grad_() for part in (q_NIJ, k_SJ, weights_NI)]
    teacher = Teacher(q_NHK=q_NHK.to(DEVICE), kv_SK=kv_SK.to(DEVICE), lse_NH=lse_NH.to(DEVICE), scale=1.0)
    losses_N = dense_indexer_loss(*leaves, teacher, plan.to(DEVICE), backend)
    assert losses_N.tolist() == pytest.approx(
        [0.0, 0.25 * math.log(3 / 4) + 0.75 * math.log(9 / 8)] + [0.0] * 14, abs=1e-6
    )
    grad_q, grad_k, grad_weights = torch.autograd.grad(losses_N.sum(), leaves)
    # I₂ = ½ · ReLU(2 · ln 2): its derivatives are ½ · ln 2 by the query, ½ · 2 by the key and 2 ln 2 by the weight.
    assert float(grad_q[1, 0, 0]) == pytest.approx(-math.log(2) / 24, abs=1e-6)
    assert float(grad_k[1, 0]) == pytest.approx(-1 / 12, abs=1e-6)
    assert float(grad_weights[1]) == pytest.approx(-math.log(2) / 6, abs=1e-6)
    assert not grad_q[0].any()


def test_dense_indexer_loss_reference_equals_its_definition() -> None:
    problem = Problem(SHAPES[0])
    for value, truth in zip(problem.run(torch.float64, "reference"), problem.defined(), strict=True):
        # The kernels' LSE is float32.
        assert_near(value, truth, 1e-6)


def test_dense_indexer_loss_pieces_change_no_loss_and_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(SHAPES[0])
    whole = problem.run(torch.float32)
    monkeypatch.setattr(triton_dense_indexer, "PIECE_ELEMENTS", 16 * 48)
    for value, wanted in zip(problem.run(torch.float32), whole, strict=True):
        assert_near(value, wanted.double(), 1e-6)


def test_dense_indexer_loss_sequences_that_share_a_prompt_teach_the_same_keys() -> None:
    keys = [torch.cat([torch.arange(18), torch.arange(start, start + 5)]) for start in (18, 23)]
    spans = [Span(row=0, first=0, count=18, keys=torch.arange(18))]
    spans += [Span(row=start, first=18, count=5, keys=part) for start, part in zip((18, 23), keys)]
    problem = Problem(SHAPES[0], plan=plan_spans(spans, 32, 1))
    got, again = problem.run(torch.float32), problem.run(torch.float32)
    for value, second, truth in zip(got, again, problem.defined(), strict=True):
        assert torch.equal(value, second)
        assert_near(value, truth, 1e-5)


def one_minus_cosine(got: Tensor, wanted: Tensor) -> float:
    got, wanted = got.double().flatten(), wanted.double().flatten()
    return 1 - float(got @ wanted / (got.norm() * wanted.norm()))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(128, 576, 64, 128), (72, 576, 64, 128), (16, 192, 8, 64)])
def test_dense_indexer_loss_bfloat16_real_sizes(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    """Published widths (the kernel written for Hopper), an odd number of heads, and a small model."""
    problem = Problem(shape, (100, 300, 1, 33))
    wanted = problem.defined()
    poison_fresh_memory(monkeypatch)
    got = problem.run(torch.bfloat16)
    assert float((got[0].double() - wanted[0]).abs().max()) <= 1e-4 * max(1.0, float(wanted[0].abs().max()))
    for value, truth in zip(got[1:], wanted[1:], strict=True):
        assert one_minus_cosine(value, truth) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [128, 40])
def test_window_mass_real_sizes(monkeypatch: pytest.MonkeyPatch, heads: int) -> None:
    problem = Problem((heads, 576, 1, 16), (300, 77))
    poison_fresh_memory(monkeypatch)
    (window,) = problem.plan.to(DEVICE).windows
    mass_BTS = window_mass(
        problem.q_NHK.bfloat16(),
        problem.kv_SK.bfloat16(),
        problem.lse_NH.float(),
        window.rows_BT,
        window.ends_BT,
        window.keys_BS,
        problem.scale,
    )
    for rows_T, ends_T, keys_S, mass_TS in zip(window.rows_BT, window.ends_BT, window.keys_BS, mass_BTS):
        for row, end, mass_S in zip(rows_T.tolist(), ends_T.tolist(), mass_TS):
            torch.testing.assert_close(mass_S[:end].double(), problem.mass_NS[row, keys_S[:end]], rtol=3e-3, atol=1e-5)


@pytest.mark.gpu
def test_dense_indexer_loss_20_repeats_give_equal_bits() -> None:
    problem = Problem((128, 576, 64, 128), (100, 300, 1, 33))
    wanted = problem.run(torch.bfloat16)
    for _ in range(20):
        for got, first in zip(problem.run(torch.bfloat16), wanted, strict=True):
            assert torch.equal(got, first)
