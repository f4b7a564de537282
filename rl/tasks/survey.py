"""What a task's rows are like before any is asked: how long the prompts are, and which rows would fail, by kind and place."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.tasks.requests import NOT_ENCODABLE, NOT_MADE
from samepath.rl.tasks.row import Task, TaskError, TaskRow

SHOWN = 3
"""Places of each kind that are named."""
PROBED_ROWS = 64
"""Training rows that a run looks at before it starts, beside all held-out ones."""
SESSIONS = 4
"""Sessions of an environment that are started to see how a conversation begins; its other rows count as usable."""
PROGRESS_EVERY_S = 5.0

TooLarge = Callable[[int], tuple[str, str]]
"""From the tokens of a prompt to (failure, reason), or two empty texts if it fits."""


@dataclass(slots=True, kw_only=True)
class Faults:
    """Rows of one kind that would fail.

    Example:
        Faults(count=2, places=["rows.jsonl:17: every character must be …", "rows.jsonl:90: …"])
    """

    count: int = 0
    """All of them."""
    places: list[str] = field(default_factory=list)
    """The first few, with what is wrong."""


@dataclass(slots=True, kw_only=True)
class Survey:
    """What was read, and what was found."""

    total: int
    """Rows to read, held-out ones among them."""
    num_read: int = 0
    """Rows looked at; fewer than `total` where the time was up."""
    usable_held_out: int = 0
    """Held-out rows that can be asked."""
    usable_train: int = 0
    """Training rows that can be asked."""
    longest: int = 0
    """Tokens of the longest prompt that can be asked."""
    faults: dict[str, Faults] = field(default_factory=dict)
    """By kind: the failure that the row's samples would have."""

    def add(self, kind: str, place: str) -> None:
        """Count a row that would fail."""
        found = self.faults.setdefault(kind, Faults())
        found.count += 1
        if len(found.places) < SHOWN:
            found.places.append(place)

    def described(self) -> str:
        """The rows that would fail, by kind, the first of each by place."""
        count = sum(found.count for found in self.faults.values())
        kinds = (f"{kind} {found.count} ({'; '.join(found.places)})" for kind, found in self.faults.items())
        return f"{count} of {self.num_read} rows cannot be asked: {', '.join(kinds)}"


def survey(
    task: Task,
    tokenizer: Tokenizer,
    *,
    max_train: int | None = None,
    too_large: TooLarge = lambda tokens: ("", ""),
    limit_s: float | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Survey:
    """Encode all held-out rows and all training rows, in the order of their split, or the first `max_train` that a run draws.

    After `limit_s` seconds no further row is read; `progress` hears every few seconds how far it is.
    """
    num_train = len(task.train) if max_train is None else min(max_train, len(task.train))
    result = Survey(total=len(task.held_out) + num_train)
    started = said = time.monotonic()
    for is_held_out, row in _rows(task, num_train, task.train.__getitem__ if max_train is None else task.train_row):
        now = time.monotonic()
        if limit_s is not None and now - started >= limit_s:
            break
        if now - said >= PROGRESS_EVERY_S:
            progress(f"{result.num_read:,} of {result.total:,} rows read")
            said = now
        result.num_read += 1
        if not isinstance(row, TaskError) and row.episode is not None and result.num_read > SESSIONS:
            result.usable_held_out += is_held_out
            result.usable_train += not is_held_out
            continue
        length = _length(row, tokenizer, too_large, result)
        if length:
            result.longest = max(result.longest, length)
            result.usable_held_out += is_held_out
            result.usable_train += not is_held_out
    return result


def check_first_prompts(task: Task, tokenizer: Tokenizer) -> str:
    """A sentence about rows that fail among the held-out and the first training rows, or nothing.

    Raises TaskError if no held-out row, or none of these training rows, can be asked.
    """
    found = survey(task, tokenizer, max_train=PROBED_ROWS)
    if not (found.usable_held_out and found.usable_train):
        what = "training" if found.usable_held_out else "held-out"
        raise TaskError(f"no {what} row that was looked at can be asked; {found.described()}")
    return found.described() if found.faults else ""


def _rows(task: Task, num_train: int, row_at: Callable[[int], TaskRow]) -> Iterator[tuple[bool, TaskRow | TaskError]]:
    """(held out or not, row or why there is none) of each row."""
    for row in task.held_out:
        yield True, row
    for index in range(num_train):
        try:
            made: TaskRow | TaskError = row_at(index)
        except TaskError as error:
            made = error
        yield False, made


def _length(row: TaskRow | TaskError, tokenizer: Tokenizer, too_large: TooLarge, result: Survey) -> int:
    """Tokens of the row's prompt; 0 for a row that would fail, which is noted."""
    if isinstance(row, TaskError):
        result.add(NOT_MADE, str(row))
        return 0
    place = row.where or row.row_id
    try:
        length = len(row.encode(tokenizer))
    except ValueError as error:
        result.add(NOT_ENCODABLE, f"{place}: {error}")
        return 0
    kind, reason = too_large(length) if length else ("no_tokens", "the prompt is empty")
    if kind:
        result.add(kind, f"{place}: {reason}")
        return 0
    return length
