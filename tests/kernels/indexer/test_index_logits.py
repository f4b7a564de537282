"""Index logits and the indexer's own loss. Tolerances: float64 1e-10, float32 1e-5 of the largest value."""

import math

import pytest
import torch
from torch import Tensor

from samepath.kernels.backend import Backend
from samepath.kernels.indexer.index_logits import cached_index_logits, index_logits, indexer_loss, selected_index_logits

SHAPES = [(1, 1, 1, 1, 2), (2, 3, 16, 3, 8), (3, 5, 33, 4, 16), (1, 17, 48, 5, 7)]
"""(B sequences, T rows, S keys, I heads, K width); T·I is often no multiple of 16."""


def make_inputs(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    num_sequences, num_rows, num_keys, heads, width = shape
    generator = torch.Generator().manual_seed(seed)
    q_BTIK = torch.randn(num_sequences, num_rows, heads, width, generator=generator, dtype=torch.float64)
    k_BSK = torch.randn(num_sequences, num_keys, width, generator=generator, dtype=torch.float64)
    weights_BTI = torch.randn(num_sequences, num_rows, heads, generator=generator, dtype=torch.float64)
    return q_BTIK, k_BSK, weights_BTI


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", SHAPES)
def test_index_logits_torch_equals_reference(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    inputs = make_inputs(shape)
    wanted = index_logits(*inputs, "reference")
    got = index_logits(*(tensor.to(dtype) for tensor in inputs), "torch")
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=tolerance * max(1.0, float(wanted.abs().max())))


def test_index_logits_hand_worked_number_includes_negative_weight() -> None:
    """Head 0: q·k = 2 with weight 3; head 1: q·k = 5 with weight −1; a negative product counts as 0: 6 − 5 = 1, and −2."""
    q_BTIK = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    k_BSK = torch.tensor([[[2.0, 5.0], [-4.0, 2.0]]])
    for backend in ("reference", "torch"):
        assert index_logits(q_BTIK, k_BSK, torch.tensor([[[3.0, -1.0]]]), backend).tolist() == [[[1.0, -2.0]]]


def test_index_logits_rows_and_keys_do_not_depend_on_the_rest_of_the_window() -> None:
    q_BTIK, k_BSK, weights_BTI = (tensor.float() for tensor in make_inputs((3, 24, 64, 4, 16)))
    whole = index_logits(q_BTIK, k_BSK, weights_BTI, "torch")
    for sequence, rows, num_keys in [(0, slice(0, 1), 16), (2, slice(5, 6), 48), (1, slice(3, 20), 32)]:
        part = (slice(sequence, sequence + 1), rows)
        alone = index_logits(q_BTIK[part], k_BSK[sequence : sequence + 1, :num_keys], weights_BTI[part], "torch")
        assert torch.equal(alone[0], whole[sequence, rows, :num_keys])


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_index_logits_bad_shapes_are_refused(broken: int) -> None:
    inputs = list(make_inputs((2, 3, 16, 3, 8)))
    inputs[broken] = inputs[broken][:1]
    with pytest.raises(ValueError, match=r"q \[B,T,I,K\]"):
        index_logits(*inputs, "torch")


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_cached_index_logits_are_those_of_the_rows_that_the_table_lists(backend: Backend) -> None:
    q_BTIK, k_BSK, weights_BTI = make_inputs((2, 3, 16, 3, 8))
    table_BS = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:32].view(2, 16)
    keys_SK = torch.full((40, 8), torch.nan, dtype=torch.float64)
    keys_SK[table_BS] = k_BSK
    ends_BT = torch.full((2, 3), 16)
    got = cached_index_logits(q_BTIK, keys_SK, table_BS, weights_BTI, ends_BT, backend)
    assert torch.equal(got, index_logits(q_BTIK, k_BSK, weights_BTI, backend))


@pytest.mark.parametrize(
    ("broken", "message"), [(0, "table"), (1, "equally wide"), (2, "table"), (3, "ends"), (4, "ends")]
)
def test_cached_index_logits_bad_shapes_are_refused(broken: int, message: str) -> None:
    q_BTIK, k_BSK, weights_BTI = make_inputs((2, 3, 16, 3, 8))
    inputs = [q_BTIK, k_BSK[0], torch.zeros(2, 16, dtype=torch.int64), weights_BTI, torch.ones(2, 3, dtype=torch.int64)]
    inputs[broken] = inputs[broken][:, :1] if broken == 1 else inputs[broken][:1]
    with pytest.raises(ValueError, match=message):
        cached_index_logits(*inputs, "torch")


