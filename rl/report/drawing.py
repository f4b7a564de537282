"""Curves and heat maps as SVG for pages that need no server, by matplotlib."""

import base64
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

MOST_POINTS = 300
"""Points of a line; of more, each is the mean of as many steps as it takes."""
STYLE = {
    # The texts of the picture stay texts, and equal data give equal files.
    "svg.fonttype": "none",
    "svg.hashsalt": "samepath",
    "font.size": 8.5,
    "font.sans-serif": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
}
INCHES = (4.6, 2.5)
DASHES = ("-", "--", "-.", ":")
"""In turn, so that of two equal curves both are seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One curve.

    Example:
        Line(label="kl/sampler_k3", points=((1, 0.002), (2, 0.003)))
    """

    label: str
    points: Sequence[tuple[int, float]]
    """(step, value), by step; all finite."""
    band: Sequence[tuple[int, float, float]] = ()
    """(step, lowest, highest) around it; empty without a band."""


def line_svg(
    lines: Sequence[Line], *, unit: str, logarithmic: bool = False, limits: Sequence[tuple[str, float]] = ()
) -> bytes:
    """Curves over the training step; `limits` are levels with a name each, drawn dashed. Needs at least one point."""
    with _canvas() as (figure, axes):
        for line, dashes in zip(lines, cycle(DASHES), strict=False):
            points = thinned(line.points)
            steps, values = zip(*points, strict=True)
            (drawn,) = axes.plot(
                steps,
                values,
                dashes,
                marker="o" if len(points) <= 40 else "",
                markersize=2.5,
                linewidth=1.3,
                label=line.label,
            )
            if line.band:
                low = thinned([(step, low) for step, low, _ in line.band])
                high = thinned([(step, high) for step, _, high in line.band])
                axes.fill_between(
                    [step for step, _ in low],
                    [value for _, value in low],
                    [value for _, value in high],
                    color=drawn.get_color(),
                    alpha=0.18,
                    linewidth=0,
                )
        for name, level in limits:
            axes.axhline(level, color="0.35", linewidth=1, linestyle="--", label=name)
        sizes = [abs(value) for line in lines for _, value in line.points if value != 0]
        if logarithmic and sizes:
            # Linear around zero: an exact engine has KL 0, which a logarithmic axis cannot show.
            axes.set_yscale("symlog", linthresh=min(sizes))
        if not sizes and not limits:
            axes.set_ylim(-0.05, 1)
        if len(lines) + len(limits) > 1:
            axes.legend(fontsize=7, framealpha=0.8, edgecolor="none")
        _label(axes, unit)
        return _svg(figure)


def stacked_svg(lines: Sequence[Line], *, unit: str) -> bytes:
    """Parts of a sum over the training step, one upon the other; a part without a value at a step is 0 there."""
    steps = sorted({step for line in lines for step, _ in line.points})
    known = [dict(line.points) for line in lines]
    thin = [thinned([(step, part.get(step, 0.0)) for step in steps]) for part in known]
    with _canvas() as (figure, axes):
        axes.stackplot(
            [step for step, _ in thin[0]],
            [[value for _, value in part] for part in thin],
            labels=[line.label for line in lines],
            alpha=0.85,
            linewidth=0,
        )
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], fontsize=7, framealpha=0.8, edgecolor="none")
        _label(axes, unit)
        return _svg(figure)


def heat_svg(rows: Sequence[Line], *, unit: str) -> bytes:
    """A row of colour for each line, the first at the bottom, over the training step; where a row has no value it is white."""
    steps = sorted({step for row in rows for step, _ in row.points})
    columns = [part.tolist() for part in np.array_split(np.array(steps), min(len(steps), MOST_POINTS))]
    values = np.full((len(rows), len(columns)), np.nan)
    for index, row in enumerate(rows):
        known = dict(row.points)
        for place, column in enumerate(columns):
            found = [known[step] for step in column if step in known]
            if found:
                values[index, place] = sum(found) / len(found)
    with _canvas() as (figure, axes):
        edges = [column[0] - 0.5 for column in columns] + [columns[-1][-1] + 0.5]
        shown = axes.pcolormesh(edges, np.arange(len(rows) + 1), values, cmap="viridis", rasterized=True)
        axes.set_yticks([index + 0.5 for index in range(len(rows))], [row.label for row in rows], fontsize=7)
        axes.yaxis.set_major_locator(
            axes.yaxis.get_major_locator() if len(rows) <= 16 else MaxNLocator(8, integer=True)
        )
        figure.colorbar(shown, ax=axes, pad=0.02)
        _label(axes, f"{unit}, by layer", grid=False)
        return _svg(figure)


def thinned(points: Sequence[tuple[int, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points: as they are, or means of equally many neighbours at their mean step, the last of them of fewer."""
    width = math.ceil(len(points) / most)
    parts = [points[first : first + width] for first in range(0, len(points), width)]
    return [(sum(step for step, _ in part) / len(part), sum(value for _, value in part) / len(part)) for part in parts]


def as_image(svg: bytes) -> str:
    """An address that holds the picture itself, for an `img`."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


@contextmanager
def _canvas() -> Iterator[tuple[Figure, Axes]]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=INCHES)
        FigureCanvasSVG(figure)
        # A layout that is worked out would be drawn twice.
        figure.subplots_adjust(left=0.13, right=0.97, top=0.9, bottom=0.17)
        yield figure, figure.add_subplot()


def _label(axes: Axes, unit: str, *, grid: bool = True) -> None:
    axes.set_xlabel("training step")
    # Above the axis and not beside it, where long numbers would push it out of the picture.
    axes.set_title(unit, loc="left", fontsize=7.5, color="0.35")
    # Few ticks: they cost more than curves.
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if axes.get_yscale() == "linear" and grid:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        # A power of ten above the axis would lie upon the unit.
        axes.yaxis.set_major_formatter("{x:.6g}")
    axes.yaxis.set_minor_locator(NullLocator())
    if grid:
        axes.grid(visible=True, alpha=0.3, linewidth=0.6)


def _svg(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
