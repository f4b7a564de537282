"""Everything that a comparison of runs says, as data."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from samepath.model.json_file import with_nulls
from samepath.rl.compare.figures import GroupFigures, figures_of, figures_of_run
from samepath.rl.compare.paired import Paired, paired_with_first
from samepath.rl.compare.runs import Run, RunGroup, grouped, read_run, setting_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs beside each other."""

    groups: Sequence[RunGroup]
    """Configurations, the first being what the others are compared with."""
    settings: Sequence[tuple[str, list[str]]]
    """Setting → its value in each group, of those that differ."""
    figures: Sequence[GroupFigures]
    paired: Sequence[Paired]

    @property
    def runs(self) -> list[tuple[RunGroup, Run]]:
        """Every run with its group."""
        return [(group, run) for group in self.groups for run in group.runs]


def compare(folders: Sequence[Path]) -> Comparison:
    """Read the runs and compare them. Raises NoRunError, RecipeError, RunStateError or OutcomesError, with the folder's name."""
    seen = dict.fromkeys(folder.resolve() for folder in folders)
    groups = grouped([read_run(folder) for folder in seen])
    return Comparison(
        groups=groups, settings=setting_rows(groups), figures=figures_of(groups), paired=paired_with_first(groups)
    )


def as_plain(comparison: Comparison) -> dict[str, Any]:
    """The comparison for JSON: what is not known is None."""
    plain: dict[str, Any] = with_nulls(
        {
            "configurations": [
                {
                    "title": group.title,
                    "runs": [run.name for run in group.runs],
                    "settings": {name: cells[place] for name, cells in comparison.settings},
                    "figures": {
                        name: None if value is None else asdict(value)
                        for name, value in comparison.figures[place].values.items()
                    },
                }
                for place, group in enumerate(comparison.groups)
            ],
            "runs": [
                {
                    "name": run.name,
                    "folder": str(run.folder),
                    "configuration": group.title,
                    "seed": run.seed,
                    "state": run.state.phase,
                    "steps": run.steps,
                    "done": run.done,
                    "alerts": dict(run.state.alerts),
                    "figures": figures_of_run(run),
                }
                for group, run in comparison.runs
            ],
            "paired": [
                {
                    **asdict(one),
                    "accuracies": [None if math.isnan(value) else value for value in one.accuracies],
                    "missing": list(one.missing),
                }
                for one in comparison.paired
            ],
        }
    )
    return plain
