"""`samepath eval`: which recipe and which checkpoint are meant, and the results as a table or as JSON. Imports torch only when it is called."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from samepath.rl.text_command import measure_on_text

if TYPE_CHECKING:
    # For the checker alone: building the checks of every setting takes time that `--help` does not need.
    from samepath.rl.recipe.recipe import Recipe

LINES = {
    "prompts": "prompts",
    "samples": "samples",
    "temperature": "temperature",
    "accuracy": "accuracy",
    "reward_mean": "reward",
    "scored": "scored",
    "failed": "failed",
    "length_mean": "length",
    "truncated": "truncated",
}
"""Names in the JSON and in the table; pass@k stands after the accuracy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is measured.

    Example:
        Source(recipe=recipe, recipe_dir=Path("recipes"), checkpoint=Path("runs/quickstart/checkpoints/step-000060"), step=60)
    """

    recipe: "Recipe"
    """Task, reward, sampling and engine."""
    recipe_dir: Path
    """Folder that its paths are relative to."""
    checkpoint: Path
    """Model and tokenizer."""
    step: int | None
    """Steps that were done; None for a checkpoint that no run is known of."""


def evaluate(
    source: Annotated[
        Path, typer.Argument(help="run folder, checkpoint folder, or recipe (the newest checkpoint of its run)")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="settings to change: key=value, ~key, list[0].key=value")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="checkpoint folder; the run's newest whole one if not given")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="recipe of a checkpoint folder; that of the run it lies in if not given")
    ] = None,
    step: Annotated[int | None, typer.Option(min=0, help="the checkpoint of this step; 0 is the reference")] = None,
    best: Annotated[
        bool, typer.Option("--best", help="the checkpoint whose evaluation in the run had the highest accuracy")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option("--set", help="only this set of evaluation.sets; may be given several times")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
    suite: Annotated[
        Literal["rewards", "sparse"],
        typer.Option(
            help="`sparse`: what the selection of keys costs on held-out text, of a run or recipe with a stage"
        ),
    ] = "rewards",
    pictures: Annotated[
        Path | None, typer.Option(help="with --suite sparse: folder that pictures are drawn into")
    ] = None,
) -> None:
    """Accuracy, mean reward and pass@k of a checkpoint on the held-out rows or on the recipe's evaluation sets.

    A recipe without --step, --best, --set or --json prints the short JSON of its first set. With --suite sparse: perplexity over all keys and over
    the selected ones, and the share of attention that these hold, layer by layer.
    """
    if suite == "sparse":
        if best or only:
            raise ValueError("--suite sparse has no sets and no best checkpoint; leave --set and --best out")
        measure_on_text(
            source,
            overrides or [],
            recipe_file=recipe,
            checkpoint=checkpoint,
            step=step,
            as_json=as_json,
            pictures=pictures,
        )
        return
    if pictures is not None:
        raise ValueError("--pictures goes with --suite sparse; `samepath report` draws a run with rewards")
    # Late: as below.
    from samepath.rl.run_state import TEXT_RECIPE_FILE

    if best and (step is not None or checkpoint is not None):
        raise ValueError("give one of --best, --step and --checkpoint")
    if (source / TEXT_RECIPE_FILE).is_file():
        raise ValueError(f"{source} is a run on text, which has no rewards: samepath eval {source} --suite sparse")
    found = _source(source, overrides or [], recipe, checkpoint, "best" if best else step)
    # Late: torch; what is wrong with the settings is said before it.
    from samepath.rl.measure import evaluate_run, evaluate_source

    if source.is_file() and step is None and not best and not only and not as_json:
        result = evaluate_source(found.recipe, found.recipe_dir, found.checkpoint)
        sys.stdout.write(json.dumps(result, indent=2, allow_nan=False) + "\n")
        return
    sets = evaluate_run(found.recipe, found.recipe_dir, found.checkpoint, only or [])
    _say(found, sets, as_json=as_json)


def _say(found: Source, sets: Mapping[str, Mapping[str, Any]], *, as_json: bool) -> None:
    """Print what was measured."""
    if as_json:
        result = {
            "run": str(found.recipe.run_dir),
            "checkpoint": str(found.checkpoint),
            "step": found.step,
            "sets": sets,
        }
        sys.stdout.write(json.dumps(result, indent=2, allow_nan=False) + "\n")
        return
    Console().print(str(found.checkpoint), markup=False, highlight=False, soft_wrap=True)
    Console().print(result_table(sets))


def result_table(sets: Mapping[str, Mapping[str, Any]]) -> Table:
    """A column for each set; "none" where nothing was measured."""
    # Late: it needs nothing heavy, but `--help` needs none of it.
    from samepath.rl.report.progress import format_number

    pass_at = dict.fromkeys(name for values in sets.values() for name in values if name.startswith("pass_at_"))
    names = list(LINES)
    at = names.index("accuracy") + 1
    names[at:at] = pass_at
    table = Table("", *sets)
    for name in names:
        found = [values.get(name) for values in sets.values()]
        shown = ["none" if value is None else format_number(float(value)) for value in found]
        table.add_row(LINES.get(name, name.replace("pass_at_", "pass@")), *shown)
    return table


def _source(
    source: Path,
    overrides: Sequence[str],
    recipe_file: Path | None,
    checkpoint: Path | None,
    step: int | Literal["best"] | None,
) -> Source:
    """Raises ValueError or FileNotFoundError for what does not go together or is not there."""
    # Late: as above.
    from samepath.rl.recipe.file import load_recipe
    from samepath.rl.recipe.recipe import Recipe
    from samepath.rl.run_folder import recipe_of_run, run_of_checkpoint
    from samepath.rl.run_state import RECIPE_FILE, RunState

    if checkpoint is not None and step is not None:
        raise ValueError(f"give one of --checkpoint and --step; got {checkpoint} and {step}")
    if not source.is_dir():
        if recipe_file is not None:
            raise ValueError(f"--recipe goes with a checkpoint folder; got {source}, which is none")
        recipe, recipe_dir, run_dir = load_recipe(source, overrides, Recipe), source.parent, None
    elif (source / RECIPE_FILE).is_file():
        if recipe_file is not None:
            raise ValueError(
                f"--recipe goes with a checkpoint folder; {source} is a run and has one. Change settings by key=value"
            )
        recipe, recipe_dir, run_dir = recipe_of_run(source, overrides), Path(RunState.load(source).recipe_dir), source
    else:
        if checkpoint is not None or step is not None:
            raise ValueError(
                f"--checkpoint, --step and --best go with a run or a recipe; got the checkpoint folder {source}"
            )
        run = run_of_checkpoint(source)
        if recipe_file is not None:
            recipe, recipe_dir = load_recipe(recipe_file, overrides, Recipe), recipe_file.parent
        elif run is not None:
            recipe, recipe_dir = recipe_of_run(run, overrides), Path(RunState.load(run).recipe_dir)
        else:
            raise FileNotFoundError(
                f"{source} lies in no run, so nothing says what to ask it. Name a recipe with --recipe"
            )
        return Source(recipe=recipe, recipe_dir=recipe_dir, checkpoint=source, step=None)
    if checkpoint is not None:
        return Source(recipe=recipe, recipe_dir=recipe_dir, checkpoint=checkpoint, step=None)
    # Late: torch.
    from samepath.rl.measure import checkpoint_of_run

    folder, done = checkpoint_of_run(run_dir or recipe.run_dir, step)
    return Source(recipe=recipe, recipe_dir=recipe_dir, checkpoint=folder, step=done)
