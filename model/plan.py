"""Which keys each row of a batch may see: the same plan serves the learner's packed batch and the engine's paged one.

Axes: N rows of the batch, B sequences of a window, T query rows of a sequence, S keys of a sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samepath.kernels.backend import round_up
from samepath.kernels.window import AttentionPlan, Window

MAX_WINDOW_ELEMENTS = 1 << 23
"""Upper bound of one window's B·T·S·I elements, scores or index logits (32 MiB in float32): no allocation grows with the square of a length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Queries `first … first + count − 1` (positions) of one sequence, in consecutive batch rows."""

    row: int
    """Batch row of the first query."""
    first: int
    """Position of the first query."""
    count: int
    """Number of queries."""
    keys: Tensor
    """int64 [≥ first + count], key-store row of each position."""


def plan_spans(spans: Sequence[Span], num_rows: int, num_index_heads: int) -> AttentionPlan:
    """Bucket spans by length into windows within `MAX_WINDOW_ELEMENTS`; `num_rows` is the padded N, `num_index_heads` the heads whose scores are held."""
    pieces = [piece for span in spans for piece in _split(span, num_index_heads)]
    pieces.sort(key=lambda piece: (piece.first + piece.count, piece.count))
    buckets: list[_Bucket] = []
    for piece in pieces:
        if not buckets or not buckets[-1].takes(piece, _most_pairs(num_index_heads)):
            buckets.append(_Bucket())
        buckets[-1].add(piece)
    windows = []
    source_N = np.full(num_rows, -1, np.int64)
    offset = 0
    for bucket in buckets:
        window, lives_BT = _window(bucket.pieces)
        source_N[window.rows_BT.numpy()[lives_BT]] = offset + np.flatnonzero(lives_BT)
        windows.append(window)
        offset += lives_BT.size
    source_N[source_N < 0] = offset
    return AttentionPlan(windows=tuple(windows), source_N=torch.from_numpy(source_N))


@dataclass(slots=True)
class _Bucket:
    """Pieces of one window, which come in the order of their ends."""

    pieces: list[Span] = field(default_factory=list)
    _rows: int = 0
    """Most queries of a piece."""
    _used: int = 0
    """Elements of the pieces' own grids."""

    def takes(self, piece: Span, most_pairs: int) -> bool:
        """True if one grid for all of them stays within the bound and pads less than about half of it."""
        keys = round_up(piece.first + piece.count)
        area = (len(self.pieces) + 1) * round_up(max(self._rows, piece.count)) * keys
        return area <= most_pairs and area <= 2 * (self._used + round_up(piece.count) * keys)

    def add(self, piece: Span) -> None:
        """Put it in."""
        self.pieces.append(piece)
        self._rows = max(self._rows, piece.count)
        self._used += round_up(piece.count) * round_up(piece.first + piece.count)


def _split(span: Span, num_index_heads: int) -> list[Span]:
    """Cut a long sequence's queries so that each piece alone stays within the bound."""
    num_keys = round_up(span.first + span.count)
    most = max(16, _most_pairs(num_index_heads) // num_keys // 16 * 16)
    return [
        Span(row=span.row + cut, first=span.first + cut, count=min(most, span.count - cut), keys=span.keys)
        for cut in range(0, span.count, most)
    ]


def _most_pairs(num_index_heads: int) -> int:
    """Query and key positions B·T·S of one window; without bound where no head's scores are held at all."""
    return MAX_WINDOW_ELEMENTS // num_index_heads if num_index_heads else 1 << 62


def _window(pieces: list[Span]) -> tuple[Window, NDArray[np.bool_]]:
    """The window of some pieces, and [B, T] True at its queries, False at padding."""
    row_B, first_B, count_B = (
        np.array([getattr(piece, name) for piece in pieces], np.int64) for name in ("row", "first", "count")
    )
    end_B = first_B + count_B
    longest, query_T = int(end_B.max()), np.arange(count_B.max())
    lives_BT = query_T < count_B[:, None]
    keys_BS = np.zeros((len(pieces), round_up(longest)), np.int64)
    own_keys = [piece.keys[: piece.first + piece.count].numpy() for piece in pieces]
    keys_R = np.concatenate(own_keys)
    keys_BS[np.arange(keys_BS.shape[1]) < end_B[:, None]] = keys_R
    rows_BT, whole = row_B[:, None] + query_T, not first_B.any()
    window = Window(
        rows_BT=torch.from_numpy(np.where(lives_BT, rows_BT, 0)),
        ends_BT=torch.from_numpy(np.where(lives_BT, first_B[:, None] + query_T + 1, 0)),
        keys_BS=torch.from_numpy(keys_BS),
        longest=longest,
        whole=whole,
        # Keys that are the queries' own rows, of which no two are one.
        apart=whole and np.array_equal(keys_R, rows_BT[lives_BT]),
    )
    return window, lives_BT


def plan_decode(
    ends_B: Tensor, keys_BS: Tensor, num_rows: int, num_index_heads: int, longest: int | None = None
) -> AttentionPlan:
    """One query a sequence: batch row b sees keys `keys_BS[b, :ends_B[b]]`; rows from B to `num_rows` are padding.

    With `longest`, a bound of `ends_B`, no number is read from the tensors, so the plan is made on their device without a wait.
    """
    num_sequences, num_keys = keys_BS.shape
    device = keys_BS.device
    window = Window(
        rows_BT=torch.arange(num_sequences, device=device)[:, None],
        ends_BT=ends_B[:, None],
        keys_BS=keys_BS,
        longest=int(ends_B.max()) if longest is None else longest,
        in_order=True,
        hidden_BS=torch.arange(num_keys, device=device) >= ends_B[:, None],
    )
    step = max(1, _most_pairs(num_index_heads) // num_keys)
    windows = [window.part(start, start + step) for start in range(0, num_sequences, step)]
    source_N = torch.arange(num_rows, device=device).clamp_(max=num_sequences)
    return AttentionPlan(windows=(window,) if len(windows) == 1 else tuple(windows), source_N=source_N)


def merge_plans(first: AttentionPlan, second: AttentionPlan, rows_of_first: int, num_rows: int) -> AttentionPlan:
    """Stack two plans: `second`'s batch rows follow `rows_of_first` rows of `first`; `num_rows` is the padded N of both."""
    size_first = sum(window.rows_BT.numel() for window in first.windows)
    size_second = sum(window.rows_BT.numel() for window in second.windows)
    moved = tuple(replace(window, rows_BT=window.rows_BT + rows_of_first, in_order=False) for window in second.windows)
    source_N = torch.full((num_rows,), size_first + size_second, dtype=torch.int64)
    source_N[:rows_of_first] = first.source_N[:rows_of_first]
    rest = num_rows - rows_of_first
    source_N[rows_of_first:] = second.source_N[:rest] + size_first
    return AttentionPlan(windows=first.windows + moved, source_N=source_N)
