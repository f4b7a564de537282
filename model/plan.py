"""Which keys each row of a batch may see: the same plan serves the learner's packed batch and the engine's paged one.

Axes: N rows of the batch, B sequences of a window, T query rows of a sequence, S keys of a sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
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
    order = sorted(
        range(len(pieces)), key=lambda index: (pieces[index].first + pieces[index].count, pieces[index].count)
    )
    buckets: list[list[Span]] = []
    for index in order:
        piece = pieces[index]
        if buckets and _fits([*buckets[-1], piece], num_index_heads):
            buckets[-1].append(piece)
        else:
            buckets.append([piece])
    windows = []
    source_N = torch.full((num_rows,), -1, dtype=torch.int64)
    offset = 0
    for bucket in buckets:
        window = _window(bucket)
        for place, piece in enumerate(bucket):
            start = offset + place * window.rows_BT.shape[1]
            source_N[piece.row : piece.row + piece.count] = torch.arange(start, start + piece.count)
        windows.append(window)
        offset += window.rows_BT.numel()
    source_N[source_N < 0] = offset
    return AttentionPlan(windows=tuple(windows), source_N=source_N)


def _split(span: Span, num_index_heads: int) -> list[Span]:
    """Cut a long sequence's queries so that each piece alone stays within the bound."""
    num_keys = round_up(span.first + span.count)
    most = max(16, _most_pairs(num_index_heads) // num_keys // 16 * 16)
    return [
        Span(row=span.row + cut, first=span.first + cut, count=min(most, span.count - cut), keys=span.keys)
        for cut in range(0, span.count, most)
    ]


def _fits(bucket: list[Span], num_index_heads: int) -> bool:
    """True if one grid for all of them stays within the bound and pads less than about half of it."""
    rows = round_up(max(piece.count for piece in bucket))
    keys = round_up(max(piece.first + piece.count for piece in bucket))
    used = sum(round_up(piece.count) * round_up(piece.first + piece.count) for piece in bucket)
    area = len(bucket) * rows * keys
    return area <= _most_pairs(num_index_heads) and area <= 2 * used


def _most_pairs(num_index_heads: int) -> int:
    """Query and key positions B·T·S of one window; without bound where no head's scores are held at all."""
    return MAX_WINDOW_ELEMENTS // num_index_heads if num_index_heads else 1 << 62


def _window(bucket: list[Span]) -> Window:
    num_rows = max(piece.count for piece in bucket)
    longest = max(piece.first + piece.count for piece in bucket)
    rows_BT = torch.zeros(len(bucket), num_rows, dtype=torch.int64)
    ends_BT = torch.zeros(len(bucket), num_rows, dtype=torch.int64)
    keys_BS = torch.zeros(len(bucket), round_up(longest), dtype=torch.int64)
    for place, piece in enumerate(bucket):
        rows_BT[place, : piece.count] = torch.arange(piece.row, piece.row + piece.count)
        ends_BT[place, : piece.count] = torch.arange(piece.first + 1, piece.first + piece.count + 1)
        end = piece.first + piece.count
        keys_BS[place, :end] = piece.keys[:end]
    whole = all(piece.first == 0 for piece in bucket)
    return Window(rows_BT=rows_BT, ends_BT=ends_BT, keys_BS=keys_BS, longest=longest, whole=whole)


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
