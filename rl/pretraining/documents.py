"""Documents of text files, JSONL, Parquet or a dataset of the hub, one after the other."""

import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from samepath.rl.recipe.did_you_mean import did_you_mean, files_beside
from samepath.rl.recipe.text import TextSettings
from samepath.rl.tasks.hub_folder import hub_folder

ROWS_AT_ONCE = 256


class TextError(ValueError):
    """Text that cannot be trained on; the message names file and row, and what to do."""


def text_files(settings: TextSettings, recipe_dir: Path) -> list[Path]:
    """The files of `text.paths`, each once, by name. Raises TextError for a name or pattern that finds none."""
    found: dict[Path, None] = {}
    for pattern in settings.paths:
        paths = [Path(path) for path in sorted(glob.glob(str(recipe_dir / pattern), recursive=True))]
        files = [path for path in paths if path.is_file()]
        if not files:
            raise TextError(
                f"text.paths: no file is named {recipe_dir / pattern}; {files_beside(recipe_dir / pattern)}."
            )
        found |= dict.fromkeys(files)
    return list(found)


def documents(settings: TextSettings, recipe_dir: Path) -> Iterator[str]:
    """Every text that is not blank, in order. Raises TextError with file and row, HubUnreachableError without network and cache."""
    rows = _hub_rows(settings, recipe_dir) if settings.kind == "hub" else _file_rows(settings, recipe_dir)
    for where, row in rows:
        text = row.get(settings.column)
        if not isinstance(text, str):
            hint = "" if settings.column in row else did_you_mean(settings.column, list(row))
            raise TextError(
                f"{where}: text.column={settings.column} must hold text; got {text!r:.60}{hint}; there are: {', '.join(row)}"
            )
        if text.strip():
            yield text


def _file_rows(settings: TextSettings, recipe_dir: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in text_files(settings, recipe_dir):
        match path.suffix.lower():
            case ".jsonl" | ".ndjson" | ".json":
                yield from _jsonl_rows(path)
            case ".parquet" | ".pq":
                yield from _parquet_rows(path, settings.column)
            case _:
                yield str(path), {settings.column: _decoded(path.read_bytes(), str(path))}


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}:{number}"
            if not (line := _decoded(raw, where).strip()):
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise TextError(f"{where}: not valid JSON: {error}; got {line[:80]!r}.") from error
            if not isinstance(row, dict):
                raise TextError(f"{where}: each line must be a JSON object; got {line[:80]!r}.")
            yield where, row


def _parquet_rows(path: Path, column: str) -> Iterator[tuple[str, dict[str, Any]]]:
    # Late: it takes a fifth of a second, and most text is in other files.
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        known = file.schema_arrow.names
        if column not in known:
            raise TextError(
                f"{path}: text.column={column} must be one of its columns{did_you_mean(column, known)}; there are: {', '.join(known)}"
            )
        number = 0
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=[column]):
            for row in batch.to_pylist():
                yield f"{path} row {number}", row
                number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise TextError(f"{path} cannot be read as Parquet: {error}") from error


def _hub_rows(settings: TextSettings, recipe_dir: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    folder = recipe_dir / settings.path
    if not folder.is_dir():
        folder = hub_folder(settings.path, "dataset", ["*"], settings.revision)
    try:
        # Late: optional, and it takes a second.
        import datasets
    except ImportError as error:
        raise TextError(f"text.kind hub needs a package: pip install samepath[hub] ({error}).") from error
    try:
        table = datasets.load_dataset(str(folder), settings.config or None, split=settings.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join((f"{error}: {error.__cause__}" if error.__cause__ else str(error)).split())
        raise TextError(
            f"the dataset {settings.path} (text.config={settings.config!r}, text.split={settings.split!r}) cannot be read: {reason[:300]}"
        ) from error
    for number, row in enumerate(table):
        yield f"{settings.path} {settings.split} row {number}", row


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(f"{where}: must be UTF-8 text; {error.reason} at byte {error.start}.") from error
