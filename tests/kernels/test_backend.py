"""Backend names are checked, and rows are padded to a multiple of 16."""

import pytest

from samepath.kernels.backend import require_backend, round_up


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
