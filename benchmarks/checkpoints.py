"""Seconds that a checkpoint takes from the training, written at once and beside it: `python -m benchmarks.checkpoints RECIPE [KEY=VALUE …]`.

The model of the recipe takes one step of AdamW on random gradients, so that the optimiser has its state; no prompt is sampled.
"""

import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from samepath.rl.learner.learner import Learner
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe

SAVES = 3


def prepared(path: str, overrides: list[str], run_dir: Path) -> Learner:
    """A learner after its first step, its reference written."""
    recipe = load_recipe(path, ["runtime=inline", *overrides], Recipe)
    learner = Learner(recipe, Path(path).parent, run_dir, None)
    learner.start_rl()
    optimizer = learner._optimizer
    assert optimizer is not None
    optimizer.add([torch.randn_like(parameter, dtype=torch.float32) for parameter in optimizer.parameters])
    optimizer.step()
    return learner


def measure(path: str, overrides: list[str]) -> None:
    """Print a line for each way of writing."""
    for asynchronous in (False, True):
        with tempfile.TemporaryDirectory(dir=".") as folder:
            learner = prepared(path, [*overrides, f"checkpoint.asynchronous={asynchronous}"], Path(folder))
            held, whole, size = [], [], 0
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for step in range(1, SAVES + 1):
                started = time.perf_counter()
                saved = learner.save(step)
                held.append(time.perf_counter() - started)
                learner.saved(step, wait=True)
                whole.append(time.perf_counter() - started)
                size = sum(file.stat().st_size for file in saved.iterdir())
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            print(
                f"{'beside the training' if asynchronous else 'at once'}: {learner.statistics()['parameters'] / 1e6:.1f} M parameters, "
                f"{size / 1e6:.0f} MB; {statistics.median(held):.3f} s on the step's path, {statistics.median(whole):.2f} s until whole; "
                f"peak memory + {grown / 1e6:.0f} MB (medians of {SAVES})",
                flush=True,
            )


if __name__ == "__main__":
    measure(sys.argv[1], sys.argv[2:])
