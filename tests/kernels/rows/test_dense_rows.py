"""The `torch` side of linear map, RMS norm and router scores: plain definitions."""

import pytest
import torch

from samepath.kernels.rows.dense_rows import linear, rms_norm, router_scores


def test_linear_hand_worked_number() -> None:
    assert linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -4.0]]), "torch").tolist() == [[-5.0]]


def test_rms_norm_hand_worked_number() -> None:
    """Mean square of (3, 4) is 12.5, with eps 12.5 the root is 5."""
    out_ND = rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 10.0]), 12.5, "torch")
    torch.testing.assert_close(out_ND, torch.tensor([[0.6, 8.0]]))


def test_router_scores_are_float32_sigmoids() -> None:
    scores_NE = router_scores(torch.ones(1, 1, dtype=torch.bfloat16), torch.zeros(2, 1, dtype=torch.bfloat16), "torch")
    assert scores_NE.dtype == torch.float32
    assert scores_NE.tolist() == [[0.5, 0.5]]


def test_linear_widths_must_agree() -> None:
    with pytest.raises(ValueError, match=r"weight \[O, D\]"):
        linear(torch.zeros(2, 3), torch.zeros(2, 4), "torch")
