"""Rows that cannot be read: all of them are counted by kind, not the first alone."""

from pathlib import Path

import pytest

from samepath.rl.recipe.task import FileTask
from samepath.rl.tasks.file import build_file
from samepath.rl.tasks.row import TaskError

GOOD = b'{"question": "1+2=", "answer": "3"}\n'


def said(tmp_path: Path, *lines: bytes) -> str:
    (tmp_path / "rows.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(TaskError) as caught:
        build_file(FileTask(path="rows.jsonl", held_out_fraction=0.5), tmp_path)
    return str(caught.value)


def test_malformed_rows_are_counted_by_kind_with_the_places_of_the_first(tmp_path: Path) -> None:
    text = said(
        tmp_path, GOOD, b"{oops\n", GOOD, b'{"question": "4+4="}\n', b"\xff\n", b"[1]\n", *[b"{oops\n"] * 4, b"\n", GOOD,
        b'{"question": "1", "answer": [1]}\n', b'{"question": "1", "answer": " "}\n',
    )  # fmt: skip
    assert text.startswith("10 of 13 rows are malformed")
    for kind in (
        "not_json 5 (",
        "no_column 1 (",
        "not_utf8 1 (",
        "no_object 1 (",
        "answer_not_text 1 (",
        "empty_answer 1 (",
    ):
        assert kind in text
    assert [f"rows.jsonl:{line}:" in text for line in (2, 4, 5, 6, 7, 8, 9, 10)] == [True] * 6 + [False] * 2


def test_a_single_malformed_row_is_said_as_it_is(tmp_path: Path) -> None:
    assert said(tmp_path, GOOD, b"{oops\n", GOOD).startswith(f"{tmp_path / 'rows.jsonl'}:2: not valid JSON")
