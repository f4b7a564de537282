"""The log-probability head against log_softmax. Tolerances: float64 1e-10, float32 2e-5 (logits of order 10)."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from samepath.kernels.backend import Backend
from samepath.kernels.head import logprob
from samepath.kernels.head.logprob import SupportRows, head_logprobs, padded_logits
from tests.poison import poison_fresh_memory

SHAPES = [(1, 2, 3), (7, 16, 33), (50, 24, 101)]
"""(N rows, D width, V vocabulary)."""


@dataclass
class Problem:
    hidden_ND: Tensor
    weight_VD: Tensor
    targets_N: Tensor
    temperature_N: Tensor
    support: SupportRows | None

    def run(self, backend: Backend, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """(logprobs, entropy, kept mass, gradients of hidden states and weight)."""
        hidden_ND = self.hidden_ND.to(dtype).detach().requires_grad_()
        weight_VD = self.weight_VD.to(dtype).detach().requires_grad_()
        temperature_N = self.temperature_N.to(dtype)
        logprobs_N, entropy_N, mass_N = head_logprobs(
            hidden_ND, weight_VD, self.targets_N, temperature_N, self.support, backend
        )
        upstream = torch.linspace(-1, 2, len(logprobs_N), dtype=dtype)
        grads = torch.autograd.grad(logprobs_N, (hidden_ND, weight_VD), upstream)
        return logprobs_N.detach(), entropy_N, mass_N, *grads

    def truth(self) -> tuple[Tensor, Tensor, Tensor]:
        """(logprobs, entropy, kept mass) row by row in float64."""
        logprobs, entropies, masses = [], [], []
        start = 0
        for row, target in enumerate(self.targets_N.tolist()):
            scaled_V = self.weight_VD @ self.hidden_ND[row] / self.temperature_N[row].double()
            full_V = scaled_V.softmax(0)
            kept = torch.ones(len(full_V), dtype=torch.bool)
            if self.support is not None and (count := int(self.support.counts_N[row])):
                kept[:] = False
                kept[self.support.ids[start : start + count]] = True
                start += count
            logprobs.append((full_V[target] / full_V[kept].sum()).log())
            entropies.append(-(full_V * full_V.log()).sum())
            masses.append(full_V[kept].sum())
        return torch.stack(logprobs), torch.stack(entropies), torch.stack(masses)


def make_problem(shape: tuple[int, ...], with_support: bool, seed: int = 0) -> Problem:
    """Rows with supports of 0 (full vocabulary) to V tokens, the target always inside."""
    num_rows, width, vocab_size = shape
    generator = torch.Generator().manual_seed(seed)
    hidden_ND = torch.randn(num_rows, width, generator=generator, dtype=torch.float64)
    weight_VD = torch.randn(vocab_size, width, generator=generator, dtype=torch.float64)
    targets_N = torch.randint(0, vocab_size, (num_rows,), generator=generator)
    temperature_N = torch.rand(num_rows, generator=generator) + 0.5
    support = None
    if with_support:
        counts, ids = [], []
        for row, target in enumerate(targets_N.tolist()):
            size = row % (vocab_size + 1)
            others = [token for token in torch.randperm(vocab_size, generator=generator).tolist() if token != target]
            kept = sorted([target, *others[: size - 1]]) if size else []
            counts.append(len(kept))
            ids += kept
        support = SupportRows(counts_N=torch.tensor(counts), ids=torch.tensor(ids, dtype=torch.int64))
    return Problem(hidden_ND, weight_VD, targets_N, temperature_N, support)


@pytest.mark.parametrize("with_support", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_head_logprobs_reference_equals_row_by_row_softmax(shape: tuple[int, ...], with_support: bool) -> None:
    problem = make_problem(shape, with_support)
    for got, wanted in zip(problem.run("reference", torch.float64)[:3], problem.truth(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
@pytest.mark.parametrize("with_support", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_head_logprobs_torch_equals_reference_forward_and_gradients(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], with_support: bool, dtype: torch.dtype, tolerance: float
) -> None:
    problem = make_problem(shape, with_support)
    wanted = problem.run("reference", torch.float64)
    poison_fresh_memory(monkeypatch)
    for got, truth in zip(problem.run("torch", dtype), wanted, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), truth, rtol=0, atol=tolerance * max(1.0, float(truth.abs().max())))


@pytest.mark.parametrize("with_support", [False, True])
def test_head_logprobs_chunk_boundaries_change_no_forward_bit(
    monkeypatch: pytest.MonkeyPatch, with_support: bool
) -> None:
    problem = make_problem((50, 24, 101), with_support)
    whole = problem.run("torch", torch.float32)
    monkeypatch.setattr(logprob, "CHUNK_ELEMENTS", 101 * 16)
    parts = problem.run("torch", torch.float32)
    for got, wanted in zip(parts[:3], whole[:3], strict=True):
        assert torch.equal(got, wanted)
    # Gradients are sums whose grouping may follow the chunk: the same terms in another order.
    for got, wanted in zip(parts[3:], whole[3:], strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("with_support", [False, True])
def test_head_logprobs_gradcheck_passes(with_support: bool) -> None:
    problem = make_problem((5, 3, 7), with_support)

    def function(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
        temperature_N = problem.temperature_N.double()
        return head_logprobs(hidden_ND, weight_VD, problem.targets_N, temperature_N, problem.support, "torch")[0]

    assert torch.autograd.gradcheck(function, (problem.hidden_ND.requires_grad_(), problem.weight_VD.requires_grad_()))


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_head_logprobs_hand_worked_numbers(backend: Backend) -> None:
    """Logits 2·ln(2, 1, 1) at temperature 2 are probabilities ½, ¼, ¼; the support {0, 2} keeps ¾, so π(2) = ⅓."""
    weight_VD = torch.tensor([[2 * math.log(2)], [0.0], [0.0]], dtype=torch.float64)
    support = SupportRows(counts_N=torch.tensor([2, 0]), ids=torch.tensor([0, 2]))
    logprobs_N, entropy_N, mass_N = head_logprobs(
        torch.ones(2, 1, dtype=torch.float64),
        weight_VD,
        torch.tensor([2, 2]),
        torch.tensor([2.0, 2.0]),
        support,
        backend,
    )
    assert logprobs_N.exp().tolist() == pytest.approx([1 / 3, 1 / 4])
    assert mass_N.tolist() == pytest.approx([0.75, 1.0])
    assert entropy_N.tolist() == pytest.approx([1.5 * math.log(2)] * 2)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_head_logprobs_support_of_one_is_certain_with_zero_gradient(backend: Backend) -> None:
    problem = make_problem((3, 4, 9), with_support=False)
    problem.support = SupportRows(counts_N=torch.ones(3, dtype=torch.int64), ids=problem.targets_N)
    logprobs_N, _, _, grad_hidden, grad_weight = problem.run(backend, torch.float64)
    assert torch.equal(logprobs_N, torch.zeros_like(logprobs_N))
    assert not grad_hidden.any()
    assert not grad_weight.any()


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_head_logprobs_target_outside_its_support_is_refused(backend: Backend) -> None:
    problem = make_problem((3, 4, 9), with_support=False)
    problem.targets_N = torch.tensor([1, 2, 3])
    problem.support = SupportRows(counts_N=torch.tensor([0, 2, 1]), ids=torch.tensor([1, 5, 3]))
    with pytest.raises(ValueError, match=r"1 of 3 do not \(first: row 1\)"):
        problem.run(backend, torch.float32)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_head_logprobs_entropy_and_mass_carry_no_gradient(backend: Backend) -> None:
    problem = make_problem((3, 4, 9), with_support=True)
    _, entropy_N, mass_N = head_logprobs(
        problem.hidden_ND.requires_grad_(),
        problem.weight_VD.requires_grad_(),
        problem.targets_N,
        problem.temperature_N,
        problem.support,
        backend,
    )
    assert not entropy_N.requires_grad
    assert not mass_N.requires_grad


@pytest.mark.parametrize("with_support", [False, True])
def test_head_logprobs_rows_do_not_depend_on_their_neighbours(with_support: bool) -> None:
    problem = make_problem((50, 32, 101), with_support)
    whole = problem.run("torch", torch.float32)
    for start, stop in [(0, 1), (13, 14), (5, 38), (49, 50)]:
        support = None
        if problem.support is not None:
            counts_N = problem.support.counts_N
            first = int(counts_N[:start].sum())
            ids = problem.support.ids[first : first + int(counts_N[start:stop].sum())]
            support = SupportRows(counts_N=counts_N[start:stop], ids=ids)
        part = head_logprobs(
            problem.hidden_ND[start:stop].float(),
            problem.weight_VD.float(),
            problem.targets_N[start:stop],
            problem.temperature_N[start:stop],
            support,
            "torch",
        )
        for got, wanted in zip(part, whole[:3], strict=True):
            assert torch.equal(got, wanted[start:stop])


def test_head_logprobs_thread_count_changes_no_bit() -> None:
    problem = make_problem((50, 32, 101), with_support=True)
    single = problem.run("torch", torch.float32)
    torch.set_num_threads(2)
    try:
        double = problem.run("torch", torch.float32)
    finally:
        torch.set_num_threads(1)
    for got, wanted in zip(double[:3], single[:3], strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("num_rows", [1, 15, 16, 17, 33])
def test_padded_logits_equal_the_plain_product_without_the_padding(num_rows: int) -> None:
    hidden_ND = torch.randn(num_rows, 32, generator=torch.Generator().manual_seed(0))
    weight_VD = torch.randn(19, 32, generator=torch.Generator().manual_seed(1))
    got = padded_logits(hidden_ND, weight_VD)
    assert got.shape == (num_rows, 19)
    torch.testing.assert_close(got, linear(hidden_ND, weight_VD), rtol=0, atol=1e-5)


def test_support_rows_select_keeps_each_rows_candidates() -> None:
    rows = SupportRows(counts_N=torch.tensor([2, 0, 3, 1]), ids=torch.tensor([5, 6, 1, 2, 3, 9]))
    chosen = rows.select(torch.tensor([2, 0, 1, 2]))
    assert chosen.counts_N.tolist() == [3, 2, 0, 3]
    assert chosen.ids.tolist() == [1, 2, 3, 5, 6, 1, 2, 3]
    assert rows.select(torch.tensor([], dtype=torch.int64)).ids.tolist() == []
