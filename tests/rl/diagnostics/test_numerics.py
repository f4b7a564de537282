import math

import pytest
import torch

from samepath.rl.diagnostics import numerics
from samepath.rl.diagnostics.numerics import NumericsGap, NumericsMismatchError, check_numerics_gap, numerics_gap

LOG2 = math.log(2)


def logs(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).log()


def test_numerics_gap_hand_worked() -> None:
    gap = numerics_gap(logs(0.5, 0.25), logs(0.25, 0.25))
    assert gap == NumericsGap(
        k1=pytest.approx(-LOG2 / 2), k3=pytest.approx((1 - LOG2) / 2), max_abs=pytest.approx(LOG2), num_tokens=2
    )


def test_numerics_gap_of_equal_logprobs_is_exactly_zero() -> None:
    logprobs_M = torch.tensor([-0.3, -11.7, -2e-8])
    assert numerics_gap(logprobs_M, logprobs_M.clone()) == NumericsGap(k1=0.0, k3=0.0, max_abs=0.0, num_tokens=3)
    check_numerics_gap(numerics_gap(logprobs_M, logprobs_M.clone()), 0.0, "3/1")


def test_numerics_gap_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one trained token"):
        numerics_gap(torch.zeros(0), torch.zeros(0))


@pytest.mark.parametrize("max_abs", [0.1, float("nan")])
def test_check_numerics_gap_above_limit_names_the_three_causes(max_abs: float) -> None:
    gap = NumericsGap(k1=0.0, k3=0.001, max_abs=max_abs, num_tokens=5)
    with pytest.raises(
        NumericsMismatchError, match="in 3/1 .*stale weights.*prefix cache.*compute differently.*another"
    ):
        check_numerics_gap(gap, 0.05, "3/1")


@pytest.mark.parametrize(("max_abs", "told"), [(4.8e-7, True), (0.1, False)])
def test_check_numerics_gap_of_the_size_of_rounding_names_rows_that_depend_on_their_number(
    monkeypatch: pytest.MonkeyPatch, max_abs: float, told: bool
) -> None:
    monkeypatch.setattr(numerics, "row_mode_problem", lambda: "MKL_CBWR is 'AUTO'; unset it")
    gap = NumericsGap(k1=0.0, k3=0.0, max_abs=max_abs, num_tokens=5)
    with pytest.raises(NumericsMismatchError) as caught:
        check_numerics_gap(gap, 0.0, "3/1")
    assert ("depends on the number of rows: MKL_CBWR is 'AUTO'; unset it" in str(caught.value)) == told
