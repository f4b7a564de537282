"""Rows of an environment from a file of JSON lines, and which of them are held out."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from samepath.model.text.conversation import JsonValue
from samepath.rollout.environments.held_out import is_held_out
from samepath.rollout.environments.protocol import EnvironmentRow, Split

Read = Callable[[Mapping[str, JsonValue]], tuple[str, dict[str, JsonValue]]]
"""The text and the data of a row from a line's object. Raises ValueError that says what the object must have."""


class FileRows:
    """Both splits of a file: of another one, or of a share of its different texts, the held-out one."""

    def __init__(self, path: str, held_out_path: str, held_out_share: float, read: Read) -> None:
        """Paths are relative to the folder in which the run starts. Raises ValueError unless exactly one of the last two is given."""
        if bool(held_out_path) == bool(held_out_share) or not 0 <= held_out_share < 1:
            raise ValueError(
                "give exactly one of held_out_path and held_out_share (between 0 and 1), so that there are rows to evaluate on; got "
                f"{held_out_path!r} and {held_out_share}"
            )
        self._path, self._held_out_path, self._share, self._read = path, held_out_path, held_out_share, read

    def tasks(self, split: Split) -> Sequence[EnvironmentRow]:
        """See `Environment.tasks`. Raises ValueError naming file and line for what is no row, for a text in both files and for a split of none."""
        held_out = split == "held_out"
        if self._held_out_path:
            path = self._held_out_path if held_out else self._path
            rows = list(self._rows(path, split))
            if held_out:
                self._check_apart(rows)
        else:
            path = self._path
            rows = [row for row in self._rows(path, split) if is_held_out(row.text, self._share) == held_out]
        if not rows:
            raise ValueError(f"{path} gives no {split} rows. Add rows, or change held_out_share.")
        return rows

    def _rows(self, path: str, split: Split) -> Iterator[EnvironmentRow]:
        for number, where, record in json_lines(Path(path)):
            try:
                text, data = self._read(record)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            yield EnvironmentRow(row_id=f"{split}-{number}", text=text, data=data)

    def _check_apart(self, held_out: Sequence[EnvironmentRow]) -> None:
        trained = {row.text: row.row_id for row in self._rows(self._path, "train")}
        for row in held_out:
            if row.text in trained:
                raise ValueError(
                    f"{self._held_out_path}: row {row.row_id} asks what {trained[row.text]} of {self._path} asks. Take it out of one of them."
                )


def json_lines(path: Path) -> Iterator[tuple[int, str, Mapping[str, JsonValue]]]:
    """Line number from 1, place for messages and object of each line that is not blank. Raises ValueError, or OSError for no file."""
    # Read as bytes: only \n ends a line here, while text files also end lines at a lone \r.
    for number, raw in enumerate(path.read_bytes().split(b"\n"), start=1):
        where = f"{path}:{number}"
        if not raw.strip():
            continue
        try:
            record: Any = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"), parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not valid JSON: {error}; got {raw[:80]!r}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{where}: each line must be a JSON object; got {raw[:80]!r}")
        yield number, where, record


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
