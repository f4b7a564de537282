"""Table, crossing and picture of what a token costs against its position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    # For the checker alone: it imports this file.
    from benchmarks.sparse_cost import Cost

KINDS = {"prefill": "a block of a prompt", "decode": "a decoding step"}


def crossing(lengths: Sequence[int], dense: Sequence[float], sparse: Sequence[float]) -> float | None:
    """The length from which on the sparse way is the cheaper at every length given, between two of them on a straight line of the difference.

    None: it is dearer at the last. The first length: it is cheaper at all.
    """
    saved = [one - other for one, other in zip(dense, sparse, strict=True)]
    if saved[-1] <= 0:
        return None
    last = max((place for place, value in enumerate(saved) if value <= 0), default=-1)
    if last < 0:
        return float(lengths[0])
    share = -saved[last] / (saved[last + 1] - saved[last])
    return lengths[last] + share * (lengths[last + 1] - lengths[last])


def crossing_text(costs: Sequence[Cost], kind: str, unit: str) -> str:
    """One sentence; `unit` is `us` or `mflop`."""
    some = [one for one in costs if one.kind == kind]
    dense, sparse = ([getattr(one, f"{way}_{unit}") for one in some] for way in ("dense", "sparse"))
    found = crossing([one.length for one in some], dense, sparse)
    by = {"us": "time", "mflop": "counted operations"}[unit]
    if found is None:
        return f"{kind}, by {by}: the selection is not cheaper at the longest, {some[-1].length} keys"
    if found == some[0].length:
        return f"{kind}, by {by}: the selection is cheaper from the shortest on, {some[0].length} keys"
    return f"{kind}, by {by}: the selection is cheaper from {math.ceil(found)} keys on"


def table(costs: Sequence[Cost], topk: int) -> str:
    """Markdown, and the crossings below it."""
    lines = [
        f"| pass | keys | µs a token, all keys | {topk} selected | times cheaper | MFLOP a token, all keys | {topk} selected | times fewer |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in sorted(costs, key=lambda one: (list(KINDS).index(one.kind), one.length)):
        lines.append(
            f"| {one.kind} | {one.length} | {one.dense_us:,.1f} | {one.sparse_us:,.1f} | {one.dense_us / one.sparse_us:.2f} | {one.dense_mflop:,.2f} | "
            f"{one.sparse_mflop:,.2f} | {one.dense_mflop / one.sparse_mflop:.2f} |"
        )
    lines += ["", *(f"- {crossing_text(costs, kind, unit)}" for kind in KINDS for unit in ("us", "mflop"))]
    return "\n".join(lines)


def draw(costs: Sequence[Cost], topk: int, path: Path) -> None:
    """A row for time and one for counted operations, a column for each kind of pass."""
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    units = {"us": "µs a token", "mflop": "counted MFLOP a token"}
    for row, (unit, label) in enumerate(units.items()):
        for column, (kind, title) in enumerate(KINDS.items()):
            some = [one for one in costs if one.kind == kind]
            axes = figure.add_subplot(2, 2, 1 + 2 * row + column)
            for way, name in (("dense", "all keys"), ("sparse", f"{topk} selected keys")):
                axes.plot(
                    [one.length for one in some],
                    [getattr(one, f"{way}_{unit}") for one in some],
                    marker="o",
                    markersize=3,
                    label=name,
                )
            axes.set_ylim(bottom=0)
            axes.set_title(title)
            axes.set_xlabel("keys before the token")
            axes.set_ylabel(label)
            axes.grid(visible=True, alpha=0.3, linewidth=0.6)
            axes.legend(fontsize=7)
    figure.savefig(path, dpi=140, format="png")
