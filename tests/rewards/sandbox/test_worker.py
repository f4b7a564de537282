"""What counts as a reward, and how exceptions become data."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from samepath.rewards.sandbox.worker import Contained, named_values


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (1, {"p": 1.0}),
        (True, {"p": 1.0}),
        (Decimal("0.5"), {"p": 0.5}),
        (Fraction(1, 4), {"p": 0.25}),
        (np.float32(0.5), {"p": 0.5}),
        ({"a": 1, "b": 0.5}, {"p/a": 1.0, "p/b": 0.5}),
    ],
)
def test_named_values_number_or_mapping_gives_floats(returned, expected):
    assert named_values("p", returned) == (expected, "")


@pytest.mark.parametrize(
    "returned",
    [None, "1.0", float("nan"), float("inf"), 10**400, 1j, [1.0], np.array([1.0, 2.0]), {}, {"a": None}, {1: 1.0}],
)
def test_named_values_anything_else_gives_a_complaint(returned):
    values, complaint = named_values("p", returned)
    assert values == {}
    assert "got" in complaint


def test_contained_exception_names_its_place():
    with Contained() as contained:
        raise ValueError("bad digit")
    assert contained.status == "error"
    assert contained.detail.startswith("ValueError: bad digit (")
    assert "test_worker.py" in contained.detail


def test_contained_exception_without_text_is_still_described():
    class SilentError(Exception):
        def __str__(self):
            raise RuntimeError

    with Contained() as contained:
        raise SilentError
    assert "SilentError" in contained.detail


def test_contained_exit_and_memory_are_data_too():
    with Contained() as contained:
        raise SystemExit(0)
    assert contained.status == "error"
    with Contained() as contained:
        raise MemoryError
    assert contained.status == "memory"
