"""A picture of a page with what it means: the same words as in the documentation."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from samepath.rl.diagnostics.meanings import Meaning, meaning_of
from samepath.rl.report.drawing import as_image


@dataclass(frozen=True, slots=True, kw_only=True)
class MeaningLine:
    """What some metrics mean, as a page shows it.

    Example:
        MeaningLine(names="policy/ess", text="effective sample size …", healthy="near 1; …")
    """

    names: str
    text: str
    healthy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnPanel:
    """A picture ready for a template."""

    title: str
    image: str
    """Address that holds the picture."""
    meanings: Sequence[MeaningLine]


def drawn_panel(title: str, svg: bytes, names: Iterable[str]) -> DrawnPanel:
    """A picture of metrics; those of one row of the table of meanings stand together."""
    rows: dict[str, tuple[Meaning | None, list[str]]] = {}
    for name in names:
        found = meaning_of(name)
        rows.setdefault(found.shown if found else name, (found, []))[1].append(name)
    return DrawnPanel(title=title, image=as_image(svg), meanings=[_line(*row) for row in rows.values()])


def _line(found: Meaning | None, names: Sequence[str]) -> MeaningLine:
    layers = [name for name in names if ".layer_" in name]
    shown = names if len(layers) < 2 else [f"{min(layers)} … {max(layers).rpartition('.')[2]}"]
    if found is None:
        return MeaningLine(names=", ".join(shown), text="a metric of an older or newer version", healthy="")
    return MeaningLine(names=", ".join(shown), text=found.text.replace("`", ""), healthy=found.healthy.replace("`", ""))
