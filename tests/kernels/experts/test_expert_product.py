"""The grouped expert product against a loop over slots. Tolerances: float64 1e-10, float32 1e-5 of the largest value."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from samepath.kernels.backend import Backend
from samepath.kernels.experts import expert_product as expert_product_module
from samepath.kernels.experts.expert_product import dispatch, expert_product
from samepath.kernels.rows.dense_rows import feed_forward
from samepath.kernels.rows.gated_unit import sigmoid, swiglu
from tests.poison import poison_fresh_memory

SHAPES = [(1, 2, 1, 3, 1), (16, 8, 4, 6, 2), (37, 16, 8, 5, 3), (50, 4, 2, 3, 2), (60, 272, 3, 260, 2)]
"""(N tokens, D width, E experts, F expert width, X chosen)."""


@dataclass
class Problem:
    x_ND: Tensor
    gates_NX: Tensor
    ids_NX: Tensor
    gate_up_EGD: Tensor
    down_EDF: Tensor

    def run(self, backend: Backend, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """(result, gradients of tokens, gates, gate-up and down weights)."""
        inputs = [
            tensor.to(dtype).detach().requires_grad_()
            for tensor in (self.x_ND, self.gates_NX, self.gate_up_EGD, self.down_EDF)
        ]
        x_ND, gates_NX, gate_up_EGD, down_EDF = inputs
        out_ND = expert_product(x_ND, gates_NX, self.ids_NX, gate_up_EGD, down_EDF, backend)
        upstream = torch.randn(out_ND.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        return out_ND.detach(), *torch.autograd.grad(out_ND, inputs, upstream.to(dtype))


def make_problem(shape: tuple[int, ...], seed: int = 0) -> Problem:
    num_tokens, width, experts, hidden, chosen = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    ids_NX = torch.stack([torch.randperm(experts, generator=generator)[:chosen] for _ in range(num_tokens)])
    return Problem(
        normal(num_tokens, width),
        normal(num_tokens, chosen),
        ids_NX,
        normal(experts, 2 * hidden, width) * 0.5,
        normal(experts, width, hidden) * 0.5,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", SHAPES)
def test_expert_product_torch_equals_reference_forward_and_gradients(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    problem = make_problem(shape)
    wanted = problem.run("reference", torch.float64)
    poison_fresh_memory(monkeypatch)
    for got, truth in zip(problem.run("torch", dtype), wanted, strict=True):
        size = max(1.0, float(truth.abs().max()))
        torch.testing.assert_close(got.double(), truth, rtol=0, atol=tolerance * size)


def test_expert_product_gradcheck_passes_in_float64() -> None:
    problem = make_problem((5, 3, 3, 2, 2))
    inputs = [
        tensor.requires_grad_() for tensor in (problem.x_ND, problem.gates_NX, problem.gate_up_EGD, problem.down_EDF)
    ]

    def function(x_ND: Tensor, gates_NX: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor) -> Tensor:
        return expert_product(x_ND, gates_NX, problem.ids_NX, gate_up_EGD, down_EDF, "torch")

    assert torch.autograd.gradcheck(function, inputs)


def test_expert_product_hand_worked_number() -> None:
    """x = 1; expert 0: gate 0, so SiLU 0; expert 1: SiLU(1)·2·3 with gate weight ½ gives 3·σ(1)."""
    gate_up_EGD = torch.tensor([[[0.0], [5.0]], [[1.0], [2.0]]])
    down_EDF = torch.tensor([[[7.0]], [[3.0]]])
    for backend in ("reference", "torch"):
        out = expert_product(
            torch.ones(1, 1), torch.tensor([[9.0, 0.5]]), torch.tensor([[0, 1]]), gate_up_EGD, down_EDF, backend
        )
        assert out.item() == pytest.approx(3 * 0.7310585786300049, rel=1e-6)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_expert_product_unused_expert_gets_zero_gradient(backend: Backend) -> None:
    problem = make_problem((20, 4, 5, 3, 2))
    problem.ids_NX = torch.tensor([[0, 3]] * 20)
    *_, grad_gate_up, grad_down = problem.run(backend, torch.float64)
    assert (grad_gate_up.abs().sum((1, 2)) > 0).tolist() == [True, False, False, True, False]
    assert (grad_down.abs().sum((1, 2)) > 0).tolist() == [True, False, False, True, False]


@pytest.mark.parametrize("shape", [(100, 32, 4, 16, 2), (100, 288, 4, 16, 2), (100, 32, 4, 288, 2)])
def test_expert_product_rows_do_not_depend_on_their_neighbours(shape: tuple[int, int, int, int, int]) -> None:
    """The block size and a token's row in it change with the batch; its bits do not."""
    problem = make_problem(shape)
    weights = (problem.gate_up_EGD.float(), problem.down_EDF.float())
    whole_ND = expert_product(problem.x_ND.float(), problem.gates_NX.float(), problem.ids_NX, *weights, "torch")
    for rows in (
        torch.tensor([3]),
        torch.arange(40, 57),
        torch.randperm(100, generator=torch.Generator().manual_seed(2)),
    ):
        part_ND = expert_product(
            problem.x_ND[rows].float(), problem.gates_NX[rows].float(), problem.ids_NX[rows], *weights, "torch"
        )
        assert torch.equal(part_ND, whole_ND[rows])


