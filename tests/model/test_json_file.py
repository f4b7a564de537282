"""JSON files are strict and replaced in one step."""

import json
import math
from pathlib import Path

import pytest

from samepath.model.json_file import read_json, write_json
from tests.model.test_durable_file import room_for


def test_write_json_of_numbers_that_are_not_finite_is_null(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": math.nan, "b": {"c": [1.5, -math.inf, (math.inf,)]}, "d": True})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "a": None,
        "b": {"c": [1.5, None, [None]]},
        "d": True,
    }


def test_write_json_on_a_full_disk_leaves_the_old_object(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(OSError, match="File too large"), room_for(100):
        write_json(path, {"a": "x" * 200})
    assert read_json(path) == {"a": 1}
