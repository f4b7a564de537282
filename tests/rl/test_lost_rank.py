"""A run that loses a learner rank ends with a sentence, or goes on by itself, from its last checkpoint to the same weights."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from samepath.rl.batch.train_batch import TrainBatch, UpdateReport
from samepath.rl.learner.handle import InlineLearner
from samepath.rl.learner.learner import Learner
from samepath.rl.learner.lost import LearnerLostError
from samepath.rl.run import resume_run, start_run


def losing_ranks(times: int) -> Callable[[InlineLearner, TrainBatch], UpdateReport]:
    """`Learner.update` that kills the child rank in the second step, so often."""
    plain, left = Learner.update, [None] * times

    def update(learner: InlineLearner, batch: TrainBatch) -> UpdateReport:
        if left and learner.version == 1 and learner._others is not None:
            left.pop()
            os.kill(learner._others._children[0].process.pid, signal.SIGKILL)
        return plain(learner, batch)

    return update


def test_run_whose_rank_is_killed_goes_on_to_the_same_weights(
    tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "learner rank 1 .* ended with signal SIGKILL, during update. Go on from the last checkpoint"
    weights = []
    for name, kills, restarts in (("whole", 0, 0), ("resumed", 1, 0), ("restarted", 1, 1), ("lost", 2, 1)):
        recipe = tiny_recipe(
            "learner.ranks=2", f"learner.restarts={restarts}", "cold_start.steps=2", "rl.steps=2", f"name={name}"
        )
        with monkeypatch.context() as patch:
            patch.setattr(Learner, "update", losing_ranks(kills))
            if kills > restarts:
                with pytest.raises(LearnerLostError, match=said):
                    start_run(recipe, tmp_path)
            else:
                start_run(recipe, tmp_path)
        if kills > restarts:
            assert sorted(folder.name for folder in (recipe.run_dir / "checkpoints").iterdir()) == ["step-000001"]
        if name == "resumed":
            resume_run(recipe, recipe.run_dir)
        if restarts:
            assert (
                "restart 1 of learner.restarts=1: the run goes on from its newest checkpoint" in capsys.readouterr().out
            )
        if name != "lost":
            weights.append((recipe.run_dir / "checkpoints" / "step-000002" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] == weights[2]
