"""Triton's expert product against the loop over slots in float64. Tolerances: float32 1e-5 of the largest value, bfloat16 2 %."""

import pytest
import torch
from torch import Tensor

from tests.kernels.experts.test_expert_product import Problem, make_problem
from tests.kernels.triton_here import require_triton
from tests.poison import poison_fresh_memory

DEVICE = require_triton()

from samepath.kernels.experts import triton_layout
from samepath.kernels.experts.expert_product import expert_product
from samepath.kernels.experts.triton_layout import group_rows
from samepath.kernels.experts.triton_rows import spread_rows

SHAPES = [(1, 2, 1, 3, 1), (16, 8, 4, 6, 2), (37, 16, 8, 5, 3), (40, 40, 5, 33, 2)]
"""(N tokens, D width, E experts, F expert width, X chosen)."""


def on_device(problem: Problem) -> Problem:
    tensors = (problem.x_ND, problem.gates_NX, problem.ids_NX, problem.gate_up_EGD, problem.down_EDF)
    return Problem(*(tensor.to(DEVICE) for tensor in tensors))


def run(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """(result, gradients of tokens, gates, gate-up and down weights), on the CPU."""
    inputs = [
        tensor.to(dtype).detach().requires_grad_()
        for tensor in (problem.x_ND, problem.gates_NX, problem.gate_up_EGD, problem.down_EDF)
    ]
    x_ND, gates_NX, gate_up_EGD, down_EDF = inputs
    out_ND = expert_product(x_ND, gates_NX, problem.ids_NX, gate_up_EGD, down_EDF, "triton")
    upstream = torch.randn(out_ND.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    grads = torch.autograd.grad(out_ND, inputs, upstream.to(DEVICE, dtype))
    return tuple(tensor.detach().cpu() for tensor in (out_ND, *grads))


@pytest.mark.parametrize("shape", SHAPES)
def test_expert_product_equals_reference_forward_and_gradients(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    problem = make_problem(shape)
    wanted = problem.run("reference", torch.float64)
    problem = on_device(problem)
    poison_fresh_memory(monkeypatch)
    for got, truth in zip(run(problem, torch.float32), wanted, strict=True):
        size = max(1.0, float(truth.abs().max()))
        torch.testing.assert_close(got.double(), truth, rtol=0, atol=1e-5 * size)


def test_expert_product_unused_expert_gets_zero_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem((20, 4, 5, 3, 2))
    problem.ids_NX = torch.tensor([[0, 3]] * 20)
    problem = on_device(problem)
    poison_fresh_memory(monkeypatch)
    *_, grad_gate_up, grad_down = run(problem, torch.float32)
    assert (grad_gate_up.abs().sum((1, 2)) > 0).tolist() == [True, False, False, True, False]
    assert (grad_down.abs().sum((1, 2)) > 0).tolist() == [True, False, False, True, False]


def test_expert_product_rows_do_not_depend_on_their_neighbours() -> None:
    problem = on_device(make_problem((50, 32, 4, 16, 2)))
    arguments = (problem.gate_up_EGD.float(), problem.down_EDF.float())
    x_ND, gates_NX = problem.x_ND.float(), problem.gates_NX.float()
    whole_ND = expert_product(x_ND, gates_NX, problem.ids_NX, *arguments, "triton")
    for rows in (torch.tensor([3]), torch.arange(20, 37), torch.randperm(50)):
        part_ND = expert_product(
            x_ND[rows.to(DEVICE)],
            gates_NX[rows.to(DEVICE)],
            problem.ids_NX[rows.to(DEVICE)],
            *arguments,
            "triton",
        )
        # The interpreter multiplies with NumPy, whose last bit depends on a row's place in its tile; a GPU's does not.
        bits = 0.0 if DEVICE.type == "cuda" else 1e-6
        torch.testing.assert_close(part_ND, whole_ND[rows.to(DEVICE)], rtol=bits, atol=bits * 40)


def test_expert_product_slots_are_summed_in_slot_order() -> None:
    problem = on_device(make_problem((33, 16, 8, 8, 3)))
    x_ND, gates_NX = problem.x_ND.float(), problem.gates_NX.float()
    weights = (problem.gate_up_EGD.float(), problem.down_EDF.float())

    def product(order: list[int]) -> Tensor:
        return expert_product(x_ND, gates_NX[:, order], problem.ids_NX[:, order], *weights, "triton")

    slots = [product([slot]) for slot in range(3)]
    torch.testing.assert_close(product([0, 1, 2]), (slots[0] + slots[1]) + slots[2], rtol=0, atol=1e-5)
    assert not torch.equal(product([0, 1, 2]), product([2, 1, 0]))


def test_group_rows_places_pairs_by_expert_in_token_order() -> None:
    """Expert 2 has tokens 0 and 1 (pairs 1 and 3), expert 0 pair 0, expert 1 pair 2; each has 16 rows."""
    layout = group_rows(torch.tensor([[0, 2], [1, 2]], device=DEVICE), 3, 16)
    assert layout.row_of_pair.tolist() == [0, 32, 16, 33]
    assert layout.expert_of_tile[:3].tolist() == [0, 1, 2]
    assert (layout.expert_of_tile[3:] == -1).all()
    assert layout.first_tile_E.tolist() == layout.first_block_E.tolist() == [0, 1, 2, 3]
    pairs = layout.pair_of_row[:48].tolist()
    assert [pairs[row] for row in (0, 16, 32, 33)] == [0, 2, 1, 3]
    assert sum(pair >= 0 for pair in pairs) == 4
    assert layout.counters.tolist() == [0] * len(layout.counters)


@pytest.mark.parametrize("num_tokens", [1, 40, 360])
def test_group_rows_gives_every_expert_whole_blocks(monkeypatch: pytest.MonkeyPatch, num_tokens: int) -> None:
    """Against a loop: skewed routing, an expert without rows, tiles of two blocks; the last with more pairs than programs of one step."""
    monkeypatch.setattr(triton_layout, "MAX_BLOCKS", 60)
    generator = torch.Generator().manual_seed(num_tokens)
    num_experts, num_slots, block = 8, 3, 16
    chance = torch.rand(num_tokens, num_experts, generator=generator)
    chance[:, 0] += 0.5
    chance[:, 5] = -1.0
    ids_NX = chance.topk(num_slots, 1).indices
    x_ND = torch.randn(num_tokens, 24, generator=generator)
    layout = group_rows(ids_NX.to(DEVICE), num_experts, block, 2)
    row_of_pair, pair_of_row, expert_of_tile, first_tile, first_block = [0] * ids_NX.numel(), [], [], [0], [0]
    for expert in range(num_experts):
        pairs = (ids_NX.flatten() == expert).nonzero().flatten().tolist()
        blocks = -(-len(pairs) // block)
        for place, pair in enumerate(pairs):
            row_of_pair[pair] = first_block[-1] * block + place
        pair_of_row += pairs + [-1] * (blocks * block - len(pairs))
        expert_of_tile += [expert] * (-(-blocks // 2))
        first_block.append(first_block[-1] + blocks)
        first_tile.append(len(expert_of_tile))
    used = len(pair_of_row)
    assert layout.num_rows >= used
    assert layout.row_of_pair.tolist() == row_of_pair
    assert layout.pair_of_row[:used].tolist() == pair_of_row
    assert layout.expert_of_tile[: first_tile[-1]].tolist() == expert_of_tile
    assert (layout.expert_of_tile[first_tile[-1] :] == -1).all()
    assert (layout.first_tile_E.tolist(), layout.first_block_E.tolist()) == (first_tile, first_block)
    spread_ND = x_ND.repeat_interleave(num_slots, 0)
    both = spread_rows(x_ND.to(DEVICE), -x_ND.to(DEVICE), layout)
    padding = [row for row, pair in enumerate(pair_of_row) if pair < 0]
    for rows_RD, sign in zip(both, (1, -1), strict=True):
        assert torch.equal(rows_RD.cpu()[row_of_pair], sign * spread_ND)
        assert (rows_RD.cpu()[padding] == 0).all()


def test_expert_product_without_tokens_gives_nothing_and_zero_gradients() -> None:
    problem = on_device(make_problem((3, 8, 4, 6, 2)))
    weights = [weight.float().requires_grad_() for weight in (problem.gate_up_EGD, problem.down_EDF)]
    x_ND, gates_NX = problem.x_ND[:0].float(), problem.gates_NX[:0].float()
    out_ND = expert_product(x_ND, gates_NX, problem.ids_NX[:0], weights[0], weights[1], "triton")
    assert out_ND.shape == (0, 8)
    assert all((grad == 0).all() for grad in torch.autograd.grad(out_ND.sum(), weights))


def small_weights(shape: tuple[int, ...]) -> Problem:
    """A problem whose results are about 1; expert 0 gets every second token twice as often, the last one none."""
    problem = make_problem(shape)
    num_tokens, width, experts, units, chosen = shape
    problem.gate_up_EGD *= 2 / width**0.5
    problem.down_EDF *= 2 / units**0.5
    chance = torch.rand(num_tokens, experts, generator=torch.Generator().manual_seed(1))
    chance[::2, 0] += 1.0
    chance[:, -1] = -1.0
    problem.ids_NX = chance.topk(chosen, 1).indices
    return problem


WIDE_SHAPES = [
    (300, 512, 16, 384, 4),
    (37, 192, 8, 128, 3),
    (700, 320, 5, 640, 2),
    (1, 64, 3, 128, 2),
    (90, 72, 4, 40, 2),
]
"""Shapes of `SHAPES`' order, in bfloat16: widths that the kernels for Hopper take, and in the last some that they do not."""


@pytest.mark.gpu
@pytest.mark.parametrize("shape", WIDE_SHAPES)
def test_expert_product_bfloat16_equals_reference_forward_and_gradients(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    problem = small_weights(shape)
    wanted = problem.run("reference", torch.float64)
    problem = on_device(problem)
    poison_fresh_memory(monkeypatch)
    for got, truth in zip(run(problem, torch.bfloat16), wanted, strict=True):
        assert float((got.double() - truth).norm() / truth.norm()) < 0.02
    *_, grad_gate_up, grad_down = run(problem, torch.bfloat16)
    assert (grad_gate_up[-1] == 0).all()
    assert (grad_down[-1] == 0).all()


@pytest.mark.gpu
@pytest.mark.parametrize("shape", WIDE_SHAPES[:3])
def test_expert_product_bfloat16_rows_are_equal_alone_in_a_batch_and_with_gradients(shape: tuple[int, ...]) -> None:
    problem = on_device(small_weights(shape))
    weights = (problem.gate_up_EGD.bfloat16(), problem.down_EDF.bfloat16())
    x_ND, gates_NX = problem.x_ND.bfloat16(), problem.gates_NX.float()
    whole_ND = expert_product(x_ND, gates_NX, problem.ids_NX, *weights, "triton")
    trained_ND = expert_product(x_ND.requires_grad_(), gates_NX, problem.ids_NX, *weights, "triton")
    assert torch.equal(trained_ND, whole_ND)
    for rows in (torch.tensor([3]), torch.arange(5, 29), torch.randperm(shape[0])):
        rows = rows.to(DEVICE)
        part_ND = expert_product(x_ND.detach()[rows], gates_NX[rows], problem.ids_NX[rows], *weights, "triton")
        assert torch.equal(part_ND, whole_ND[rows])


@pytest.mark.gpu
def test_expert_product_runs_under_a_graph_with_other_routing() -> None:
    """Captured with one routing, replayed with another: nothing of the launch depends on the routing."""
    problem = on_device(small_weights((48, 256, 16, 256, 4)))
    weights = (problem.gate_up_EGD.bfloat16(), problem.down_EDF.bfloat16())
    x_ND, gates_NX, ids_NX = problem.x_ND.bfloat16(), problem.gates_NX.float(), problem.ids_NX.clone()
    expert_product(x_ND, gates_NX, ids_NX, *weights, "triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out_ND = expert_product(x_ND, gates_NX, ids_NX, *weights, "triton")
    for shift in (0, 1, 5):
        ids_NX.copy_((problem.ids_NX + shift) % 16)
        graph.replay()
        assert torch.equal(out_ND, expert_product(x_ND, gates_NX, ids_NX, *weights, "triton"))


@pytest.mark.gpu
def test_expert_product_bfloat16_real_size_repeats_and_is_near() -> None:
    problem = make_problem((300, 512, 16, 384, 4))
    problem.gate_up_EGD *= 0.1
    problem.down_EDF *= 0.1
    wanted = problem.run("reference", torch.float64)
    problem = on_device(problem)
    first = run(problem, torch.bfloat16)
    for got, truth in zip(first, wanted, strict=True):
        assert float((got.double() - truth).norm() / truth.norm()) < 0.02
    for _ in range(100):
        assert all(torch.equal(one, other) for one, other in zip(run(problem, torch.bfloat16), first, strict=True))
