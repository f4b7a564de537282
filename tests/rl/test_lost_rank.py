"""A run that loses a learner rank ends with a sentence, and goes on from its last checkpoint to the same weights."""

import os
import signal
from pathlib import Path

import pytest

from samepath.rl.batch.train_batch import TrainBatch, UpdateReport
from samepath.rl.learner.handle import InlineLearner
from samepath.rl.learner.learner import Learner
from samepath.rl.learner.lost import LearnerLostError
from samepath.rl.run import resume_run, start_run


def test_run_whose_rank_is_killed_says_so_and_resumes_to_the_same_weights(
    tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, plain = [], Learner.update
    for name, victim in (("whole", None), ("cut", 1)):
        recipe = tiny_recipe("learner.ranks=2", "cold_start.steps=2", "rl.steps=2", f"name={name}")

        def update(learner: InlineLearner, batch: TrainBatch, victim: int | None = victim) -> UpdateReport:
            if victim is not None and learner.version == 1 and learner._others is not None:
                os.kill(learner._others._children[0].process.pid, signal.SIGKILL)
            return plain(learner, batch)

        with monkeypatch.context() as patch:
            patch.setattr(Learner, "update", update)
            if victim is None:
                start_run(recipe, tmp_path)
            else:
                with pytest.raises(
                    LearnerLostError, match="learner rank 1 .* ended with signal SIGKILL, during update. Go on from"
                ):
                    start_run(recipe, tmp_path)
        if victim is not None:
            assert sorted(folder.name for folder in (recipe.run_dir / "checkpoints").iterdir()) == ["step-000001"]
            resume_run(recipe, recipe.run_dir)
        weights.append((recipe.run_dir / "checkpoints" / "step-000002" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
