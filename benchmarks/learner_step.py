"""Times a recipe's learner on one rollout batch, and says where its time goes: `python -m benchmarks.learner_step recipes/h200_small.yaml`.

The batch is drawn by the recipe's engine from untrained weights, every response `--tokens` long. One update is all that the learner does with it:
packing, passes without gradient, training passes, optimiser steps, report. With `--profile` one more update runs under both profilers: seconds of the
device's kernels beside the wall clock, and the host's functions. Further settings of the recipe follow as KEY=VALUE.
"""

import argparse
import cProfile
import io
import pstats
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.learner_ranks import sampled_batch
from samepath.rl.learner.handle import build_learner
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe


def waited() -> float:
    """Now, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--tokens", type=int, default=26, help="length of every response")
    parser.add_argument("--updates", type=int, default=8, help="timed ones; two more warm up")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE")
    asked = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        # Nothing is trained before, and what is drawn from untrained weights is as long to learn from.
        fixed = [f"runs_dir={folder}", "runtime=inline", "tracking.kind=jsonl", "cold_start.steps=0"]
        fixed += ["cold_start.late_steps=0", "cold_start.dense_warmup_steps=0"]
        recipe = load_recipe(asked.recipe, [*fixed, *asked.overrides], Recipe)
        learner = build_learner(recipe, asked.recipe.resolve().parent, recipe.run_dir, None)
        try:
            learner.start_rl()
            batch = sampled_batch(recipe, recipe.run_dir / "reference", asked.tokens)
            tokens = sum(len(entry.segment.token_ids) for entry in batch.sequences)
            seconds = []
            for _ in range(asked.updates + 2):
                begun = waited()
                learner.update(batch)
                seconds.append(waited() - begun)
            median = statistics.median(seconds[2:])
            print(
                f"first {seconds[0]:.3f} s, second {seconds[1]:.3f} s; then median {median:.4f} s, fastest {min(seconds[2:]):.4f} s"
            )
            print(
                f"{len(batch.sequences)} sequences, {tokens} tokens: {tokens / median:,.0f} tokens/s, as learner/tokens_per_s counts"
            )
            if asked.profile:
                host = cProfile.Profile()
                begun = waited()
                host.enable()
                learner.update(batch)
                host.disable()
                print(f"under the host's profiler {waited() - begun:.3f} s")
                text = io.StringIO()
                pstats.Stats(host, stream=text).sort_stats("cumulative").print_stats("samepath|rl/|kernels/|model/", 45)
                pstats.Stats(host, stream=text).sort_stats("tottime").print_stats(35)
                print(text.getvalue())
                with torch.profiler.profile() as seen:
                    learner.update(batch)
                    waited()
                print(seen.key_averages().table(sort_by="self_cuda_time_total", row_limit=45, max_name_column_width=60))
        finally:
            learner.close()


if __name__ == "__main__":
    main()
