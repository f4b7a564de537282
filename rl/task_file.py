"""Problems from a JSONL or Parquet file, as a task."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, model_validator

from samepath.rl.recipe_suggest import did_you_mean, files_beside
from samepath.rl.task_prompt import PromptSettings
from samepath.rl.task_row import Task, TaskError, TaskRow, canonical_text

_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".pq": "parquet"}


class ColumnMap(BaseModel):
    """Which column of the file holds what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(default="question", min_length=1, description="Column of the question (text).")
    answer: str = Field(default="answer", min_length=1, description="Column of the gold answer (text or number).")
    id: str = Field(default="", description="Column of an id, unique in the file; empty: row numbers serve as ids.")
    extra: tuple[str, ...] = Field(default=(), description="More columns that the reward function is to see.")

    @property
    def names(self) -> list[str]:
        """Columns that the file must have, each once."""
        return list(dict.fromkeys([self.prompt, self.answer, *([self.id] if self.id else []), *self.extra]))


class FileTask(PromptSettings):
    """Problems of a file; part of it, or another file, is held out."""

    kind: Literal["file"] = Field(default="file", description="Names this kind of task.")
    path: str = Field(min_length=1, description="JSONL or Parquet file, relative to the recipe.")
    format: Literal["auto", "jsonl", "parquet"] = Field(
        default="auto", description="Format of the files; auto goes by suffix (.jsonl, .ndjson, .json, .parquet, .pq)."
    )
    columns: ColumnMap = Field(default=ColumnMap(), description="Which column holds what.")
    held_out_fraction: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Part of the different prompts to hold out (0 to 1); 0: held_out_path says.",
    )
    held_out_path: str = Field(
        default="", description="File of the held-out rows, relative to the recipe; empty: held_out_fraction says."
    )
    seed: int = Field(
        default=0, ge=0, description="Seed of the epoch order (at least 0); the split does not change with it."
    )

    @model_validator(mode="after")
    def _check_held_out(self) -> "FileTask":
        if (self.held_out_fraction > 0) == bool(self.held_out_path):
            raise ValueError(
                "give exactly one of held_out_fraction (above 0) and held_out_path, so that there are rows to evaluate on; "
                f"got {self.held_out_fraction} and {self.held_out_path!r}"
            )
        return self


def build_file(settings: FileTask, recipe_dir: Path) -> Task:
    """Read the rows and split them.

    With held_out_fraction a hash of the canonical prompt decides, so equal prompts land on the same side, and a row stays on
    its side when the file grows or the seed changes. With held_out_path training rows whose prompt is held out are dropped and
    counted. Raises TaskError with file and line.
    """
    path = recipe_dir / settings.path
    rows = list(_rows(path, settings))
    if settings.held_out_path:
        held_out_path = recipe_dir / settings.held_out_path
        held_out = list(_rows(held_out_path, settings))
        if not held_out:
            raise TaskError(f"{held_out_path} must have at least one row to evaluate on; it has none.")
        texts = {canonical_text(row.text) for row in held_out}
        train = [row for row in rows if canonical_text(row.text) not in texts]
    else:
        held_out = [row for row in rows if _unit_hash(canonical_text(row.text)) < settings.held_out_fraction]
        train = [row for row in rows if _unit_hash(canonical_text(row.text)) >= settings.held_out_fraction]
    if not rows:
        raise TaskError(f"{path} must have at least one row; it has none.")
    if not held_out:
        raise TaskError(f"none of the {len(rows)} rows of {path} was held out; raise held_out_fraction or add rows.")
    if not train:
        raise TaskError(f"all {len(rows)} rows of {path} are held out, none is left to train on; hold fewer out.")
    return Task(
        name=path.stem,
        train=_numbered(train, "train"),
        held_out=_numbered(held_out, "held-out"),
        seed=settings.seed,
        dropped_overlap=len(rows) - len(train) if settings.held_out_path else 0,
    )


