"""Which batch rows sequences share: a common beginning runs once, as it stood once in the engine's cache.

Samples of a group share at least their prompt; prompts may share an example or a system text; a segment of a conversation begins as the ones
before it, up to where something was dropped. A row is shared only between equal tokens before and at it that took the same path (routes,
selection fingerprints), so sharing changes no result.
Axes: T rows of a sequence (every token but the last), L layers, X experts chosen.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from samepath.rollout.types import Segment

MIN_SHARED_TOKENS = 16
"""Sequences with different prompts are compared if they begin with the same tokens, this many: less is not worth a look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where a sequence stands in the batch."""

    rows_T: Tensor
    """int64, batch row of each position."""
    num_shared: int
    """Leading positions whose rows ran already; the rows of the others are consecutive."""
    apart: bool
    """True if a sequence with the same prompt stands in the batch whose prompt took another path."""


@dataclass(slots=True, kw_only=True)
class _Stretch:
    """Positions `first … end − 1` of a sequence, with nothing that branches off between them, and what goes on from there."""

    segment: Segment
    """The sequence that ran them first: tokens and records."""
    rows_T: Tensor
    """Batch rows of all its positions, those before `first` included."""
    first: int
    end: int
    branches: "_Branches" = field(default_factory=dict)


_Branches = dict[int, list[_Stretch]]
"""Stretches by their first token; two with the same differ in that row's records."""


@dataclass(slots=True)
class SharedRows:
    """The rows of the sequences placed so far: prefix trees over tokens and records."""

    num_rows: int = 0
    """Rows to run."""
    _trees: dict[tuple[bool, bytes], _Branches] = field(default_factory=dict)
    """Trees by the beginning of a prompt or of a whole sequence, and whether there are fingerprints."""
    _prompts: set[bytes] = field(default_factory=set)
    """Prompts placed so far."""

    def place(self, segment: Segment) -> Placed:
        """Give a sequence its rows: the longest beginning that stands already, then new ones."""
        length, prompt = len(segment.token_ids) - 1, int(segment.trained.argmax())
        branches, last, common = self._tree(segment, prompt), None, 0
        while (stretch := _begun(branches, segment, common)) is not None:
            common += _common_rows(segment, stretch, common)
            last = stretch
            if common < stretch.end:
                break
            branches = stretch.branches
        new_T = torch.arange(self.num_rows, self.num_rows + length - common)
        rows_T = new_T if last is None else torch.cat([last.rows_T[:common], new_T])
        if common < length:
            if last is not None and common < last.end:
                branches = _cut(last, common)
            new = _Stretch(segment=segment, rows_T=rows_T, first=common, end=length)
            branches.setdefault(int(segment.token_ids[common]), []).append(new)
        self.num_rows += len(new_T)
        prompt_ids = segment.token_ids[:prompt].tobytes()
        apart = prompt_ids in self._prompts and common < prompt
        self._prompts.add(prompt_ids)
        return Placed(rows_T=rows_T, num_shared=common, apart=apart)

    def _tree(self, segment: Segment, prompt: int) -> _Branches:
        """The tree that the sequence may share with: of its prompt, which may be short, or of its first tokens."""
        recorded = segment.selection_fingerprint is not None
        keys = [(recorded, segment.token_ids[: min(prompt, MIN_SHARED_TOKENS)].tobytes())]
        if len(segment.token_ids) > MIN_SHARED_TOKENS:
            keys.append((recorded, segment.token_ids[:MIN_SHARED_TOKENS].tobytes()))
        found = next((self._trees[key] for key in keys if key in self._trees), {})
        for key in keys:
            self._trees.setdefault(key, found)
        return found


def _begun(branches: _Branches, segment: Segment, place: int) -> _Stretch | None:
    """The stretch whose first row is the sequence's row at `place`, if it has one and there is such a stretch."""
    if place == len(segment.token_ids) - 1:
        return None
    alike = branches.get(int(segment.token_ids[place]), ())
    return next((stretch for stretch in alike if _equal_records(segment, stretch.segment, place)), None)


def _cut(stretch: _Stretch, place: int) -> _Branches:
    """End the stretch before `place`: what it was from there on is the first of its branches."""
    rest = _Stretch(
        segment=stretch.segment, rows_T=stretch.rows_T, first=place, end=stretch.end, branches=stretch.branches
    )
    stretch.end, stretch.branches = place, {int(stretch.segment.token_ids[place]): [rest]}
    return stretch.branches


def _equal_records(first: Segment, second: Segment, row: int) -> bool:
    """Whether one row of both took the same path; either both have fingerprints or neither."""
    return np.array_equal(first.routes[row], second.routes[row]) and (
        first.selection_fingerprint is None
        or second.selection_fingerprint is None
        or np.array_equal(first.selection_fingerprint[row], second.selection_fingerprint[row])
    )


def _common_rows(segment: Segment, stretch: _Stretch, first: int) -> int:
    """How many rows from `first` on have equal tokens and records, within the stretch and the sequence."""
    other, end = stretch.segment, min(stretch.end, len(segment.token_ids) - 1)
    end = first + _first_true(segment.token_ids[first:end] != other.token_ids[first:end])
    end = first + _first_true((segment.routes[first:end] != other.routes[first:end]).any((1, 2)))
    prints, others = segment.selection_fingerprint, other.selection_fingerprint
    if prints is None or others is None:
        return end - first
    return _first_true((prints[first:end] != others[first:end]).any(1))


def _first_true(different_T: np.ndarray) -> int:
    """Index of the first True, or the length if there is none."""
    return int(different_T.argmax()) if different_T.any() else len(different_T)