def test_expert_product_slots_are_summed_in_slot_order() -> None:
    """Replay hands the slots over in recorded order; another order rounds differently, so the order must be kept."""
    problem = make_problem((64, 16, 8, 8, 3))
    arguments = (problem.x_ND.float(), problem.gate_up_EGD.float(), problem.down_EDF.float())
    gates_NX = problem.gates_NX.float()

    def product(order: list[int]) -> Tensor:
        x_ND, gate_up, down = arguments
        return expert_product(x_ND, gates_NX[:, order], problem.ids_NX[:, order], gate_up, down, "torch")

    slots = [
        expert_product(
            arguments[0], gates_NX[:, [slot]], problem.ids_NX[:, [slot]], arguments[1], arguments[2], "torch"
        )
        for slot in range(3)
    ]
    assert torch.equal(product([0, 1, 2]), (slots[0] + slots[1]) + slots[2])
    assert torch.equal(product([2, 1, 0]), (slots[2] + slots[1]) + slots[0])
    assert not torch.equal(product([0, 1, 2]), product([2, 1, 0]))


def test_expert_product_thread_count_changes_no_bit() -> None:
    problem = make_problem((120, 64, 8, 32, 2))
    single = problem.run("torch", torch.float32)
    torch.set_num_threads(2)
    try:
        double = problem.run("torch", torch.float32)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(double[0], single[0])


@pytest.mark.parametrize("ids_NX", [torch.zeros(3, 2, dtype=torch.int64), torch.zeros(4, 1, dtype=torch.int64)])
def test_expert_product_bad_shapes_are_refused(ids_NX: Tensor) -> None:
    problem = make_problem((4, 2, 2, 2, 2))
    with pytest.raises(ValueError, match=r"ids and gates \[N, X\]"):
        expert_product(problem.x_ND, problem.gates_NX, ids_NX, problem.gate_up_EGD, problem.down_EDF, "torch")


def test_dispatch_groups_by_expert_in_token_order() -> None:
    """Expert 2 has tokens 0 and 1 (slots 1 and 3), expert 0 token 0, expert 1 token 1; each has 16 rows."""
    plan = dispatch(torch.tensor([[0, 2], [1, 2]]), 3, 16)
    assert plan.segments == ((0, slice(0, 16)), (1, slice(16, 32)), (2, slice(32, 48)))
    assert plan.rows.tolist() == [0, 32, 16, 33]
    assert plan.even
    assert plan.num_rows == 48


def test_dispatch_uneven_load_gives_each_expert_its_own_rows() -> None:
    """Expert 1 has 40 pairs, expert 3 one: 48 and 16 rows; four times 48 would be three times as many."""
    plan = dispatch(torch.tensor([[1]] * 40 + [[3]]), 4, 16)
    assert plan.segments == ((1, slice(0, 48)), (3, slice(48, 64)))
    assert plan.rows.tolist() == [*range(40), 48]
    assert (plan.even, plan.num_rows) == (False, 64)


@pytest.mark.parametrize("width", [16, 128, 240, 576])
def test_expert_product_row_has_the_same_bits_in_one_batched_product_and_in_separate_ones(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    x_ND, gates_NX = torch.randn(64, width, generator=generator), torch.rand(64, 2, generator=generator)
    ids_NX = torch.stack([torch.arange(64) % 4, (torch.arange(64) + 1) % 4], 1)
    weights = torch.randn(4, 64, width, generator=generator), torch.randn(4, width, 32, generator=generator)
    outs = []
    for factor in (0.0, 2.0):
        monkeypatch.setattr(expert_product_module, "MAX_EVEN_PADDING", factor)
        assert dispatch(ids_NX, 4, width).even == (factor > 1 and width < 256)
        outs.append(expert_product(x_ND, gates_NX, ids_NX, *weights, "torch"))
    assert torch.equal(*outs)


def test_dispatch_seventeen_tokens_of_one_expert_need_two_row_blocks() -> None:
    plan = dispatch(torch.ones(17, 1, dtype=torch.int64), 2, 16)
    assert plan.segments == ((1, slice(0, 32)),)
    assert plan.num_rows == 32


def test_sigmoid_bits_do_not_depend_on_the_place() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 8
    whole = sigmoid(x)
    torch.testing.assert_close(whole, torch.sigmoid(x), rtol=1e-6, atol=1e-7)
    for start in range(17):
        assert torch.equal(sigmoid(x[start : start + 5].clone()), whole[start : start + 5])


@pytest.mark.parametrize("value", [-200.0, 200.0])
def test_sigmoid_saturates_without_nan(value: float) -> None:
    assert sigmoid(torch.tensor([value])).item() == (1.0 if value > 0 else 0.0)


def test_swiglu_gate_comes_first() -> None:
    out = swiglu(torch.tensor([1.0, 3.0]))
    assert out.item() == pytest.approx(3 * 0.7310585786300049, rel=1e-6)


def test_feed_forward_equals_swiglu_by_hand() -> None:
    out = feed_forward(torch.ones(1, 1), torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]]), "torch")
    assert out.item() == pytest.approx(6 * 0.7310585786300049, rel=1e-6)
