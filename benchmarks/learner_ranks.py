"""Learner steps a second on several ranks: the quickstart's model, batch and settings, each number of ranks in processes of its own, in turns.

Every round times one update (both optimiser steps, reference and diagnostics included) of each; the fastest of all rounds counts, because other
programs may use the machine at the same time; the processor's seconds of rank 0 say what a busy machine hides. Its memory is the most
that the process holds during an update (Linux).
`python -m benchmarks.learner_ranks --ranks 1,2 --rounds 10`
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from samepath.model.text.tokenizer import load_tokenizer
from samepath.rl.batch.pack import TrainSequence
from samepath.rl.batch.train_batch import TrainBatch
from samepath.rl.learner.handle import build_learner
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rollout.pool.worker import RolloutWorker
from samepath.rollout.request import GroupRequest
from samepath.rollout.types import Group, Prompt

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "quickstart.yaml"


def sampled_batch(recipe: Recipe, folder: Path, tokens: int) -> TrainBatch:
    """A rollout batch of the recipe's size, every response `tokens` long, drawn by the weights in a folder."""
    tokenizer, rl = load_tokenizer(folder), recipe.rl
    sampling = recipe.sampling.model_copy(update={"max_new_tokens": tokens, "ignore_stop": True})
    requests = []
    for index in range(rl.prompts_per_step):
        text = "+".join(str((index * 7 + term) % 10) for term in range(7)) + "="
        prompt = Prompt(prompt_id=str(index), text=text, token_ids=tokenizer.encode(text))
        seeds = tuple(1000 * index + sample for sample in range(rl.group_size))
        requests.append(GroupRequest(group_id=f"g{index}", prompt=prompt, sampling=sampling, seeds=seeds))
    worker, fresh = RolloutWorker(folder, recipe.engine, 1, recipe.model.placement), requests
    groups: list[Group] = []
    while len(groups) < len(requests):
        groups += worker.work(fresh, 60.0)
        fresh = []
    rollouts = [(group, rollout) for group in groups for rollout in group.rollouts]
    count = len(rollouts)
    return TrainBatch(
        sequences=tuple(
            TrainSequence(
                segment=rollout.segments[0], temperature=sampling.temperature, name=f"{group.group_id}/{place}"
            )
            for place, (group, rollout) in enumerate(rollouts)
        ),
        rollout_S=np.arange(count),
        names=tuple(map(str, range(count))),
        advantages_B=np.where(np.arange(count) % 2, -0.5, 0.5).astype(np.float32),
        group_B=np.repeat(np.arange(rl.prompts_per_step), rl.group_size),
        datasets=("sums",) * count,
        in_loss_B=np.ones(count, np.bool_),
    )


def serve(overrides: list[str], tokens: int) -> None:
    """Build the learner, then time one update for each line of the input."""
    with tempfile.TemporaryDirectory() as folder:
        fixed = [f"runs_dir={folder}", "runtime=inline", "tracking.kind=jsonl", "rl.max_gap_at_lag_0=1000"]
        recipe = load_recipe(RECIPE, [*fixed, *overrides], Recipe)
        learner = build_learner(recipe, RECIPE.parent, recipe.run_dir, None)
        try:
            learner.start_rl()
            batch = sampled_batch(recipe, recipe.run_dir / "reference", tokens)
            print("ready", flush=True)
            for _ in sys.stdin:
                # From here on the peak is that of this update.
                Path("/proc/self/clear_refs").write_text("5")
                begun, worked = time.perf_counter(), time.process_time()
                learner.update(batch)
                clock, worked = time.perf_counter() - begun, time.process_time() - worked
                print(clock, worked, peak_mib(), flush=True)
        finally:
            learner.close()


def peak_mib() -> float:
    """The most memory that this process held since its peak was forgotten, MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def measured(ranks: list[int], rounds: int, tokens: int, others: list[str]) -> dict[int, list[tuple[float, ...]]]:
    """Seconds of each update by the clock and of rank 0's processor, and the most memory of rank 0 in MiB, by ranks."""
    command = [sys.executable, "-m", "benchmarks.learner_ranks", "--tokens", str(tokens)]
    started = {
        count: subprocess.Popen(
            [*command, "--serve", f"learner.ranks={count}", *others],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for count in ranks
    }
    seconds: dict[int, list[tuple[float, ...]]] = {count: [] for count in ranks}
    try:
        for process in started.values():
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                raise RuntimeError("a learner did not start; its error stands above")
        for _ in range(rounds):
            for count, process in started.items():
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write("go\n")
                process.stdin.flush()
                seconds[count].append(tuple(map(float, process.stdout.readline().split())))
    finally:
        for process in started.values():
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
    return seconds


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", default="1,2")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=50, help="length of every response")
    parser.add_argument("--serve", action="store_true", help="for this program's own use")
    parser.add_argument("overrides", nargs="*", help="further settings of the recipe, KEY=VALUE")
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.overrides, asked.tokens)
        return
    counts = [int(count) for count in asked.ranks.split(",")]
    seconds = measured(counts, asked.rounds, asked.tokens, asked.overrides)
    alone = [min(column) for column in zip(*seconds[counts[0]], strict=True)]
    print(
        "| ranks | fastest, s | median, s | steps/s | over the first | CPU s of rank 0 | over the first | peak of rank 0, MiB |\n"
        + "|---" * 8
        + "|"
    )
    for count, times in seconds.items():
        clocks, worked, peaks = zip(*times, strict=True)
        cells = (
            f"{min(clocks):.3f}",
            f"{float(np.median(clocks)):.3f}",
            f"{1 / min(clocks):.2f}",
            f"{alone[0] / min(clocks):.2f}×",
            f"{min(worked):.3f}",
            f"{alone[1] / min(worked):.2f}×",
            f"{max(peaks):.0f}",
        )
        print(f"| {count} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
