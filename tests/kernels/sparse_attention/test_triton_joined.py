"""Triton's sparse attention against one dense masked softmax in float64, forward and backward.

Tolerances: float32 1e-5 of the largest value. bfloat16 (GPU only): out 8e-4 absolute or 3/128 relative and 1 − cos < 7e-6, LSE 1e-6 absolute
or 3e-5 relative, gradients 1 − cos < 1e-5.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.kernels.triton_here import require_triton
from tests.poison import poison_fresh_memory

DEVICE = require_triton()

from samepath.kernels.backend import Backend
from samepath.kernels.sparse_attention import triton_backward as triton_attention_backward
from samepath.kernels.sparse_attention import triton_forward as triton_attention_forward
from samepath.kernels.sparse_attention.sparse_attention import attend
from samepath.kernels.sparse_attention.triton_backward import attend_backward
from samepath.kernels.sparse_attention.triton_gradients import SavedRows

SHAPES = [(3, 9, 3, 48, 32, 7), (5, 40, 20, 16, 16, 33), (4, 50, 1, 80, 80, 20), (2, 7, 4, 40, 32, 3)]
"""(N rows, S keys, H heads, K key width, V value width, C selected)."""


@dataclass
class Problem:
    q_NHK: Tensor
    kv_SK: Tensor
    indices_NC: Tensor
    count_N: Tensor
    value_width: int

    @property
    def scale(self) -> float:
        return self.q_NHK.shape[2] ** -0.5

    def run(self, backend: Backend, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """(out, lse, mass, grad of q, grad of kv) for a fixed upstream gradient."""
        q_NHK, kv_SK = (tensor.to(dtype).detach().requires_grad_() for tensor in (self.q_NHK, self.kv_SK))
        width = self.value_width
        out, lse, mass = attend(
            q_NHK, kv_SK, self.indices_NC, self.count_N, scale=self.scale, value_width=width, backend=backend
        )
        grads = torch.autograd.grad(out, (q_NHK, kv_SK), self.upstream(dtype))
        return out.detach(), lse, mass, *grads

    def upstream(self, dtype: torch.dtype) -> Tensor:
        shape = (*self.q_NHK.shape[:2], self.value_width)
        values = torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        return values.to(torch.bfloat16).to(DEVICE, dtype)


def make_problem(shape: tuple[int, ...], seed: int = 0) -> Problem:
    """Random keys (of size 0.1 where V is 128 or more, so that 8e-4 means the same there) and sets; counts run from 0 to C."""
    num_rows, num_keys, num_heads, key_width, value_width, num_selected = shape
    generator = torch.Generator().manual_seed(seed)
    indices_NC = torch.full((num_rows, num_selected), -1, dtype=torch.int32)
    most = min(num_selected, num_keys)
    count_N = torch.randint(0, most + 1, (num_rows,), generator=generator, dtype=torch.int32)
    count_N[-1] = most
    count_N[0] = 0
    for row, count in enumerate(count_N.tolist()):
        chosen = torch.randperm(num_keys, generator=generator)[:count].sort().values
        indices_NC[row, :count] = chosen.to(torch.int32)
    q_NHK = torch.randn(num_rows, num_heads, key_width, generator=generator)
    kv_SK = torch.randn(num_keys, key_width, generator=generator) * (0.1 if value_width >= 128 else 1.0)
    exact = (tensor.to(torch.bfloat16).double().to(DEVICE) for tensor in (q_NHK, kv_SK))
    return Problem(*exact, indices_NC.to(DEVICE), count_N.to(DEVICE), value_width)


def assert_near(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert got.shape == wanted.shape
    finite = wanted.isfinite()
    assert torch.equal(got.isfinite(), finite)
    if finite.any():
        size = max(1.0, float(wanted[finite].abs().max()))
        assert float((got[finite].double() - wanted[finite]).abs().max()) <= tolerance * size


@pytest.mark.parametrize("shape", SHAPES)
def test_attend_float32_equals_reference_forward_and_gradients(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    problem = make_problem(shape)
    wanted = problem.run("reference", torch.float64)
    poison_fresh_memory(monkeypatch)
    got = problem.run("triton", torch.float32)
    for value, truth in zip(got, wanted, strict=True):
        assert_near(value, truth, 1e-5)


def saved_rows(problem: Problem, dtype: torch.dtype) -> SavedRows:
    out_NHV, lse_NH, _, _, _ = problem.run("reference", torch.float64)
    return SavedRows(
        q_NHK=problem.q_NHK.to(dtype),
        kv_SK=problem.kv_SK.to(dtype),
        indices_NC=problem.indices_NC,
        count_N=problem.count_N,
        out_NHV=out_NHV.to(dtype),
        lse_NH=lse_NH.float(),
        scale=problem.scale,
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_attend_backward_gives_gradients_and_mass(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    problem = make_problem(shape)
    *_, mass_NC, grad_q, grad_kv = problem.run("reference", torch.float64)
    saved = saved_rows(problem, torch.float32)
    poison_fresh_memory(monkeypatch)
    got = attend_backward(saved, problem.upstream(torch.float32))
    for value, truth in ((got.mass_NC, mass_NC), (got.q_NHK, grad_q), (got.kv_SK, grad_kv)):
        assert_near(value, truth, 1e-5)


def test_attend_backward_chunks_of_rows_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Head blocks are summed before rows within a chunk, so one block of heads is needed for equal order."""
    problem = make_problem((7, 40, 3, 48, 32, 9))
    saved = saved_rows(problem, torch.float32)
    whole = attend_backward(saved, problem.upstream(torch.float32))
    monkeypatch.setattr(triton_attention_backward, "PAIR_BYTES", 2 * 9 * 48 * 4)
    parts = attend_backward(saved, problem.upstream(torch.float32))
    assert torch.equal(parts.q_NHK, whole.q_NHK)
    assert torch.equal(parts.mass_NC, whole.mass_NC)
    assert_near(parts.kv_SK, whole.kv_SK.double(), 1e-6)


