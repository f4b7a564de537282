"""A comparison as rows of text, for a terminal and for a page."""

import math
from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from samepath.rl.compare.comparison import Comparison
from samepath.rl.compare.figures import FIGURES
from samepath.rl.compare.interval import Interval
from samepath.rl.compare.runs import ACCURACY, Run
from samepath.rl.report.progress import format_number

PAIRED_HEAD = (
    "configuration",
    "set",
    "evaluation",
    "prompts",
    "accuracy",
    "difference, over prompts",
    "over seeds",
    "better / worse (sign test)",
)
NOTHING = "–"


def tables(comparison: Comparison) -> Iterator[Table]:
    """Configurations by letter, figures, settings that differ, runs, and the paired table."""
    letters = {group.title: letter_of(place) for place, group in enumerate(comparison.groups)}
    yield _table("Configurations", ["", "configuration"], [[letter, title] for title, letter in letters.items()])
    head = ["", *letters.values()]
    yield _table("Figures", head, [[name, *cells] for name, cells in figure_rows(comparison)])
    if comparison.settings:
        yield _table("Settings that differ", head, [[name, *cells] for name, cells in comparison.settings])
    rows = run_rows(comparison)
    yield _table(
        "Runs",
        ["run", "", "seed", "steps", "state", "accuracy, last", "best", "alerts"],
        [
            [
                run["name"],
                letters[run["group"]],
                run["seed"],
                f"{run['done']} of {run['steps']}",
                run["state"],
                run["last"],
                run["best"],
                run["alerts"],
            ]
            for run in rows
        ],
    )
    if paired := paired_rows(comparison):
        rows_by_letter = [[letters[title], *cells] for title, *cells in paired]
        yield _table("The same held-out prompts, against A; intervals of 95 %", ["", *PAIRED_HEAD[1:]], rows_by_letter)


def letter_of(place: int) -> str:
    """A … Z, then AA, AB and so on."""
    before, last = divmod(place, 26)
    return (letter_of(before - 1) if before else "") + chr(ord("A") + last)


def figure_rows(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """(figure, its text in each group), of those that a group has."""
    rows = []
    for name in FIGURES:
        values = [group.values[name] for group in comparison.figures]
        if any(value is not None for value in values):
            rows.append((name, [with_interval(value) for value in values]))
    return rows


def run_rows(comparison: Comparison) -> list[Mapping[str, str]]:
    """A row for each run."""
    return [
        {
            "name": run.name,
            "group": group.title,
            "seed": str(run.seed),
            "done": str(run.done),
            "steps": str(run.steps),
            "state": run.state.phase if run.finished else f"not finished ({run.state.phase})",
            "last": _last(run),
            "alerts": ", ".join(run.state.alerts) or "none",
            "best": NOTHING if run.best is None else f"{run.best[1]:.3f} at step {run.best[0]}",
        }
        for group, run in comparison.runs
    ]


def _last(run: Run) -> str:
    points = run.curve(ACCURACY)
    return f"{points[-1][1]:.3f} at step {points[-1][0]}" if points else NOTHING


def paired_rows(comparison: Comparison) -> list[list[str]]:
    """Cells under `PAIRED_HEAD`, of what can be compared."""
    return [
        [
            one.other,
            one.set_name or "held-out",
            one.when,
            str(one.prompts),
            f"{one.accuracies[0]:.3f} → {one.accuracies[1]:.3f}",
            f"{one.over_prompts.mean:+.3f} ({_range(one.over_prompts)})",
            _range(one.over_seeds),
            f"{one.better} / {one.worse} (p = {one.sign_p:.2g})",
        ]
        for one in comparison.paired
        if one.over_prompts is not None
    ]


def missing_lines(comparison: Comparison) -> list[str]:
    """Why a pair of groups is not in the table."""
    return [
        f"{one.other}, {one.when}: "
        + (
            f"no outcomes of single prompts are kept of {', '.join(one.missing)} (an older version, or nothing was evaluated)"
            if one.missing
            else f"no prompt of {one.set_name or 'the held-out rows'} was answered by all runs of both configurations"
        )
        for one in comparison.paired
        if one.over_prompts is None
    ]


def with_interval(value: Interval | None) -> str:
    """Mean, and how far its 95 % interval goes to either side."""
    if value is None:
        return NOTHING
    if math.isnan(value.low):
        return format_number(value.mean)
    return f"{format_number(value.mean)} ± {format_number(value.high - value.mean)}"


def _range(value: Interval | None) -> str:
    return NOTHING if value is None or math.isnan(value.low) else f"{value.low:+.3f} … {value.high:+.3f}"


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    # What a recipe says is data: square brackets in it are no styles.
    table = Table(title=title, title_justify="left")
    for name in head:
        table.add_column(name.replace("[", "\\["), overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    return table
