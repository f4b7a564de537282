"""Rows of questions with a right answer, from a JSONL file or from the recipe itself."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samepath.rollout.environments.protocol import EnvironmentRow, Split


def question_rows(
    source: str | Sequence[Mapping[str, Any]], split: Split, fields: tuple[str, str]
) -> tuple[EnvironmentRow, ...]:
    """Rows of `source`, the path of a JSONL file or the rows themselves; `fields` name the question and the answer. All of a row is its data.

    Raises ValueError on a row without a question or an answer, naming it.
    """
    return tuple(
        EnvironmentRow(row_id=f"{split}-{index}", text=question(row, fields, where), data=dict(row))
        for index, (where, row) in enumerate(read(source, split))
    )


def read(source: str | Sequence[Mapping[str, Any]], split: Split) -> list[tuple[str, Mapping[str, Any]]]:
    """(where it stands, row) of each row."""
    if not isinstance(source, str):
        return [(f"{split} row {index}", row) for index, row in enumerate(source)]
    rows = []
    for number, line in enumerate(Path(source).read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                rows.append((f"{source}:{number}", json.loads(line)))
            except ValueError as error:
                raise ValueError(f"{source}:{number} must be a JSON object; got {line[:100]!r} ({error})") from error
    return rows


def question(row: Any, fields: tuple[str, str], where: str) -> str:
    """The question of a row that has one, and an answer."""
    for name in fields:
        if not isinstance(row, Mapping) or row.get(name) in (None, ""):
            raise ValueError(f"{where} must be an object with {fields[0]!r} and {fields[1]!r}; got {str(row)[:200]}")
    return str(row[fields[0]])
