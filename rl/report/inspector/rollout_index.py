"""All rollouts of a run as columns in memory, step by step as the run writes them.

Axes: B rollouts, in the order of steps and of lines in each step's file.
"""

import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from samepath.rl.report.inspector.columns import NUMBERS, SCHEMA, WORDS
from samepath.rl.report.inspector.step_columns import FileState, StepColumns, read_step

PUBLISH_S = 0.5
"""While many steps are read, how often what is known so far can be looked at."""
STEP_FILE = re.compile(r"step-(\d+)\.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """A column of texts that occur often."""

    codes_B: NDArray[np.int32]
    """[B] place in `values`."""
    values: Sequence[str]
    """The different texts, in the order in which they come first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The index as it was at one moment; it never changes."""

    version: int
    """One more with each change."""
    numbers: Mapping[str, NDArray[Any]]
    """[B] each, by the names of `NUMBERS`."""
    words: Mapping[str, Words]
    """By the names of `WORDS`."""
    table: pa.Table
    """The columns that stay on disk, `TEXTS`."""
    files_B: NDArray[np.int32]
    """[B] place of each rollout's file in `paths`."""
    paths: Sequence[Path]
    """The steps' files."""
    unreadable: int
    """Lines that hold no rollout."""
    unsaved: str
    """Why the index is not kept on disk; empty where it is."""

    def __len__(self) -> int:
        return len(self.files_B)


class RolloutIndex:
    """Follows a run's folder of rollouts. Any thread may take the `snapshot`."""

    def __init__(self, rollouts_dir: Path) -> None:
        self._dir = rollouts_dir
        self._reading = threading.Lock()
        self._steps: dict[Path, StepColumns] = {}
        self.snapshot = _snapshot(0, [])
        """What is known so far."""
        self.waiting = 0
        """Files that are known to have changed and are not read yet."""
        self.problem = ""
        """What keeps a file from being read, as of the last `refresh`; empty if nothing does."""

    def refresh(self) -> bool:
        """Look at the folder, and read what is new or has changed; returns whether anything had."""
        with self._reading:
            return self._refresh()

    def _refresh(self) -> bool:
        try:
            states = self._states()
        except OSError as error:
            self.problem = f"{self._dir}: {error.strerror or error}"
            return False
        gone = self._steps.keys() - states.keys()
        changed = [
            path for path, state in states.items() if path not in self._steps or self._steps[path].state != state
        ]
        for path in gone:
            del self._steps[path]
        self.waiting, self.problem = len(changed), ""
        published = time.monotonic()
        for path in changed:
            try:
                self._steps[path] = read_step(path, states[path])
            except FileNotFoundError:
                # Set aside by a run that goes on from an earlier step.
                self._steps.pop(path, None)
            except OSError as error:
                self.problem = f"{path}: {error.strerror or error}"
            self.waiting -= 1
            if time.monotonic() - published > PUBLISH_S:
                self._publish()
                published = time.monotonic()
        if gone or changed:
            self._publish()
        return bool(gone or changed)

    def _publish(self) -> None:
        steps = sorted(self._steps.values(), key=lambda step: step_of(step.path))
        self.snapshot = _snapshot(self.snapshot.version + 1, steps)

    def _states(self) -> dict[Path, FileState]:
        """State of every step's file, by path, in the order of steps."""
        found = {}
        try:
            with os.scandir(self._dir) as entries:
                for entry in entries:
                    if STEP_FILE.fullmatch(entry.name) and (state := _state(entry)) is not None:
                        found[self._dir / entry.name] = state
        except FileNotFoundError:
            # The run has not finished a step yet.
            return {}
        return dict(sorted(found.items(), key=lambda item: step_of(item[0])))


def _state(entry: os.DirEntry[str]) -> FileState | None:
    try:
        found = entry.stat()
    except FileNotFoundError:
        return None
    return FileState(size=found.st_size, changed_ns=found.st_mtime_ns)


def step_of(path: Path) -> int:
    """Step in the name of its file."""
    return int(path.stem.removeprefix("step-"))


def _snapshot(version: int, steps: Sequence[StepColumns]) -> Snapshot:
    table = (
        pa.concat_tables([step.table.replace_schema_metadata(None) for step in steps])
        if steps
        else SCHEMA.empty_table()
    )
    sizes = [step.table.num_rows for step in steps]
    return Snapshot(
        version=version,
        numbers={name: table.column(name).to_numpy() for name in NUMBERS},
        words={name: _words(table.column(name)) for name in WORDS},
        table=table.select(["response_head", "text"]),
        files_B=np.repeat(np.arange(len(steps), dtype=np.int32), sizes),
        paths=[step.path for step in steps],
        unreadable=sum(step.unreadable for step in steps),
        unsaved=next((step.unsaved for step in steps if step.unsaved), ""),
    )


def _words(column: pa.ChunkedArray) -> Words:
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return Words(codes_B=encoded.indices.to_numpy(zero_copy_only=False), values=encoded.dictionary.to_pylist())
