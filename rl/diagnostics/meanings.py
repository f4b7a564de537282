"""What each metric means and what healthy looks like: `metrics.yaml`, read for documentation, reports, comparisons and MLflow.

`python -m samepath.rl.diagnostics.meanings` prints the tables of docs/algorithm.md.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

TABLE = Path(__file__).with_name("metrics.yaml")
OWN_NAMES = {"<k>": r"\d+", "NN": r"\d+"}
"""What a variable part of a name stands for, where it is not a name of the user's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """One row of the table.

    Example:
        Meaning(names=("policy/ess", "policy/ess_after_mask"), text="effective sample size …", healthy="near 1; …", shown="`policy/ess` `_after_mask`")
    """

    names: tuple[str, ...]
    """Metrics that it is about, written in full; `NN` is a layer's number, `<…>` a name of the user's own."""
    text: str
    """What the numbers are, with their unit."""
    healthy: str
    """What they look like in a run that goes well, and what to do if not; "" where nothing general can be said."""
    shown: str
    """The names as the documentation shows them, endings cut short."""

    def is_about(self, name: str) -> bool:
        """Whether a metric is among its own."""
        return any(_pattern(one).fullmatch(name) for one in self.names)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeaningGroup:
    """Metrics of one kind.

    Example:
        MeaningGroup(title="KL", unit="nats per token", meanings=(…))
    """

    title: str
    unit: str
    """Of all its numbers, "" if they have none in common."""
    meanings: tuple[Meaning, ...]


@cache
def meaning_groups() -> tuple[MeaningGroup, ...]:
    """The whole table, in its order."""
    groups = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return tuple(
        MeaningGroup(
            title=group["title"],
            unit=group.get("unit", ""),
            meanings=tuple(
                Meaning(
                    names=written_out(row["names"]),
                    text=row["meaning"],
                    healthy=row.get("healthy", ""),
                    shown=row["names"],
                )
                for row in group["metrics"]
            ),
        )
        for group in groups
    )


def meaning_of(name: str) -> Meaning | None:
    """The row that a logged metric belongs to; None for a metric that the table does not have."""
    return next((one for group in meaning_groups() for one in group.meanings if one.is_about(name)), None)


def written_out(shown: str) -> tuple[str, ...]:
    """Full names of "`policy/ess` `_after_mask`": what has no `/` is an ending of the first."""
    first, *rest = re.findall(r"`([^`]+)`", shown)
    return (first, *(one if "/" in one else first + one for one in rest))


def metric_tables() -> str:
    """The tables as Markdown."""
    return "\n".join(_table(group) for group in meaning_groups())


def metric_note(most_chars: int) -> str:
    """What healthy looks like, a line for each metric that has something to say, as Markdown of at most so many characters."""
    lines = ["Is the run healthy? Every metric and its meaning: `metrics.md` among the artifacts.", ""]
    for group in meaning_groups():
        lines += [f"- {one.shown}: {one.healthy}" for one in group.meanings if one.healthy]
    size, kept = 0, []
    for line in lines:
        size += len(line) + 1
        if size > most_chars:
            break
        kept.append(line)
    return "\n".join(kept)


def _table(group: MeaningGroup) -> str:
    unit = f" ({group.unit})" if group.unit else ""
    rows = [f"| {one.shown} | {one.text} | {one.healthy} |" for one in group.meanings]
    return "\n".join([f"| {group.title} | meaning{unit} | healthy |", "|---|---|---|", *rows, ""])


@cache
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile("".join(_parts(re.split(r"(<\w+>|NN)", name))))


def _parts(parts: Sequence[str]) -> Iterator[str]:
    for part in parts:
        yield OWN_NAMES.get(part, ".+") if re.fullmatch(r"<\w+>|NN", part) else re.escape(part)


if __name__ == "__main__":
    sys.stdout.write(metric_tables())
