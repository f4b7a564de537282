"""The end of a run: plot, rollout report, `summary.json` and the table."""

import json
import logging
from pathlib import Path
from typing import Any

from rich.console import Console

from samepath.model.json_file import write_json
from samepath.rl.evaluation.held_out import Evaluation
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.report.curves import NothingToDrawError, plot_training
from samepath.rl.report.page import write_rollout_report
from samepath.rl.report.progress import summary_table
from samepath.rl.run_state import RunState
from samepath.rl.tracking.tracker import Tracker

logger = logging.getLogger("samepath.report")

SUMMARY_FILE = "summary.json"


def write_summary(recipe: Recipe, state: RunState, after: Evaluation, tracker: Tracker) -> dict[str, Any]:
    """Write plot, rollout report and `summary.json`, print the table; what has nothing to show is neither written nor listed.

    In the file a number that is not finite, such as the accuracy of a run without a scored answer, is `null`.
    """
    run_dir = recipe.run_dir
    files = [*_draw(run_dir), SUMMARY_FILE]
    if recipe.rl.steps:
        write_rollout_report(run_dir / "rollouts", run_dir / "rollouts.html")
        files.append("rollouts.html")
    summary = {
        "name": recipe.name,
        "seed": recipe.seed,
        "runtime": recipe.runtime,
        "accuracy_before": round(state.accuracy_before, 4),
        "accuracy_after": round(after.accuracy, 4),
        "held_out_responses": after.num_scored,
        "evaluation_temperature": recipe.evaluation.temperature,
        "evaluation_top_p": recipe.evaluation.top_p,
        "gap_at_lag_0": state.gap_at_lag_0,
        "steps": recipe.rl.steps,
        "seconds": round(state.seconds, 1),
        "peak_memory_gib": round(state.peak_bytes / 2**30, 3),
        **({"peak_gpu_memory_gib": round(state.gpu_peak_bytes / 2**30, 3)} if state.gpu_peak_bytes else {}),
        "mlflow_run_id": state.run_id,
        "failures": state.counters,
    }
    write_json(run_dir / SUMMARY_FILE, summary)
    for file in files:
        tracker.log_artifact(run_dir / file)
    links = {f"MLflow {name}": link for name, link in tracker.links().items()}
    summary_table(
        {**summary, **links, "files": ", ".join(str(run_dir / file) for file in files)},
        title=recipe.name,
    )
    return summary


def show_interruption(run_dir: Path, console: Console) -> None:
    """Write the pictures of what a run did before it was interrupted, and say where they are and how to go on."""
    files = _draw(run_dir) if (run_dir / "metrics.jsonl").is_file() else []
    if any((run_dir / "rollouts").glob("step-*.jsonl")):
        write_rollout_report(run_dir / "rollouts", run_dir / "rollouts.html")
        files.append("rollouts.html")
    lines = [f"so far: {', '.join(str(run_dir / file) for file in files)}"] if files else []
    for line in [*lines, f"go on with `samepath resume {run_dir}`"]:
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
    summary_table(summary, title=f"{summary['name']} (finished)")
    Console().print(
        f"{run_dir} is finished, and nothing was done. For more steps: `samepath resume {run_dir} rl.steps=…`",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return summary
