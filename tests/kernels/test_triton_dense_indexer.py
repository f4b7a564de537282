"""The indexer's loss over all keys on Triton against its definition in float64, with gradients."""

from typing import Literal

import pytest
import torch
from torch import Tensor

from tests.kernels.triton_here import require_triton
from tests.poison import poison_fresh_memory

DEVICE = require_triton()

from samepath.kernels.backend import round_up
from samepath.kernels.dense_indexer import Teacher, dense_indexer_loss
from samepath.kernels.window import AttentionPlan
from samepath.model.plan import Span, plan_spans

SHAPES = [(3, 48, 2, 16), (20, 16, 5, 24), (2, 80, 32, 16)]
"""Attention heads, key width, index heads, index width."""

LENGTHS = (21, 1, 37, 6)


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
