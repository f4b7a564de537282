"""Attention of few rows by parts of their keys, against one dense softmax in float64; tolerances as in test_triton_sparse_attention.py."""

import pytest
import torch

from tests.kernels.triton_here import require_triton
from tests.poison import poison_fresh_memory

DEVICE = require_triton()

from samepath.kernels.sparse_attention.sparse_attention import attend
from samepath.kernels.sparse_attention.triton_decode import Cut, attend_decode
from tests.kernels.sparse_attention.test_triton_joined import (
    SHAPES,
    Problem,
    assert_near,
    make_problem,
    one_minus_cosine,
)


def run(problem: Problem, dtype: torch.dtype, cut: Cut | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    q_NHK, kv_SK = problem.q_NHK.to(dtype), problem.kv_SK.to(dtype)
    return attend_decode(q_NHK, kv_SK, problem.indices_NC, problem.count_N, problem.scale, problem.value_width, cut)


def truth(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse, _ = attend(
        problem.q_NHK,
        problem.kv_SK,
        problem.indices_NC,
        problem.count_N,
        scale=problem.scale,
        value_width=problem.value_width,
        backend="reference",
    )
    return out, lse


@pytest.mark.parametrize("part", [16, 32])
@pytest.mark.parametrize("shape", [*SHAPES, (2, 400, 2, 48, 32, 290)])
def test_attend_decode_float32_equals_reference(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], part: int
) -> None:
    """290 keys in parts of 16 take two steps of the final sum."""
    problem = make_problem(shape)
    wanted = truth(problem)
    poison_fresh_memory(monkeypatch)
    for value, exact in zip(run(problem, torch.float32, Cut(part=part, keys=16, heads=16)), wanted, strict=True):
        assert_near(value, exact, 1e-5)


def test_attend_decode_rows_do_not_depend_on_their_neighbours() -> None:
    problem = make_problem((6, 40, 3, 48, 32, 39))
    whole = run(problem, torch.float32)
    for row in (0, 3, 5):
        rows = slice(row, row + 1)
        alone = Problem(
            problem.q_NHK[rows], problem.kv_SK, problem.indices_NC[rows], problem.count_N[rows], problem.value_width
        )
        for got, wanted in zip(run(alone, torch.float32), whole, strict=True):
            assert torch.equal(got[0], wanted[row])


def test_attend_decode_key_far_above_the_others_takes_all() -> None:
    """Parts whose sums differ by 2^300 and more: the far ones vanish, nothing overflows."""
    problem = make_problem((2, 60, 2, 32, 16, 50))
    problem.count_N[:] = 50
    problem.indices_NC[:] = torch.arange(50, dtype=torch.int32, device=DEVICE)
    best = problem.indices_NC[:, 33].long()
    problem.q_NHK[:] = 40.0 * problem.kv_SK[best][:, None]
    out_NHV, lse_NH = run(problem, torch.float32)
    wanted = truth(problem)
    assert_near(out_NHV, wanted[0], 1e-5)
    assert_near(lse_NH, wanted[1], 1e-5)
    assert float(lse_NH.max()) > 150


def test_attend_decode_no_rows_gives_empty_results() -> None:
    problem = make_problem(SHAPES[0])
    empty = Problem(problem.q_NHK[:0], problem.kv_SK, problem.indices_NC[:0], problem.count_N[:0], problem.value_width)
    out_NHV, lse_NH = run(empty, torch.float32)
    assert out_NHV.shape == (0, 3, 32)
    assert lse_NH.shape == (0, 3)


def test_attend_decode_part_that_cuts_a_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="whole tiles"):
        run(make_problem(SHAPES[0]), torch.float32, Cut(part=24, keys=16))


DECODE_SHAPES = [
    (1, 5000, 128, 576, 512, 2048),
    (9, 5000, 72, 576, 512, 2000),
    (8, 5000, 16, 576, 512, 2048),
    (5, 900, 20, 192, 128, 100),
]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", DECODE_SHAPES)
def test_attend_decode_bfloat16_real_sizes_meet_the_limits(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    problem = make_problem(shape)
    # Row 0 has no keys so far: give it some that end within a part.
    partly = min(shape[5], 1234)
    problem.count_N[0] = partly
    problem.indices_NC[0, :partly] = torch.arange(partly, device=DEVICE)
    out, lse = truth(problem)
    poison_fresh_memory(monkeypatch)
    got = run(problem, torch.bfloat16)
    finite = lse.isfinite()
    assert ((got[0].double() - out).abs() <= 8e-4 + 3 / 128 * out.abs()).all()
    assert one_minus_cosine(got[0], out) < 7e-6
    assert torch.equal(got[1].isfinite(), finite)
    assert ((got[1].double() - lse)[finite].abs() <= 1e-6 + 3e-5 * lse[finite].abs()).all()
    for _ in range(100):
        for again, first in zip(run(problem, torch.bfloat16), got, strict=True):
            assert torch.equal(again, first)
