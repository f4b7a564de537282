"""The check of rows: it sees one that depends on its batch, and says what a recipe's widths are."""

import pytest
import torch
from torch import Tensor

from samepath.rl.validate import doctor, row_exactness
from samepath.rl.validate.row_exactness import COMMON, RowShapes, first_dependent_row, model_shapes, row_finding
from tests.conftest import tiny_config
from tests.families import family_config

ONE = RowShapes(products=((48, 32),))


def uneven_product(x_ND: Tensor, weight_FD: Tensor, bias_F: Tensor | None = None) -> Tensor:
    """A library that takes another path for 48 rows."""
    return x_ND @ weight_FD.T + (1e-6 if len(x_ND) == 48 else 0)


def test_first_dependent_row_names_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_dependent_row(ONE, (1,)) is None
    monkeypatch.setattr(row_exactness, "row_product", uneven_product)
    assert first_dependent_row(ONE, (1,)) == "a product of width 48, 48 rows, 1 thread"


def test_first_dependent_row_looks_at_every_thread_count_and_gives_the_old_one_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        row_exactness, "row_product", lambda x, weight: x @ weight.T + 1e-6 * (torch.get_num_threads() - 1)
    )
    assert first_dependent_row(ONE, (1, 2)) == "a product of width 48, 16 rows, 2 threads"
    assert torch.get_num_threads() == 1


def test_model_shapes_of_sparse_latent_attention() -> None:
    shapes = model_shapes(tiny_config())
    # Four heads of 16 + 8 channels, latents of 32 and 32 + 8, 18 tokens, width 64.
    assert shapes == RowShapes(
        products=((32, 96), (64, 18), (64, 32), (64, 64), (64, 192), (96, 64)),
        experts=((64, 32),),
        absorbed=((4, 16, 32), (4, 32, 16)),
        selected=((4, 40, 32, 8),),
        indexer=((4, 16),),
    )


def test_model_shapes_of_grouped_attention() -> None:
    shapes = model_shapes(family_config("qwen3"))
    # Four query and two key heads of width 32.
    assert shapes == RowShapes(
        products=((64, 18), (64, 192), (64, 256), (96, 64), (128, 64)), attention=((2, 4, 32, 32),)
    )


@pytest.mark.parametrize(("limit", "outcome"), [(0.0, "obstacle"), (0.01, "ok")])
def test_row_finding_stands_in_the_way_of_a_recipe_that_accepts_no_gap(
    monkeypatch: pytest.MonkeyPatch, limit: float, outcome: str
) -> None:
    config = family_config("llama")
    assert row_finding(config, (1,), 0.0).outcome == "ok"
    monkeypatch.setattr(row_exactness, "row_product", uneven_product)
    found = row_finding(config, (1,), limit)
    assert found.outcome == outcome
    assert "rows differ with the batch for a product of width 64, 48 rows" in found.detail


def test_row_finding_tells_mkl_in_another_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_exactness, "row_mode_problem", lambda: "MKL_CBWR is 'COMPATIBLE'")
    found = row_finding(family_config("llama"), (1,), 0.0)
    assert found.outcome == "obstacle"
    assert "MKL_CBWR is 'COMPATIBLE'" in found.detail


def test_doctor_says_what_multiplies_and_whether_rows_stand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "first_dependent_row", lambda shapes, threads: None if shapes is COMMON else "no")
    check = doctor.row_exactness()
    assert check.ok
    assert torch.backends.cpu.get_cpu_capability() in check.detail
    assert "the same bits in any batch with 1 thread" in check.detail
    monkeypatch.setattr(doctor, "row_mode_problem", lambda: "MKL multiplies in mode off")
    assert not doctor.row_exactness().ok
    monkeypatch.setattr(doctor, "first_dependent_row", lambda *_: "a product of width 48, 48 rows, 1 thread")
    check = doctor.row_exactness()
    assert not check.ok
    assert "a product of width 48, 48 rows" in check.detail
