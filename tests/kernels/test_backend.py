"""Backend names are checked and what each can do is said, and rows are padded to a multiple of 16."""

from typing import get_args

import pytest

from samepath.kernels.backend import CAPABILITIES, Backend, Capabilities, backends_that, require_backend, round_up


@pytest.mark.parametrize("name", ["reference", "torch", "triton"])
def test_require_backend_known_name_returns_it(name: str) -> None:
    assert require_backend(name) == name


@pytest.mark.parametrize("name", ["cuda", "Torch", ""])
def test_require_backend_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match="reference, torch, triton"):
        require_backend(name)


@pytest.mark.parametrize(("count", "padded"), [(0, 0), (1, 16), (15, 16), (16, 16), (17, 32), (160, 160)])
def test_round_up_gives_smallest_multiple_of_sixteen(count: int, padded: int) -> None:
    assert round_up(count) == padded


def test_round_up_other_multiple_is_used() -> None:
    assert round_up(7, 3) == 9


def test_capabilities_are_said_of_every_backend() -> None:
    assert tuple(CAPABILITIES) == get_args(Backend)
    assert [name for name, able in CAPABILITIES.items() if "cpu" in able.exact_on] == ["torch", "triton"]
    assert [name for name, able in CAPABILITIES.items() if "cuda" in able.exact_on] == ["triton"]


def test_backends_that_names_those_with_the_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backends_that("fused") == backends_that("bfloat16") == backends_that("graphs") == "triton"
    monkeypatch.setitem(CAPABILITIES, "torch", Capabilities(graphs=True))
    assert backends_that("graphs") == "torch or triton"
