"""The index of one step's file: an Arrow file beside it, made once and mapped into memory from then on."""

import os
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from samepath.rl.report.inspector.columns import SCHEMA, columns_of, lines_of

VERSION = 1
"""Of the columns' meaning; an index of another version is made again."""
INDEX = "index"
"""Folder of the index files, in the folder of the rollouts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileState:
    """By what a file is known to be the one that was read.

    Example:
        FileState(size=20480, changed_ns=1796058243884031379)
    """

    size: int
    """Bytes."""
    changed_ns: int
    """Time of its last change, nanoseconds since 1970."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepColumns:
    """The index of one step."""

    path: Path
    """The step's file."""
    state: FileState
    """As it was read."""
    table: pa.Table
    """`SCHEMA`."""
    unreadable: int
    """Lines that hold no rollout."""
    unsaved: str
    """Why the index could not be kept on disk; empty where it is."""


def index_path(step_path: Path) -> Path:
    """Where the index of a step's file lies."""
    return step_path.parent / INDEX / f"{step_path.stem}.arrow"


def read_step(path: Path, state: FileState) -> StepColumns:
    """The columns of a step's file in this state: from its index, or from its lines, and then the index is kept. Raises OSError."""
    if (kept := kept_index(path, state)) is not None:
        return kept
    table, unreadable = columns_of(lines_of(path, state.size))
    unsaved = ""
    try:
        _save(table, unreadable, state, index_path(path))
    except OSError as error:
        unsaved = f"{index_path(path).parent}: {error.strerror or error}"
    else:
        if (kept := kept_index(path, state)) is not None:
            return kept
    return StepColumns(path=path, state=state, table=table, unreadable=unreadable, unsaved=unsaved)


def kept_index(path: Path, state: FileState) -> StepColumns | None:
    """The index on disk, if it is whole and of this state of the step's file."""
    try:
        with pa.memory_map(str(index_path(path))) as mapped:
            table = pa.ipc.open_file(mapped).read_all()
    except (OSError, pa.ArrowInvalid):
        return None
    known = table.schema.metadata or {}
    if known.get(b"source") != _source(state) or table.schema.remove_metadata() != SCHEMA:
        return None
    return StepColumns(path=path, state=state, table=table, unreadable=int(known.get(b"unreadable", b"0")), unsaved="")


def _save(table: pa.Table, unreadable: int, state: FileState, target: Path) -> None:
    """Put the index in its place in one rename. It is not synced: one that a power cut tears is made again."""
    target.parent.mkdir(exist_ok=True)
    # Two inspectors of one run may write at once.
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    labelled = table.replace_schema_metadata({b"source": _source(state), b"unreadable": str(unreadable).encode()})
    try:
        with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, labelled.schema) as writer:
            writer.write_table(labelled)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _source(state: FileState) -> bytes:
    return f"{VERSION}:{state.size}:{state.changed_ns}".encode()