def test_attend_rows_do_not_depend_on_their_neighbours() -> None:
    problem = make_problem((6, 40, 3, 48, 32, 9))
    whole = problem.run("triton", torch.float32)
    for row in (0, 3, 5):
        rows = slice(row, row + 1)
        alone = Problem(
            problem.q_NHK[rows], problem.kv_SK, problem.indices_NC[rows], problem.count_N[rows], problem.value_width
        ).run("triton", torch.float32)
        for got, wanted in zip(alone[:3], whole[:3]):
            assert torch.equal(got[0], wanted[row])


def test_attend_more_rows_than_one_launch_takes_change_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem((7, 40, 3, 48, 32, 9))
    whole = problem.run("triton", torch.float32)
    monkeypatch.setattr(triton_attention_forward, "MOST_ROWS", 3)
    parts = problem.run("triton", torch.float32)
    for got, wanted in zip(parts[:4], whole[:4], strict=True):
        assert torch.equal(got, wanted)
    assert_near(parts[4], whole[4].double(), 1e-6)


def test_attend_without_mass_leaves_it_out() -> None:
    problem = make_problem(SHAPES[0])
    _, _, mass = attend(
        problem.q_NHK.float(),
        problem.kv_SK.float(),
        problem.indices_NC,
        problem.count_N,
        scale=1.0,
        value_width=problem.value_width,
        backend="triton",
        with_mass=False,
    )
    assert mass.shape == (3, 0)


def test_attend_no_rows_gives_empty_results_and_zero_gradient() -> None:
    problem = make_problem(SHAPES[0])
    empty = Problem(problem.q_NHK[:0], problem.kv_SK, problem.indices_NC[:0], problem.count_N[:0], problem.value_width)
    out, _, _, grad_q, grad_kv = empty.run("triton", torch.float32)
    assert out.shape == (0, 3, 32)
    assert grad_q.shape == empty.q_NHK.shape
    assert not grad_kv.any()


def test_attend_float64_is_refused() -> None:
    problem = make_problem(SHAPES[0])
    with pytest.raises(ValueError, match=r"torch\.float64"):
        problem.run("triton", torch.float64)


def one_minus_cosine(got: Tensor, wanted: Tensor) -> float:
    got, wanted = got.double().flatten(), wanted.double().flatten()
    return 1 - float(got @ wanted / (got.norm() * wanted.norm()))


REAL_SHAPES = [
    (33, 5000, 128, 576, 512, 2048),
    (17, 3000, 64, 576, 512, 1000),
    (9, 900, 200, 576, 512, 70),
    (200, 2000, 72, 576, 512, 300),
    (20, 900, 20, 192, 128, 100),
]
"""The fourth has more blocks of heads than the card has multiprocessors, some without keys, and a part block."""


