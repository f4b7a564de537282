"""The estimate against a measured run."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CODE = """
import sys
from pathlib import Path
from samepath.rl.validate.memory_measure import measure
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.recipe.file import load_recipe
for tokens in (512, 4096):
    recipe = load_recipe("recipes/quickstart.yaml", [f"learner.max_tokens_per_pass={tokens}"], Recipe)
    found = measure(recipe.model, Path("recipes"), recipe.learner.max_tokens_per_pass, recipe.seed)
    print(found.estimated, found.process + found.measured, found.pass_tokens)
"""


def test_measure_growth_with_the_pass_is_between_one_and_two_estimates() -> None:
    """Of two passes in one process the difference tells what a token takes; libraries loaded on the way cancel out."""
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    )
    small, large = ([int(word) for word in line.split()] for line in done.stdout.splitlines())
    assert large[2] > small[2] > 0
    ratio = (large[1] - small[1]) / (large[0] - small[0])
    assert 0.8 < ratio < 2.0
