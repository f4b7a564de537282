"""Problems from the rows of a table, wherever it comes from: columns, gold answers, and what is held out."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from samepath.rl.recipe.did_you_mean import did_you_mean
from samepath.rl.recipe.task import ColumnMap, TableRows, TableSettings
from samepath.rl.tasks.conversation import conversation
from samepath.rl.tasks.prompt import prompt_text, rewritten
from samepath.rl.tasks.row import Task, TaskError, TaskRow

Entries = Iterable[tuple[str, Mapping[str, Any] | TaskError]]
"""(place for messages, row or why there is none) pairs."""
SHOWN = 3
"""Malformed rows of each kind whose places are named."""


def table_rows(entries: Entries, settings: TableRows, dataset: str) -> list[TaskRow]:
    """Rows with bare ids, numbered from 0.

    Reads them all; raises TaskError that counts the malformed ones by kind and names the places of the first, if there are any.
    """
    places: dict[str, str] = {}
    rows: list[TaskRow] = []
    wrong: list[TaskError] = []
    number = -1
    for number, (where, record) in enumerate(entries):
        try:
            if isinstance(record, TaskError):
                raise record
            row = _row(number, where, record, settings, dataset)
            if row.row_id in places:
                said = f"{where}: id {row.row_id!r} must be unique; {places[row.row_id]} has it too."
                raise TaskError(said, "duplicate_id")
        except TaskError as error:
            wrong.append(error)
            continue
        places[row.row_id] = where
        rows.append(row)
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        by_kind: dict[str, list[TaskError]] = {}
        for one in wrong:
            by_kind.setdefault(one.kind, []).append(one)
        kinds = [
            f"{kind} {len(found)} ({' '.join(map(str, found[:SHOWN]))}{' …' if len(found) > SHOWN else ''})"
            for kind, found in by_kind.items()
        ]
        raise TaskError(
            f"{len(wrong)} of {number + 1} rows are malformed, mend them or take them out: {', '.join(kinds)}"
        )
    return rows


def _row(number: int, where: str, record: Mapping[str, Any], settings: TableRows, dataset: str) -> TaskRow:
    columns = settings.columns
    entry = _wanted(record, columns, where)
    question, earlier = conversation(entry[columns.prompt], settings.chat, f"{where}: column {columns.prompt!r}")
    gold = rewritten(
        settings.answer_rewrite, _gold(entry[columns.answer], columns.answer, where), where, "answer_rewrite"
    )
    if not gold.strip():
        raise TaskError(
            f"{where}: the gold answer must not be empty after answer_rewrite; got {entry[columns.answer]!r:.80}.",
            "empty_answer",
        )
    prompt = prompt_text(settings, question, where)
    dataset = _dataset(entry[columns.dataset], columns.dataset, where) if columns.dataset else dataset
    return TaskRow(
        row_id=str(entry[columns.id]) if columns.id else str(number),
        question=question,
        text=prompt.text,
        written=prompt.written,
        earlier=earlier,
        chat=settings.chat.form,
        answer={"answer": gold, "entry": entry, "dataset": dataset},
        dataset=dataset,
        row=number,
        where=where,
    )


def split_task(
    rows: list[TaskRow], held_out: list[TaskRow] | None, settings: TableSettings, name: str, source: str
) -> Task:
    """Put the rows on two sides that share no canonical text.

    With `held_out` training rows whose prompt is held out are dropped and counted. Without it a hash of the canonical prompt
    decides, so equal prompts land on the same side, and a row stays on its side when the table grows or the seed changes.
    """
    fraction = settings.held_out_fraction
    if held_out is not None:
        texts = {row.canonical for row in held_out}
        train = [row for row in rows if row.canonical not in texts]
    else:
        train = [row for row in rows if _unit_hash(row.canonical) >= fraction]
    dropped = len(rows) - len(train) if held_out is not None else 0
    if held_out is None:
        held_out = [row for row in rows if _unit_hash(row.canonical) < fraction]
    if not rows:
        raise TaskError(f"{source} must have at least one row; it has none.")
    if not held_out:
        raise TaskError(f"none of the {len(rows)} rows of {source} was held out; raise held_out_fraction or add rows.")
    if not train:
        raise TaskError(f"all {len(rows)} rows of {source} are held out, none is left to train on; hold fewer out.")
    return Task(
        name=name,
        train=numbered(train, "train"),
        held_out=numbered(held_out[: settings.max_held_out or None], "held-out"),
        seed=settings.seed,
        datasets=Counter(row.dataset for row in train),
        dropped_overlap=dropped,
    )


def check_columns(known: list[str], columns: ColumnMap, where: str) -> None:
    """Raise TaskError unless every column that is asked for is there."""
    for name in columns.names:
        if name not in known:
            raise TaskError(
                f"{where}: no column {name!r}{did_you_mean(name, known)}; there are: {', '.join(known) or 'none'}. Set columns.",
                "no_column",
            )


def _unit_hash(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def numbered(rows: list[TaskRow], split: str) -> list[TaskRow]:
    """The rows with ids and numbers of one split."""
    return [replace(row, row_id=f"{split}-{row.row_id}", row=index) for index, row in enumerate(rows)]


def _gold(value: object, column: str, where: str) -> str:
    """Return the gold answer as text."""
    if isinstance(value, str) or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return str(value)
    raise TaskError(
        f"{where}: column {column!r} must be text or a number; got {value!r:.80}. "
        "For answers with structure name a text column here and list theirs under columns.extra.",
        "answer_not_text",
    )


def _dataset(value: object, column: str, where: str) -> str:
    """Return the name of the dataset that a row is from."""
    if isinstance(value, str) and value.strip():
        return value
    raise TaskError(
        f"{where}: column {column!r} must be the name of a dataset, as text; got {value!r:.80}.", "no_dataset"
    )


def _wanted(record: Mapping[str, Any], columns: ColumnMap, where: str) -> dict[str, Any]:
    """Return the named columns of one record, which must hold plain data."""
    check_columns(list(record), columns, where)
    entry = {name: record[name] for name in columns.names}
    for name, value in entry.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TaskError(f"{where}: column {name!r} must be plain data that JSON can hold: {error}.") from error
    return entry