def _unit_hash(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _numbered(rows: list[TaskRow], split: str) -> list[TaskRow]:
    return [
        TaskRow(
            row_id=f"{split}-{row.row_id}",
            question=row.question,
            text=row.text,
            answer=row.answer,
            dataset=row.dataset,
            row=index,
        )
        for index, row in enumerate(rows)
    ]


def _rows(path: Path, settings: FileTask) -> Iterator[TaskRow]:
    """Read one file; the rows have bare ids and the file's row numbers."""
    if not path.is_file():
        raise TaskError(f"{path} does not exist or is no file; {files_beside(path)}.")
    file_format = _FORMATS.get(path.suffix.lower(), "") if settings.format == "auto" else settings.format
    if not file_format:
        raise TaskError(
            f"{path}: format must be given, the suffix {path.suffix!r} does not tell. Set it to jsonl or parquet."
        )
    columns = settings.columns
    entries = _read_jsonl(path, columns) if file_format == "jsonl" else _read_parquet(path, columns)
    places: dict[str, str] = {}
    for row, (where, entry) in enumerate(entries):
        question = entry[columns.prompt]
        if not isinstance(question, str):
            raise TaskError(f"{where}: column {columns.prompt!r} must be text; got {question!r:.80}.")
        row_id = str(entry[columns.id]) if columns.id else str(row)
        if row_id in places:
            raise TaskError(f"{where}: id {row_id!r} must be unique; {places[row_id]} has it too.")
        places[row_id] = where
        gold = _gold(entry[columns.answer], columns.answer, where)
        yield TaskRow(
            row_id=row_id,
            question=question,
            text=settings.text_of(question, where),
            answer={"answer": gold, "entry": entry, "dataset": path.stem},
            dataset=path.stem,
            row=row,
        )


def _gold(value: object, column: str, where: str) -> str:
    """Return the gold answer as text."""
    if isinstance(value, str) or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return str(value)
    raise TaskError(
        f"{where}: column {column!r} must be text or a number; got {value!r:.80}. "
        "For answers with structure name a text column here and list theirs under columns.extra."
    )


def _read_jsonl(path: Path, columns: ColumnMap) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, wanted columns) of each line; blank lines are skipped."""
    # Read as bytes: only \n ends a line of JSONL, while text files also end lines at a lone \r.
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                record = json.loads(line, parse_constant=_refuse_constant) if line else None
            except UnicodeDecodeError as error:
                raise TaskError(
                    f"{where}: must be UTF-8 text; {error.reason} at byte {error.start} of the line."
                ) from error
            except (ValueError, RecursionError) as error:
                raise TaskError(f"{where}: not valid JSON: {error}; got {line[:80]!r}.") from error
            if not line:
                continue
            if not isinstance(record, dict):
                raise TaskError(f"{where}: each line must be a JSON object; got {line[:80]!r}.")
            yield where, _wanted(record, columns, where)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _read_parquet(path: Path, columns: ColumnMap) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, wanted columns) of each row."""
    # Imported late: it takes a fifth of a second and most recipes read no Parquet.
    import pyarrow
    import pyarrow.parquet

    try:
        known = list(pyarrow.parquet.read_schema(path).names)
        _check_columns(known, columns, str(path))
        table = pyarrow.parquet.read_table(path, columns=columns.names)
    except (pyarrow.ArrowException, OSError) as error:
        raise TaskError(f"{path}: not a Parquet file that can be read: {error}") from error
    row = 0
    for batch in table.to_batches():
        for record in batch.to_pylist():
            yield f"{path} row {row}", _wanted(record, columns, f"{path} row {row}")
            row += 1


def _wanted(record: Mapping[str, Any], columns: ColumnMap, where: str) -> dict[str, Any]:
    """Return the named columns of one record, which must hold plain data."""
    _check_columns(list(record), columns, where)
    entry = {name: record[name] for name in columns.names}
    for name, value in entry.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TaskError(f"{where}: column {name!r} must be plain data that JSON can hold: {error}.") from error
    return entry


def _check_columns(known: list[str], columns: ColumnMap, where: str) -> None:
    for name in columns.names:
        if name not in known:
            raise TaskError(
                f"{where}: no column {name!r}{did_you_mean(name, known)}; there are: {', '.join(known) or 'none'}. Set columns."
            )
