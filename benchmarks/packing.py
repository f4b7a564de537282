"""One learner update on answers of heavy-tailed lengths: packed end to end, as always, beside padded to one length, as trainers with rectangular batches do.

    python -m benchmarks.packing                 # the quickstart's model, 64 answers of 9 to 256 tokens
    python -m benchmarks.packing --rounds 10 --longest 128

Lengths are of a Pareto distribution of shape 1 from 9 tokens, cut at `--longest`. Both ways train the same tokens of the same model, in turns, and give the
same loss. Padding is what follows an answer: tokens that are run and not trained, up to the batch's longest (`padded`), or up to the longest of the
eight answers of a prompt, which then have a length of their own (`padded by prompt`). A prompt's rows run once for its answers in all of them,
which no rectangular batch does: the comparison is kind to padding.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from benchmarks.learner_ranks import RECIPE, sampled_batch
from samepath.rl.batch.pack import TrainSequence
from samepath.rl.batch.train_batch import TrainBatch
from samepath.rl.learner.handle import InlineLearner
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rollout.types import MISSING_ROUTE, Segment, Support

SHORTEST = 9


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--longest", type=int, default=256, help="tokens of an answer")
    parser.add_argument("--prompts", type=int, default=8, help="each with eight answers")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = _recipe(folder, asked.prompts, asked.longest)
        learner = InlineLearner(recipe, RECIPE.parent, recipe.run_dir, None)
        learner.start_rl()
        whole = sampled_batch(recipe, learner.reference_dir, asked.longest)
        learner.close()
        batches = ways(whole, asked.longest)
        learners = {
            name: InlineLearner(recipe, RECIPE.parent, recipe.run_dir, learner.reference_dir) for name in batches
        }
        rows: dict[str, list[tuple[float, float]]] = {name: [] for name in batches}
        losses = {}
        for _ in range(asked.rounds):
            for name, batch in batches.items():
                begun, worked = time.perf_counter(), time.process_time()
                report = learners[name].update(batch)
                rows[name].append((time.perf_counter() - begun, time.process_time() - worked))
                losses.setdefault(name, report.metrics["learner/loss"])
    _print(batches, rows, losses)


def ways(whole: TrainBatch, longest: int, seed: int = 0) -> dict[str, TrainBatch]:
    """The batch with heavy-tailed lengths, packed, and with padding behind the answers."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(np.floor(SHORTEST / (1 - rng.random(len(whole.sequences)))), longest).astype(int)
    cut = [cut_to(entry.segment, int(count)) for entry, count in zip(whole.sequences, lengths, strict=True)]
    most = max(len(one.token_ids) for one in cut)
    of_prompt = {
        group: max(len(one.token_ids) for one, own in zip(cut, whole.group_B) if own == group)
        for group in whole.group_B
    }
    return {
        "packed": _with(whole, cut),
        "padded by prompt": _with(whole, [padded_to(one, of_prompt[own]) for one, own in zip(cut, whole.group_B)]),
        "padded": _with(whole, [padded_to(one, most) for one in cut]),
    }


def cut_to(segment: Segment, count: int) -> Segment:
    """The segment up to its `count`-th sampled token."""
    total = int(segment.trained.nonzero()[0][count - 1]) + 1
    support = segment.support
    if support is not None:
        support = Support(counts=support.counts[:count], ids=support.ids[: int(support.counts[:count].sum())])
    return _last_row_not_run(_per_token(replace(segment, support=support), lambda array: array[:total].copy()))


def padded_to(segment: Segment, total: int) -> Segment:
    """The segment with tokens behind it that are run, with the experts of its first row, and not trained."""
    more = total - len(segment.token_ids)
    if not more:
        return segment
    routes = segment.routes.copy()
    routes[-1] = routes[0]
    longer = _per_token(
        replace(segment, routes=routes), lambda array: np.concatenate([array, np.repeat(array[:1], more, 0)])
    )
    trained = longer.trained.copy()
    trained[-more:] = False
    return _last_row_not_run(replace(longer, trained=trained))


def _per_token(segment: Segment, change: object) -> Segment:
    assert callable(change)
    names = ["token_ids", "trained", "sampler_logprobs", "routes", "selection_fingerprint", "weight_version"]
    return replace(
        segment, **{name: change(getattr(segment, name)) for name in names if getattr(segment, name) is not None}
    )


def _last_row_not_run(segment: Segment) -> Segment:
    segment.routes[-1] = MISSING_ROUTE
    if segment.selection_fingerprint is not None:
        segment.selection_fingerprint[-1] = 0
    return segment


def _with(batch: TrainBatch, segments: Sequence[Segment]) -> TrainBatch:
    sequences: list[TrainSequence] = [
        replace(entry, segment=one) for entry, one in zip(batch.sequences, segments, strict=True)
    ]
    return replace(batch, sequences=tuple(sequences))


def _recipe(folder: str, prompts: int, longest: int) -> Recipe:
    fixed = [
        "runtime=inline",
        "tracking.kind=jsonl",
        "rl.max_gap_at_lag_0=1000",
        "learner.ranks=1",
        "cold_start.steps=0",
    ]
    sizes = [f"rl.prompts_per_step={prompts}", f"model.config.max_position_embeddings={longest + 64}"]
    return load_recipe(RECIPE, [f"runs_dir={folder}", *fixed, *sizes, "engine.cache_tokens=65536"], Recipe)


def _print(
    batches: dict[str, TrainBatch], rows: dict[str, list[tuple[float, float]]], losses: dict[str, float]
) -> None:
    trained = sum(int(entry.segment.trained.sum()) for entry in batches["packed"].sequences)
    print(
        f"{len(batches['packed'].sequences)} answers, {trained} trained tokens, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(
        "| | rows before sharing | an update, s | processor, s | over packed | processor, over packed | loss |\n"
        + "|---" * 7
        + "|"
    )
    first = [min(column) for column in zip(*rows["packed"], strict=True)]
    for name, batch in batches.items():
        clock_s, worked_s = (min(column) for column in zip(*rows[name], strict=True))
        count = sum(len(entry.segment.token_ids) - 1 for entry in batch.sequences)
        cells = (
            f"{clock_s:.2f}",
            f"{worked_s:.2f}",
            f"{clock_s / first[0]:.2f}",
            f"{worked_s / first[1]:.2f}",
            f"{losses[name]:.9f}",
        )
        print(f"| {name} | {count} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
