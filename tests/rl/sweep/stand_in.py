"""Stands for `samepath run` and `resume` in a sweep: leaves a run's folder, at once, and does what the run's name asks for.

A rate of 0.5 fails; with a file `cut` beside the runs folder the first call leaves an unfinished run, as a kill would.
"""

import json
import sys
from pathlib import Path

from samepath.rl.recipe.file import dump_recipe, load_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run_folder import recipe_of_run
from samepath.rl.run_state import RunState


def main(verb: str, place: str, *overrides: str) -> int:
    """The exit status."""
    recipe = load_recipe(Path(place), overrides, Recipe) if verb == "run" else recipe_of_run(Path(place), overrides)
    run_dir = recipe.run_dir
    with (run_dir.parent / "calls.txt").open("a") as calls:
        calls.write(f"{verb} {run_dir.name} {' '.join(overrides) if verb == 'resume' else ''}\n")
    if recipe.optimizer.lr == 0.5:
        print("error: this rate is too high")
        return 1
    run_dir.mkdir(exist_ok=True)
    (run_dir / "recipe.yaml").write_text(dump_recipe(recipe))
    (run_dir / "metrics.jsonl").write_text(json.dumps({"step": 1, "metrics": {"reward/mean": 1.0}}) + "\n")
    cut = run_dir.parent / "cut"
    RunState(phase="training" if cut.exists() else "finished").save(run_dir)
    if cut.exists():
        cut.unlink()
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
