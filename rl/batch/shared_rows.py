"""Which batch rows sequences share: a common beginning runs once, as it stood once in the engine's cache.

Samples of a group share at least their prompt; prompts may share an example or a system text. A row is shared only between equal
tokens before and at it that took the same path (routes, selection fingerprints), so sharing changes no result.
Axes: T rows of a sequence (every token but the last), L layers, X experts chosen.
"""

from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from samepath.rollout.types import Segment

MIN_SHARED_TOKENS = 16
"""Different prompts are compared if they agree in this many tokens: less is not worth a look."""
MAX_PROMPTS_COMPARED = 16
"""How many other prompts a new one is compared with; a system text stands in all of them, so one would often do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where a sequence stands in the batch."""

    rows_T: Tensor
    """int64, batch row of each position."""
    num_shared: int
    """Leading positions whose rows ran already; the rows of the others are consecutive."""
    apart: bool
    """True if a sequence with the same prompt stands in the batch whose prompt took another path."""


@dataclass(slots=True)
class SharedRows:
    """The rows of the sequences placed so far."""

    num_rows: int = 0
    """Rows to run."""
    _placed: dict[bytes, dict[bytes, list[tuple[Segment, Tensor]]]] = field(default_factory=dict)
    """Sequences by the first tokens of their prompt, then by all of them."""

    def place(self, segment: Segment) -> Placed:
        """Give a sequence its rows: the longest beginning that stands already, then new ones."""
        length, prompt = len(segment.token_ids) - 1, int(segment.trained.argmax())
        prompt_ids = segment.token_ids[:prompt]
        alike = self._placed.setdefault(prompt_ids[:MIN_SHARED_TOKENS].tobytes(), {})
        same_prompt = alike.setdefault(prompt_ids.tobytes(), [])
        # Of sequences with another prompt the first stands for all: what they share lies within the prompt.
        others = same_prompt or [placed[0] for placed in islice(alike.values(), MAX_PROMPTS_COMPARED) if placed]
        common, rows_T = 0, torch.empty(0, dtype=torch.int64)
        for other, other_rows_T in others:
            shared = _common_rows(segment, other)
            if shared > common:
                common, rows_T = shared, other_rows_T
        new_T = torch.arange(self.num_rows, self.num_rows + length - common)
        placed = Placed(
            rows_T=torch.cat([rows_T[:common], new_T]),
            num_shared=common,
            apart=bool(same_prompt) and common < prompt,
        )
        self.num_rows += len(new_T)
        same_prompt.append((segment, placed.rows_T))
        return placed


def _common_rows(first: Segment, second: Segment) -> int:
    """Leading rows with equal tokens and records."""
    count = min(len(first.token_ids), len(second.token_ids)) - 1
    count = _first_true(first.token_ids[:count] != second.token_ids[:count])
    count = _first_true((first.routes[:count] != second.routes[:count]).any((1, 2)))
    if first.selection_fingerprint is None or second.selection_fingerprint is None:
        return count if first.selection_fingerprint is second.selection_fingerprint else 0
    return _first_true((first.selection_fingerprint[:count] != second.selection_fingerprint[:count]).any(1))


def _first_true(different_T: np.ndarray) -> int:
    """Index of the first True, or the length if there is none."""
    return int(different_T.argmax()) if different_T.any() else len(different_T)