def test_selected_index_logits_equal_the_full_ones_at_the_selection() -> None:
    q_BTIK, k_BSK, weights_BTI = make_inputs((1, 6, 20, 3, 8))
    full_TS = index_logits(q_BTIK, k_BSK, weights_BTI, "reference")[0]
    indices_NC = torch.tensor([[0, 3, 19, -1]] * 6)
    got_NC = selected_index_logits(q_BTIK[0], k_BSK[0], weights_BTI[0], indices_NC)
    torch.testing.assert_close(got_NC[:, :3], full_TS[:, [0, 3, 19]], rtol=0, atol=1e-12)


def test_selected_index_logits_gradcheck_passes() -> None:
    q_BTIK, k_BSK, weights_BTI = make_inputs((1, 3, 5, 2, 4))
    indices_NC = torch.tensor([[0, 3], [4, 2], [1, -1]])

    def function(q_NIK: Tensor, k_SK: Tensor, weights_NI: Tensor) -> Tensor:
        return selected_index_logits(q_NIK, k_SK, weights_NI, indices_NC)

    inputs = (q_BTIK[0].requires_grad_(), k_BSK[0].requires_grad_(), weights_BTI[0].requires_grad_())
    assert torch.autograd.gradcheck(function, inputs)


def test_indexer_loss_hand_worked_number() -> None:
    """p = (¾, ¼) from mass (6, 2), equal logits: ¾·ln(¾/½) + ¼·ln(¼/½)."""
    loss_N = indexer_loss(torch.zeros(1, 3), torch.tensor([[6.0, 2.0, 99.0]]), torch.tensor([2]))
    assert loss_N.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-7)


def test_indexer_loss_gradient_is_softmax_minus_teacher_and_sums_to_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_NC = torch.randn(7, 5, generator=generator, dtype=torch.float64).requires_grad_()
    mass_NC = torch.rand(7, 5, generator=generator, dtype=torch.float64)
    count_N = torch.tensor([5, 4, 3, 2, 1, 0, 5])
    indexer_loss(logits_NC, mass_NC, count_N).sum().backward()
    assert logits_NC.grad is not None
    for row, count in enumerate(count_N.tolist()):
        teacher = mass_NC[row, :count] / mass_NC[row, :count].sum()
        wanted = torch.zeros(5, dtype=torch.float64)
        wanted[:count] = logits_NC[row, :count].detach().softmax(0) - teacher
        torch.testing.assert_close(logits_NC.grad[row], wanted, rtol=0, atol=1e-12)
        assert abs(float(logits_NC.grad[row].sum())) < 1e-12


@pytest.mark.parametrize("count", [0, 1])
def test_indexer_loss_row_with_at_most_one_key_is_zero_with_zero_gradient(count: int) -> None:
    logits_NC = torch.tensor([[5.0, -3.0]], requires_grad=True)
    loss_N = indexer_loss(logits_NC, torch.tensor([[0.5, 0.5]]), torch.tensor([count]))
    loss_N.sum().backward()
    assert loss_N.tolist() == [0.0]
    assert logits_NC.grad is not None
    assert logits_NC.grad.tolist() == [[0.0, 0.0]]


def test_indexer_loss_teacher_is_constant_and_its_scale_does_not_matter() -> None:
    logits_NC = torch.tensor([[0.3, -1.0, 2.0]], requires_grad=True)
    mass_NC = torch.tensor([[0.2, 0.5, 0.1]], requires_grad=True)
    loss_N = indexer_loss(logits_NC, mass_NC, torch.tensor([3]))
    assert torch.autograd.grad(loss_N.sum(), mass_NC, allow_unused=True) == (None,)
    scaled_N = indexer_loss(logits_NC, mass_NC * 16, torch.tensor([3]))
    torch.testing.assert_close(scaled_N, loss_N)


def test_indexer_loss_matching_distribution_is_zero() -> None:
    logits_NC = torch.tensor([[1.0, 0.0, -2.0]], dtype=torch.float64)
    assert indexer_loss(logits_NC, logits_NC.softmax(1) * 4, torch.tensor([3])).item() == pytest.approx(0.0, abs=1e-15)
