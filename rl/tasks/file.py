"""Problems from a JSONL or Parquet file, as a task."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from samepath.rl.recipe.did_you_mean import files_beside
from samepath.rl.recipe.evaluation_rows import FileRows
from samepath.rl.recipe.task import ColumnMap, FileTask
from samepath.rl.tasks.row import Task, TaskError, TaskRow
from samepath.rl.tasks.table import check_columns, split_task, table_rows

_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".pq": "parquet"}


def build_file(settings: FileTask, recipe_dir: Path) -> Task:
    """Read the rows and split them (see `split_task`). Raises TaskError with file and line."""
    path = recipe_dir / settings.path
    rows = file_rows(path, settings)
    held_out = None
    if settings.held_out_path:
        held_out_path = recipe_dir / settings.held_out_path
        held_out = file_rows(held_out_path, settings)
        if not held_out:
            raise TaskError(f"{held_out_path} must have at least one row to evaluate on; it has none.")
    return split_task(rows, held_out, settings, path.stem, str(path))


def file_rows(path: Path, settings: FileTask | FileRows) -> list[TaskRow]:
    """Read one file; the rows have bare ids and the file's row numbers. Raises TaskError with file and line."""
    if not path.is_file():
        raise TaskError(f"{path} does not exist or is no file; {files_beside(path)}.")
    file_format = _FORMATS.get(path.suffix.lower(), "") if settings.format == "auto" else settings.format
    if not file_format:
        raise TaskError(
            f"{path}: format must be given, the suffix {path.suffix!r} does not tell. Set it to jsonl or parquet."
        )
    entries = _read_jsonl(path) if file_format == "jsonl" else _read_parquet(path, settings.columns)
    return table_rows(entries, settings, path.stem)


def _read_jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | TaskError]]:
    """Yield (place, record, or why there is none) of each line; blank lines are skipped."""
    # Read as bytes: only \n ends a line of JSONL, while text files also end lines at a lone \r.
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                record = json.loads(line, parse_constant=_refuse_constant) if line else None
            except UnicodeDecodeError as error:
                said = f"{where}: must be UTF-8 text; {error.reason} at byte {error.start} of the line."
                yield where, TaskError(said, "not_utf8")
                continue
            except (ValueError, RecursionError) as error:
                yield where, TaskError(f"{where}: not valid JSON: {error}; got {line[:80]!r}.", "not_json")
                continue
            if not line:
                continue
            if not isinstance(record, dict):
                record = TaskError(f"{where}: each line must be a JSON object; got {line[:80]!r}.", "no_object")
            yield where, record


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _read_parquet(path: Path, columns: ColumnMap) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (place, wanted columns) of each row."""
    # Imported late: it takes a fifth of a second and most recipes read no Parquet.
    import pyarrow
    import pyarrow.parquet

    try:
        known = list(pyarrow.parquet.read_schema(path).names)
        check_columns(known, columns, str(path))
        table = pyarrow.parquet.read_table(path, columns=columns.names)
    except (pyarrow.ArrowException, OSError) as error:
        raise TaskError(f"{path}: not a Parquet file that can be read: {error}") from error
    row = 0
    for batch in table.to_batches():
        for record in batch.to_pylist():
            yield f"{path} row {row}", record
            row += 1
