"""A batch cut into passes of about equal rows, each placed once: what is known of a part when it is cut is what it is packed from.

Axes: S segments.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from samepath.rl.batch.pack import TrainSequence
from samepath.rl.batch.shared_rows import Placed, SharedRows


@dataclass(slots=True, kw_only=True)
class Part:
    """Consecutive sequences of a batch, for one pass."""

    indices: list[int] = field(default_factory=list)
    """Their places in the batch."""
    placed: list[Placed] = field(default_factory=list)
    """Where each stands in the pass."""
    num_rows: int = 0
    """Rows that run, common beginnings once."""


def split_by_tokens(
    sequences: Sequence[TrainSequence], max_tokens: int, at_least: int = 1, rollout_S: Sequence[int] | None = None
) -> list[list[int]]:
    """The indices of `cut`."""
    return [part.indices for part in cut(sequences, max_tokens, at_least, rollout_S=rollout_S)]


def cut(
    sequences: Sequence[TrainSequence],
    max_tokens: int,
    at_least: int = 1,
    *,
    multiple_of: int = 1,
    rollout_S: Sequence[int] | None = None,
) -> list[Part]:
    """Consecutive sequences in parts of about equal rows, none above `max_tokens` but for a single longer sequence.

    The sequences of a rollout (`rollout_S`; without it each is one of its own) stay together where they fit into one part. Shared rows count
    once in each part. There are `at_least` parts if there are as many rollouts, and where it can be cut so a multiple of `multiple_of`, so that
    several ranks have as many each.
    """
    moved = _moved_together(sequences, max_tokens, range(len(sequences)) if rollout_S is None else rollout_S)
    wanted = -(-at_least // multiple_of) * multiple_of
    # Without a number of parts nobody asks what share of all rows a part holds.
    whole = _Whole(sequences) if wanted > 1 else None
    parts = _parts(sequences, moved, max_tokens, wanted, whole)
    if len(parts) % multiple_of:
        wanted = -(-len(parts) // multiple_of) * multiple_of
        even = _parts(sequences, moved, max_tokens, wanted, whole or _Whole(sequences))
        parts = parts if len(even) % multiple_of else even
    return parts


class _Whole:
    """All sequences placed as one part."""

    def __init__(self, sequences: Sequence[TrainSequence]) -> None:
        shared = SharedRows()
        self.placed = [shared.place(entry.segment) for entry in sequences]
        self.num_rows = shared.num_rows


class _Filling:
    """The part that is being filled. The first one is the beginning of all sequences, which may have been placed before."""

    def __init__(self, sequences: Sequence[TrainSequence], known: Sequence[Placed]) -> None:
        self._sequences, self._known = sequences, known
        self._shared = SharedRows()

    def place(self, indices: Sequence[int]) -> tuple[list[Placed], int]:
        """Where some sequences stand behind those so far, and how many rows that adds."""
        placed = [
            self._known[index] if self._known else self._shared.place(self._sequences[index].segment)
            for index in indices
        ]
        return placed, sum(len(one.rows_T) - one.num_shared for one in placed)


def _parts(
    sequences: Sequence[TrainSequence],
    moved: Sequence[Sequence[int]],
    max_tokens: int,
    at_least: int,
    whole: _Whole | None,
) -> list[Part]:
    share = 0 if whole is None else -(-whole.num_rows // at_least)
    filling = _Filling(sequences, [] if whole is None else whole.placed)
    parts: list[Part] = []
    for number, indices in enumerate(moved):
        left, used = len(moved) - number, parts[-1].num_rows if parts else 0
        placed, more = filling.place(indices)
        # A part is closed once it is full, or holds its share, unless the sequences left are needed for the parts still owed.
        full = used + more > max_tokens or (used + more // 2 >= share and len(parts) < at_least)
        if parts and (full or left <= at_least - len(parts)):
            parts.append(Part())
            filling = _Filling(sequences, ())
            placed, more = filling.place(indices)
        elif not parts:
            parts.append(Part())
        parts[-1].indices += indices
        parts[-1].placed += placed
        parts[-1].num_rows += more
    return parts


def _moved_together(sequences: Sequence[TrainSequence], max_tokens: int, rollout_S: Sequence[int]) -> list[list[int]]:
    """Indices of the sequences of each rollout, or each alone of a rollout that is too large for one part."""
    moved: list[list[int]] = []
    for _, group in itertools.groupby(range(len(sequences)), key=lambda index: rollout_S[index]):
        indices = list(group)
        # One sequence is moved as it is.
        alone = len(indices) == 1 or _rows([sequences[index] for index in indices]) > max_tokens
        moved += [[index] for index in indices] if alone else [indices]
    return moved


def _rows(sequences: Sequence[TrainSequence]) -> int:
    shared = SharedRows()
    for entry in sequences:
        shared.place(entry.segment)
    return shared.num_rows
