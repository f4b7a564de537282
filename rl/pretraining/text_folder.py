"""The folder of a run on text: whether one is there, and the recipe that it was started with. Needs no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.text import TextRecipe
from samepath.rl.run_folder import RunFolderError, RunFolderUnusableError, begun, unusable
from samepath.rl.run_state import TEXT_RECIPE_FILE, RunState

MAY_CHANGE = (
    "stage.steps",
    "stage.measure_every",
    "stage.measured_topk",
    "stage.needles",
    "stage.max_tokens_per_pass",
    "stage.activation_checkpointing",
    "learner.ranks",
    "learner.min_passes",
    "learner.update_timeout_s",
    "checkpoint",
    "tracking",
    "runs_dir",
    "name",
)
"""Settings that another start of a run may have otherwise: the steps that are done would have been the same, but for last bits."""


def is_text_run(run_dir: Path) -> bool:
    """Whether the folder holds a run on text."""
    return (run_dir / TEXT_RECIPE_FILE).is_file()


def refuse_begun(run_dir: Path) -> None:
    """Raise RunFolderError if the folder holds a run, RunFolderUnusableError if it cannot be written."""
    if problem := unusable(run_dir):
        raise RunFolderUnusableError(problem)
    if is_text_run(run_dir):
        raise RunFolderError(
            f"{run_dir} already holds a run. Choose another name=…, delete the folder, or go on with `samepath resume {run_dir}`."
        )
    if begun(run_dir) is not None:
        raise RunFolderError(
            f"{run_dir} already holds the start of a run. Choose another name=…, or delete the folder."
        )


def text_recipe_of_run(run_dir: Path, overrides: Sequence[str] = ()) -> TextRecipe:
    """The recipe of a run's folder, with settings laid over it.

    Raises ValueError for a setting that would have changed the steps that are done, RecipeError for one that is none.
    """
    path = run_dir / TEXT_RECIPE_FILE
    where = [f"runs_dir={run_dir.resolve().parent}", f"name={run_dir.resolve().name}"]
    before, after = load_recipe(path, [], TextRecipe), load_recipe(path, [*overrides, *where], TextRecipe)
    changed = list(_differences(before.model_dump(mode="json"), after.model_dump(mode="json"), ""))
    refused = [name for name in changed if not any(name == free or name.startswith(f"{free}.") for free in MAY_CHANGE)]
    if "stage.steps" in changed and after.stage.optimizer.schedule != "constant":
        refused.append(
            f"stage.steps (stage.optimizer.schedule={after.stage.optimizer.schedule} falls over all of them)"
        )
    if refused:
        raise ValueError(
            f"a run that goes on may change {', '.join(MAY_CHANGE[:-2])}; {', '.join(refused)} would have changed the steps that are done. "
            "Start another run under another name."
        )
    return after


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSource:
    """A checkpoint, and the recipe whose text it is measured on."""

    recipe: TextRecipe
    recipe_dir: Path
    """Folder that its paths are relative to."""
    checkpoint: Path


def source_on_text(
    source: Path,
    overrides: Sequence[str],
    *,
    recipe_file: Path | None,
    checkpoint: Path | None,
    step: int | None,
) -> TextSource:
    """What is measured: a run's newest checkpoint or that of `step`, a recipe's model, or a checkpoint folder beside `recipe_file`.

    Raises ValueError or FileNotFoundError for what does not go together or is not there.
    """
    if checkpoint is not None and step is not None:
        raise ValueError(f"give one of --checkpoint and --step; got {checkpoint} and {step}")
    if is_text_run(source):
        if recipe_file is not None:
            raise ValueError(
                f"--recipe goes with a checkpoint folder; {source} is a run and has one. Change settings by key=value"
            )
        recipe = load_recipe(source / TEXT_RECIPE_FILE, overrides, TextRecipe)
        found = checkpoint
        if found is None:
            # Late: it reads checkpoints, and with them torch.
            from samepath.rl.learner.checkpoints import checkpoint_of_step, latest_checkpoint

            newest = latest_checkpoint(source) if step is None else checkpoint_of_step(source, step)
            if newest is None:
                raise FileNotFoundError(
                    f"{source} has no checkpoint yet. Wait for its first, or name one with --checkpoint"
                )
            found = newest[0]
        return TextSource(recipe=recipe, recipe_dir=Path(RunState.load(source).recipe_dir), checkpoint=found)
    if step is not None:
        raise ValueError(f"--step goes with a run on text; {source} is none")
    if source.is_dir():
        if recipe_file is None or checkpoint is not None:
            raise ValueError(
                f"nothing says on which text to measure {source}. Name a recipe with a stage: --recipe recipes/dsa_sparse.yaml"
            )
        recipe, folder = load_recipe(recipe_file, overrides, TextRecipe), recipe_file.parent
        return TextSource(recipe=recipe, recipe_dir=folder, checkpoint=source)
    recipe = load_recipe(source, overrides, TextRecipe)
    # Late: as above.
    from samepath.rl.learner.model_source import resolve_folder

    place = checkpoint or resolve_folder(recipe.model.path, source.parent)
    return TextSource(recipe=recipe, recipe_dir=source.parent, checkpoint=place)


def _differences(before: dict[str, Any], after: dict[str, Any], prefix: str) -> Iterator[str]:
    for name in {**before, **after}:
        one, other = before.get(name), after.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{prefix}{name}.")
        elif one != other:
            yield prefix + name
