"""A run that loses a learner rank ends with a sentence, or goes on by itself, from its last checkpoint to the same weights."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from samepath.rl.batch.train_batch import TrainBatch, UpdateReport
from samepath.rl.learner.handle import InlineLearner
from samepath.rl.learner.learner import Learner
from samepath.rl.learner.lost import LearnerLostError
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run import resume_run, start_run

SAID = "learner rank 1 .* ended with signal SIGKILL, during update. Go on from the last checkpoint"
AGAIN = "restart 1 of learner.restarts=1: the run goes on from its newest checkpoint"


def losing_ranks(times: int) -> Callable[[InlineLearner, TrainBatch], UpdateReport]:
    """`Learner.update` that kills the child rank in the second step, so often."""
    plain, left = Learner.update, [None] * times

    def update(learner: InlineLearner, batch: TrainBatch) -> UpdateReport:
        if left and learner.version == 1 and learner._others is not None:
            left.pop()
            os.kill(learner._others._children[0].process.pid, signal.SIGKILL)
        return plain(learner, batch)

    return update


SHORT = ("learner.min_passes=2", "cold_start.steps=1", "rl.steps=2", "evaluation.every=0")


def run(tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kills: int, *settings: str) -> Recipe:
    """The recipe of a run that was started and, so often, loses its child rank."""
    recipe = tiny_recipe(*SHORT, f"name={name}", *settings)
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", losing_ranks(kills))
        if kills > recipe.learner.restarts:
            with pytest.raises(LearnerLostError, match=SAID):
                start_run(recipe, tmp_path)
            assert sorted(folder.name for folder in (recipe.run_dir / "checkpoints").iterdir()) == ["step-000001"]
        else:
            start_run(recipe, tmp_path)
    return recipe


def learned(recipe: Recipe) -> bytes:
    """The weights at the end."""
    return (recipe.run_dir / "checkpoints" / "step-000002" / "model.safetensors").read_bytes()


def test_run_whose_rank_is_killed_goes_on_by_itself_to_the_weights_of_a_whole_run_on_one_rank(
    tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(tiny_recipe, tmp_path, monkeypatch, "whole", 0)
    restarted = run(tiny_recipe, tmp_path, monkeypatch, "restarted", 1, "learner.ranks=2", "learner.restarts=1")
    assert re.search(rf"{SAID}.*\n{AGAIN}", capsys.readouterr().out)
    assert learned(whole) == learned(restarted)


@pytest.mark.slow
def test_run_whose_rank_is_killed_too_often_names_it_and_is_resumed_to_the_same_weights(
    tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(tiny_recipe, tmp_path, monkeypatch, "whole", 0, "learner.ranks=2")
    once = run(tiny_recipe, tmp_path, monkeypatch, "once", 1, "learner.ranks=2")
    assert AGAIN not in capsys.readouterr().out
    twice = run(tiny_recipe, tmp_path, monkeypatch, "twice", 2, "learner.ranks=2", "learner.restarts=1")
    assert capsys.readouterr().out.count(AGAIN) == 1
    for recipe in (once, twice):
        resume_run(recipe, recipe.run_dir)
        assert learned(recipe) == learned(whole)
