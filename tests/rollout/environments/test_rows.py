"""Rows on demand, rows of a file, and which of them are held out."""

import json
from pathlib import Path
from typing import Any

import pytest

from samepath.rollout.environments.file_rows import FileRows
from samepath.rollout.environments.held_out import is_held_out
from samepath.rollout.environments.protocol import EnvironmentRow
from samepath.rollout.environments.rows_on_demand import RowsOnDemand


def written(path: Path, count: int, first: int = 0) -> str:
    path.write_text("".join(json.dumps({"q": f"what is {number}?"}) + "\n\n" for number in range(first, first + count)))
    return str(path)


def files(path: str, held_out_path: str = "", held_out_share: float = 0.0) -> FileRows:
    def read(record: Any) -> tuple[str, dict[str, Any]]:
        if "q" not in record:
            raise ValueError("it asks nothing")
        return record["q"], {"whole": dict(record)}

    return FileRows(path, held_out_path, held_out_share, read)


def test_is_held_out_takes_the_share_and_never_lets_a_text_go_when_it_grows() -> None:
    texts = [f"text {number}" for number in range(4000)]
    tenth = {text for text in texts if is_held_out(text, 0.1)}
    assert 320 < len(tenth) < 480
    assert tenth < {text for text in texts if is_held_out(text, 0.2)}
    assert not any(is_held_out(text, 0.0) for text in texts)


def test_rows_on_demand_makes_only_what_is_asked_for() -> None:
    made: list[int] = []

    def make(index: int) -> EnvironmentRow:
        made.append(index)
        return EnvironmentRow(row_id=str(index), text="")

    rows = RowsOnDemand(1_000_000, make)
    assert (len(rows), rows[999_999].row_id, [row.row_id for row in rows[3:5]]) == (1_000_000, "999999", ["3", "4"])
    assert made == [999_999, 3, 4]
    for index in (-1, 1_000_000):
        with pytest.raises(IndexError, match="0 … 999999"):
            rows[index]


def test_file_rows_hold_a_share_of_the_texts_out(tmp_path: Path) -> None:
    rows = files(written(tmp_path / "rows.jsonl", 200), held_out_share=0.25)
    train, held_out = rows.tasks("train"), rows.tasks("held_out")
    assert len(train) + len(held_out) == 200
    assert 30 < len(held_out) < 70
    assert not {row.text for row in train} & {row.text for row in held_out}
    assert train[0].data == {"whole": {"q": train[0].text}}
    assert len({row.row_id for row in (*train, *held_out)}) == 200


def test_file_rows_of_two_files_are_the_splits(tmp_path: Path) -> None:
    train, held_out = written(tmp_path / "a.jsonl", 5), written(tmp_path / "b.jsonl", 3, first=5)
    rows = files(train, held_out)
    assert [row.text for row in rows.tasks("held_out")] == ["what is 5?", "what is 6?", "what is 7?"]
    assert [row.row_id for row in rows.tasks("train")] == ["train-1", "train-3", "train-5", "train-7", "train-9"]


def test_file_rows_of_two_files_with_a_text_in_both_are_refused(tmp_path: Path) -> None:
    rows = files(written(tmp_path / "a.jsonl", 5), written(tmp_path / "b.jsonl", 3, first=4))
    with pytest.raises(ValueError, match=r"b\.jsonl: row held_out-1 asks what train-9 of .*a\.jsonl asks"):
        rows.tasks("held_out")


@pytest.mark.parametrize(("held_out_path", "held_out_share"), [("", 0.0), ("b.jsonl", 0.1), ("", 1.0), ("", -0.1)])
def test_file_rows_without_one_way_to_hold_out_are_refused(held_out_path: str, held_out_share: float) -> None:
    with pytest.raises(ValueError, match="exactly one of held_out_path and held_out_share"):
        files("a.jsonl", held_out_path, held_out_share)


def test_file_rows_with_an_empty_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gives no held_out rows"):
        files(written(tmp_path / "a.jsonl", 3), held_out_share=0.0001).tasks("held_out")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"q": NaN}', "not valid JSON: NaN"),
        (b'{"q": "a"', "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[1]", "each line must be a JSON object"),
        (b'{"a": 1}', "it asks nothing"),
    ],
)
def test_file_rows_name_the_line_that_is_no_row(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"q": "fine"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=rf"a\.jsonl:2: .*{reason}"):
        files(str(path), held_out_share=0.5).tasks("train")
