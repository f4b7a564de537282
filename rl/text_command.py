"""What the commands do with recipes and runs on text. Imports torch only when it is called."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    # For the checker alone: torch.
    from samepath.rl.pretraining.measure import SparseMeasure


def start_on_text(path: Path, overrides: Sequence[str]) -> None:
    """`samepath run` of a recipe with a `stage`."""
    # Late: building the checks of every setting takes time that `--help` does not need.
    from samepath.rl.pretraining.text_folder import refuse_begun
    from samepath.rl.recipe.file import load_recipe
    from samepath.rl.recipe.text import TextRecipe

    recipe = load_recipe(path, overrides, TextRecipe)
    refuse_begun(recipe.run_dir)
    # Late: torch; a folder that is taken is refused before it.
    from samepath.rl.pretraining.run import start_text_run

    start_text_run(recipe, path.parent)


def resume_on_text(run_dir: Path, overrides: Sequence[str], step: int | None) -> bool:
    """`samepath resume` of a run on text; False, with nothing done, for a folder of another."""
    # Late: as above.
    from samepath.rl.pretraining.text_folder import is_text_run, text_recipe_of_run

    if not is_text_run(run_dir):
        return False
    recipe = text_recipe_of_run(run_dir, overrides)
    # Late: torch.
    from samepath.rl.pretraining.run import resume_text_run

    resume_text_run(recipe, run_dir, step)
    return True


def validate_on_text(path: Path, overrides: Sequence[str], *, quiet: bool, as_json: bool = False) -> None:
    """`samepath validate` of a recipe with a `stage`. Raises what a run would raise."""
    # Late: as above.
    from samepath.rl.recipe.file import dump_recipe, load_recipe
    from samepath.rl.recipe.text import TextRecipe

    recipe = load_recipe(path, overrides, TextRecipe)
    # Late: torch.
    from samepath.rl.pretraining.run import check_text_run

    said = check_text_run(recipe, path.parent)
    if as_json:
        kept = {} if quiet else {"recipe": recipe.model_dump(mode="json")}
        sys.stdout.write(json.dumps({"passed": True, "said": said, **kept}, indent=2, ensure_ascii=False) + "\n")
        return
    if not quiet:
        sys.stdout.write(dump_recipe(recipe))
        sys.stdout.flush()
    for line in [*said, "valid: nothing was started"]:
        Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)


def measure_on_text(
    source: Path,
    overrides: Sequence[str],
    *,
    recipe_file: Path | None,
    checkpoint: Path | None,
    step: int | None,
    as_json: bool,
    pictures: Path | None,
) -> None:
    """`samepath eval --suite sparse`: of a run's checkpoint, of the model of a recipe with a stage, or of any checkpoint folder with such a recipe.

    Pictures go to the folder `pictures`, None draws none.

    Raises ValueError or FileNotFoundError for what does not go together or is not there.
    """
    # Late: as above.
    from samepath.rl.pretraining.text_folder import source_on_text

    found = source_on_text(source, overrides, recipe_file=recipe_file, checkpoint=checkpoint, step=step)
    # Late: torch.
    from samepath.rl.pretraining.pictures import draw_measure
    from samepath.rl.pretraining.run import measure_source

    measured, topk = measure_source(found)
    if pictures is not None:
        draw_measure(measured, pictures)
    result = {"checkpoint": str(found.checkpoint), "topk": topk, **measured.plain()}
    if as_json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
        return
    Console().print(f"{found.checkpoint}: perplexity {measured.dense_perplexity:.4f} over all keys", soft_wrap=True)
    Console().print(sparse_table(measured))


def sparse_table(measured: "SparseMeasure") -> Table:
    """A column for each number of selected keys; a row for each layer's share of attention."""
    table = Table("selected keys", *map(str, measured.sparse_losses), title="what the selection costs")
    excess = measured.excesses
    table.add_row("perplexity", *(f"{measured.perplexity(amount):.4f}" for amount in excess))
    table.add_row("above all keys", *(f"{value:+.2%}" for value in excess.values()))
    table.add_row("recall, mean", *(f"{sum(one) / len(one):.3f}" for one in measured.recalls.values()))
    table.add_row("best recall, mean", *(f"{sum(one) / len(one):.3f}" for one in measured.best_recalls.values()))
    table.add_row("output error, mean", *(f"{sum(one) / len(one):.3f}" for one in measured.output_errors.values()))
    table.add_row("KL of logits, nats", *(f"{kl:.4f}" for kl in measured.logits_kls.values()))
    if measured.needles is not None:
        table.add_row("needles found", *(f"{one.mean():.1%}" for one in measured.needles.sparse.values()))
        table.add_row("of all keys", *[f"{measured.needles.dense.mean():.1%}"] * len(measured.needles.sparse))
    for name, values in (
        ("recall", measured.recalls),
        ("best recall", measured.best_recalls),
        ("output error", measured.output_errors),
    ):
        for layer, shares in enumerate(zip(*values.values())):
            table.add_row(f"{name}, layer {layer}", *(f"{share:.3f}" for share in shares))
    return table
