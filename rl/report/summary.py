"""The end of a run: plot, rollout report, `summary.json` and the table."""

import json
import logging
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from samepath.model.json_file import with_nulls, write_json
from samepath.rl.evaluation.held_out import Evaluations
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.report.curves import NothingToDrawError, plot_training
from samepath.rl.report.page import write_rollout_report
from samepath.rl.report.progress import format_number, summary_table
from samepath.rl.report.report import write_report
from samepath.rl.run_folder import ALERTS_FILE
from samepath.rl.run_state import METRICS_FILE, RunState
from samepath.rl.tracking.tracker import Tracker

logger = logging.getLogger("samepath.report")

SUMMARY_FILE = "summary.json"


def write_summary(recipe: Recipe, state: RunState, after: Evaluations, tracker: Tracker) -> dict[str, Any]:
    """Write plot, rollout report and `summary.json`, print the table; what has nothing to show is neither written nor listed.

    In the file a number that is not finite, such as the accuracy of a run without a scored answer, is `null`.
    """
    run_dir = recipe.run_dir
    files = [*_draw(run_dir), write_report(recipe, state).name, SUMMARY_FILE]
    if recipe.rl.steps:
        write_rollout_report(run_dir / "rollouts", run_dir / "rollouts.html")
        files.append("rollouts.html")
    if (run_dir / ALERTS_FILE).is_file():
        files.append(ALERTS_FILE)
    drawn = next(iter(recipe.evaluation.named.values())).sampling
    summary = {
        "name": recipe.name,
        "seed": recipe.seed,
        "runtime": recipe.runtime,
        "accuracy_before": round(state.accuracy_before, 4),
        "accuracy_after": round(after.headline.accuracy, 4),
        "held_out_responses": after.headline.num_scored,
        "evaluation_temperature": drawn.temperature,
        "evaluation_top_p": drawn.top_p,
        **(
            {} if state.best is None else {"best_step": state.best.step, "best_accuracy": round(state.best.accuracy, 4)}
        ),
        **_of_sets(state, after),
        "gap_at_lag_0": state.gap_at_lag_0,
        "steps": recipe.rl.steps,
        "seconds": round(state.seconds, 1),
        "peak_memory_gib": round(state.peak_bytes / 2**30, 3),
        **({"peak_gpu_memory_gib": round(state.gpu_peak_bytes / 2**30, 3)} if state.gpu_peak_bytes else {}),
        "mlflow_run_id": state.run_id,
        "failures": state.counters,
        "alerts": state.alerts,
    }
    write_json(run_dir / SUMMARY_FILE, summary)
    for file in files:
        tracker.log_artifact(run_dir / file)
    console = Console()
    summary_table(for_people(summary), title=recipe.name, console=console)
    _say(console, [*_places(run_dir, files, tracker.links()), *_more_steps(recipe)])
    return summary


def _of_sets(state: RunState, after: Evaluations) -> dict[str, Any]:
    """`sets` of the summary, if the recipe names any: what was measured on each, beside its accuracy before."""
    measured = {
        name: {key: round(value, 4) for key, value in one.values().items()} for name, one in after.sets.items() if name
    }
    before = {name: round(state.sets_before.get(name, math.nan), 4) for name in measured}
    sets = {name: {"accuracy_before": before[name], **values} for name, values in measured.items()}
    return {"sets": sets} if sets else {}


def for_people(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The summary with a line for each evaluation set, and "none" for what was not measured."""
    rows: dict[str, Any] = {}
    for name, value in with_nulls(summary).items():
        if name == "sets":
            rows |= {
                f"on {one}": ", ".join(f"{key} {_shown(entry)}" for key, entry in values.items())
                for one, values in value.items()
            }
        else:
            rows[name] = "none" if value is None else value
    return rows


def _shown(value: float | None) -> str:
    return "none" if value is None else format_number(value)


def show_interruption(recipe: Recipe, state: RunState, links: Mapping[str, str], console: Console) -> None:
    """Write the pictures of what a run did before it was cut short, and say where they and its pages are and how to go on."""
    run_dir, files = recipe.run_dir, list[str]()
    try:
        if (run_dir / METRICS_FILE).is_file():
            files += [*_draw(run_dir), write_report(recipe, state).name]
        if any((run_dir / "rollouts").glob("step-*.jsonl")):
            write_rollout_report(run_dir / "rollouts", run_dir / "rollouts.html")
            files.append("rollouts.html")
    except OSError as error:
        # As on a disk that is full: what cut the run short is to be heard, not that its pictures could not be written.
        logger.warning("what the run did is not drawn: %s", error)
    _say(console, [*_places(run_dir, files, links), f"go on with: samepath resume {shlex.quote(str(run_dir))}"])


def page_lines(links: Mapping[str, str]) -> list[str]:
    """A line for each page of the run, as a terminal makes a link of it."""
    return [f"MLflow {name}: {link}" for name, link in links.items()]


def _places(run_dir: Path, files: Sequence[str], links: Mapping[str, str]) -> list[str]:
    """A line for each file and page: a link that a table cuts cannot be clicked."""
    return [*(f"{run_dir / file}" for file in files), *page_lines(links)]


def _more_steps(recipe: Recipe) -> list[str]:
    """How a finished run goes on, where it may: a rate that falls over all steps would have been another."""
    if recipe.optimizer.schedule != "constant":
        return []
    more = f"samepath resume {shlex.quote(str(recipe.run_dir))} rl.steps={2 * recipe.rl.steps or 10}"
    return [f"for more steps: {more}"]


def _say(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _draw(run_dir: Path) -> list[str]:
    """Draw the training curves; returns the file's name, or nothing where there is nothing to draw."""
    try:
        plot_training(run_dir / "metrics.jsonl", run_dir / "training.png")
    except NothingToDrawError as error:
        logger.warning("there is no picture of the run: %s", error)
        return []
    return ["training.png"]


def show_summary(run_dir: Path) -> dict[str, Any]:
    """Print the table of a finished run from its `summary.json`; returns what stands there. Raises FileNotFoundError."""
    path = run_dir / SUMMARY_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{run_dir} is finished, but its {SUMMARY_FILE} is gone. `samepath resume {run_dir} --step N` measures and writes it again."
        )
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    summary_table(for_people(summary), title=f"{summary['name']} (finished)")
    more = f"samepath resume {shlex.quote(str(run_dir))} rl.steps=…"
    _say(Console(), [f"{run_dir} is finished, and nothing was done. For more steps: {more}"])
    return summary
