"""Answers of a run that samples ahead are as long as what the policy says, whatever ends first and whenever the run is killed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from samepath.model.files.checkpoint import load_checkpoint
from samepath.model.text.tokenizer import load_tokenizer
from samepath.rl.feed import Feed
from samepath.rl.history import History
from samepath.rl.run_folder import recipe_of_run
from samepath.rl.tasks.tasks import build_task
from samepath.rollout.builtin.builtin_engine import BuiltinEngine
from samepath.rollout.request import GroupRequest
from tests.rl.test_killed_ahead import AheadKiller

ks_2samp = pytest.importorskip("scipy.stats").ks_2samp
pytestmark = pytest.mark.slow
STEPS, SAMPLES, AGAIN = 20, 4, 16
STILL = {"lr": 1e-30}
"""Weights that every version has, so that what is drawn follows from the seeds alone."""


def trained_lengths(run_dir: Path) -> dict[tuple[int, int], int]:
    """Tokens of every sample that was trained, by group number and sample."""
    history = History(run_dir)
    lines = [line for step in history.steps if (line := history.line(step)) is not None]
    return {
        (group.number, index): sum(count for _, count in sample.drawn)
        for line in lines
        for group in line.groups
        for index, sample in enumerate(group.samples)
    }


def sampled_lengths(run_dir: Path) -> list[int]:
    """The same prompts, answered often by these weights with other seeds."""
    recipe, reference = recipe_of_run(run_dir), run_dir / "reference"
    tokenizer = load_tokenizer(reference)
    feed = Feed(recipe=recipe, task=build_task(recipe.task, run_dir), tokenizer=tokenizer)
    settings = recipe.engine.model_copy(update={"max_sequences": AGAIN})
    engine = BuiltinEngine(load_checkpoint(reference, "torch"), tokenizer, settings)  # type: ignore[arg-type]
    requests = [request for request in map(feed.request, range(2 * STEPS)) if isinstance(request, GroupRequest)]
    seeds = [tuple(range(1000 * n, 1000 * n + AGAIN)) for n in range(len(requests))]
    groups = engine.run([replace(request, seeds=own) for request, own in zip(requests, seeds, strict=True)])
    return [rollout.num_trained for group in groups for rollout in group.rollouts]


@pytest.mark.parametrize("oversample", [0, 1])
def test_lengths_of_killed_and_of_whole_runs_are_those_of_the_policy(oversample: int, tmp_path: Path) -> None:
    rl = {"steps": STEPS, "group_size": SAMPLES, "oversample": oversample}
    killer = AheadKiller(tmp_path, rl, optimizer=STILL, engine={"max_sequences": 8})
    try:
        moments = killer.attempt("whole")
        for moment in (moments // 4, moments // 3, moments // 3):
            killer.attempt("killed", moment)
        killer.attempt("killed")
    finally:
        killer.close()
    whole, killed = (trained_lengths(killer.runs / name) for name in ("whole", "killed"))
    assert len(whole) == 2 * STEPS * SAMPLES
    assert killed == whole, "sample by sample"
    wanted = sampled_lengths(killer.runs / "whole")
    assert len(set(wanted)) > 10
    assert ks_2samp(list(killed.values()), wanted).pvalue > 0.05
    # Who drops the slowest quarter of each group would be seen.
    lengths = np.sort(np.array([whole[key] for key in sorted(whole)]).reshape(-1, SAMPLES), axis=1)
    assert ks_2samp(lengths[:, :-1].ravel(), wanted).pvalue < 0.05
