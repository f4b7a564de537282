"""`samepath sweep`: a recipe with several values and seeds, in turn. Imports what it runs when it is called."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from samepath.rl.compare_command import show_comparison


def sweep(
    recipe: Annotated[Path, typer.Argument(help="recipe file, YAML")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key=a,b,c for each value; key=value for all; seeds=3 for three seeds of each"),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="runs at a time, as far as this machine has cores for them")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of tables")] = False,
) -> int:
    """Run a recipe with every combination of values and seeds, then compare; called again it goes on where it was cut.

    Finished runs are left as they are, interrupted ones resumed, and one that fails stops no other. Status 0 if all runs are finished, 1 if one
    has failed, 130 after Ctrl-C or SIGTERM, which leaves the checkpoints of the runs under way.
    """
    # Late: building the checks of every setting takes time that `--help` does not need.
    from samepath.rl.sweep.plan import plan_sweep
    from samepath.rl.sweep.runner import Runner, check_room

    planned = plan_sweep(recipe, overrides or [])
    check_room(planned, jobs)
    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    ended = Runner(planned, say).run(jobs)
    failed = [one for one in ended if one.ending == "failed"]
    if interrupted := [one for one in ended if one.ending == "interrupted"]:
        say(f"interrupted: {len(interrupted)} runs are not finished. The same command goes on with them.")
        return 130
    finished = [one.run.recipe.run_dir for one in ended if one.ending in ("finished", "was finished")]
    if len(finished) > 1:
        show_comparison(finished, planned.folder / "compare.html", as_json=as_json)
    elif as_json:
        sys.stdout.write(json.dumps({"configurations": [], "runs": [], "paired": []}) + "\n")
    for one in failed:
        say(f"failed: {one.run.name}{f', see {one.log}' if one.log else ''}")
    return 1 if failed else 0