@pytest.mark.gpu
@pytest.mark.parametrize("shape", REAL_SHAPES)
def test_attend_bfloat16_real_sizes_meet_the_limits(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    problem = make_problem(shape)
    out, lse, mass, grad_q, grad_kv = problem.run("reference", torch.float64)
    poison_fresh_memory(monkeypatch)
    got = problem.run("triton", torch.bfloat16)
    assert ((got[0].double() - out).abs() <= 8e-4 + 3 / 128 * out.abs()).all()
    assert one_minus_cosine(got[0], out) < 7e-6
    finite = lse.isfinite()
    assert torch.equal(got[1].isfinite(), finite)
    assert ((got[1].double() - lse)[finite].abs() <= 1e-6 + 3e-5 * lse[finite].abs()).all()
    torch.testing.assert_close(got[2].double(), mass, rtol=3e-3, atol=1e-5)
    assert one_minus_cosine(got[3], grad_q) < 1e-5
    assert one_minus_cosine(got[4], grad_kv) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("shape", REAL_SHAPES)
def test_attend_backward_bfloat16_gives_the_mass_that_the_forward_gave(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    problem = make_problem(shape)
    *_, mass_NC, _, _ = problem.run("reference", torch.float64)
    saved = saved_rows(problem, torch.bfloat16)
    poison_fresh_memory(monkeypatch)
    got = attend_backward(saved, problem.upstream(torch.bfloat16))
    torch.testing.assert_close(got.mass_NC.double(), mass_NC, rtol=3e-3, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_attend_100_repeats_give_equal_bits(dtype: torch.dtype) -> None:
    problem = make_problem(REAL_SHAPES[0])
    wanted = problem.run("triton", dtype)
    for _ in range(100 if dtype == torch.bfloat16 else 5):
        for got, first in zip(problem.run("triton", dtype), wanted):
            assert torch.equal(got, first)


@pytest.mark.gpu
def test_attend_backward_many_programs_repeat_to_the_bit() -> None:
    """Thousands of programs at once, so that a rare disorder among their warps is seen."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=DEVICE).to(torch.bfloat16)

    num_rows, num_keys, num_selected = 1024, 16384, 2048
    q_NHK, kv_SK, upstream = normal(num_rows, 128, 576), normal(num_keys, 576), normal(num_rows, 128, 512)
    noise = torch.rand(num_rows, num_keys, generator=generator, device=DEVICE)
    indices_NC = noise.topk(num_selected, dim=1).indices.sort(1).values.to(torch.int32)
    count_N = torch.randint(0, num_selected + 1, (num_rows,), generator=generator, device=DEVICE, dtype=torch.int32)
    out_NHV, lse_NH = triton_attention_forward.attend_forward(q_NHK, kv_SK, indices_NC, count_N, 192**-0.5, 512)
    saved = SavedRows(
        q_NHK=q_NHK,
        kv_SK=kv_SK,
        indices_NC=indices_NC,
        count_N=count_N,
        out_NHV=out_NHV,
        lse_NH=lse_NH,
        scale=192**-0.5,
    )
    wanted = attend_backward(saved, upstream)
    assert wanted.kv_SK.isfinite().all()
    for _ in range(20):
        got = attend_backward(saved, upstream)
        assert torch.equal(got.q_NHK, wanted.q_NHK)
        assert torch.equal(got.kv_SK, wanted.kv_SK)
        assert torch.equal(got.mass_NC, wanted.mass_NC)


@pytest.mark.gpu
def test_attend_bfloat16_rows_do_not_depend_on_the_batch() -> None:
    """Programs that stay for several rows must carry nothing from one to the next."""
    problem = make_problem((300, 2000, 128, 576, 512, 300))
    q_NHK, kv_SK = problem.q_NHK.bfloat16(), problem.kv_SK.bfloat16()

    def run(rows: Tensor) -> tuple[Tensor, Tensor]:
        chosen = problem.indices_NC[rows], problem.count_N[rows]
        return triton_attention_forward.attend_forward(q_NHK[rows], kv_SK, *chosen, problem.scale, 512)

    whole = run(torch.arange(300, device=DEVICE))
    order = torch.randperm(300, device=DEVICE)
    for got, wanted in zip(run(order), whole, strict=True):
        assert torch.equal(got, wanted[order])
    for row in (0, 1, 150, 299):
        for got, wanted in zip(run(torch.tensor([row], device=DEVICE)), whole, strict=True):
            assert torch.equal(got[0], wanted[row])
