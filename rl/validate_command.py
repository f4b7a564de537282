"""`samepath validate`: everything that can be checked before a run. Imports torch only when it is called."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def validate(
    recipe: Annotated[Path, typer.Argument(help="recipe file, YAML")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="settings to change: key=value, ~key, list[0].key=value")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="fail too on what could not be checked or cannot run here")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="leave the resolved recipe out")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print findings and resolved recipe as JSON")] = False,
) -> int:
    """Check a recipe, its task, model, prompts, rewards and memory, and print all of it; starts nothing. Status 1 if anything is wrong."""
    # Late: building the checks of every setting takes time that `--help` does not need.
    from samepath.rl.recipe.file import dump_recipe, load_recipe, recipe_keys
    from samepath.rl.recipe.recipe import Recipe
    from samepath.rl.text_command import validate_on_text

    if "stage" in recipe_keys(recipe, overrides or []):
        validate_on_text(recipe, overrides or [], quiet=quiet, as_json=as_json)
        return 0
    resolved = load_recipe(recipe, overrides or [], Recipe)
    # Late: torch; what the settings alone show is said before it.
    from samepath.rl.validate.validation import validate_recipe

    def say(text: str) -> None:
        Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)

    result = validate_recipe(resolved, recipe.parent, say)
    passed = result.passed(strict=strict)
    if as_json:
        found = {"passed": passed, "findings": [asdict(finding) for finding in result.findings]}
        kept = {} if quiet else {"recipe": resolved.model_dump(mode="json")}
        sys.stdout.write(json.dumps({**found, **kept}, indent=2, ensure_ascii=False) + "\n")
        return 0 if passed else 1
    if not quiet:
        sys.stdout.write(dump_recipe(resolved))
        sys.stdout.flush()
    verdict = "valid: nothing was started" if passed else "NOT VALID"
    for line in [*result.lines(), "", resolved.rl.described(resolved.sampling.max_new_tokens), verdict]:
        say(line)
    return 0 if passed else 1
