"""Rows that travel to their experts give what one process gives that has all experts."""

import pytest
import torch

from samepath.kernels.backend import Backend
from tests import expert_cases
from tests.kernels.triton_here import require_triton
from tests.ranks import on_ranks

SAME = ["out", "tokens", "gates"]
"""What is computed row by row, on CPUs. Triton's product has a gate's gradient from the hidden units; here it comes from the rows."""


@pytest.mark.parametrize(
    ("size", "routing", "dtype", "backend", "width", "bound"),
    [
        (4, "spread", torch.float64, "torch", 16, 1e-13),
        (2, "few", torch.float32, "torch", 272, 1e-6),
        pytest.param(2, "spread", torch.bfloat16, "triton", 16, 2e-2, marks=pytest.mark.slow),
    ],
)
def test_product_over_ranks_is_that_of_one_process(
    size: int, routing: str, dtype: torch.dtype, backend: Backend, width: int, bound: float
) -> None:
    """Ranks with 5, 0, 17 and 1 tokens; with few experts asked for, rank 0 of two gets no row. Rows and their gradients have the same bits."""
    if backend == "triton" and require_triton().type != "cpu":
        pytest.skip("these ranks compute on CPUs, where Triton is interpreted")
    for found in on_ranks(size, expert_cases.exchanged, routing, dtype, backend, width):
        same = {name for name, _, equal in found if equal}
        assert same >= set(SAME if backend == "torch" else SAME[:1])
        for name, gap, _ in found:
            assert gap <= bound, name
