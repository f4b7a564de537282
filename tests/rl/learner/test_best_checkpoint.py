"""The best checkpoint stays where other processes write it: ranks that share the model, and an actor under Ray."""

from pathlib import Path
from typing import Any

import pytest

from samepath.rl.evaluation.held_out import Evaluation, Evaluations
from samepath.rl.learner.checkpoints import best_checkpoint
from samepath.rl.learner.export import export
from samepath.rl.loop import Loop
from samepath.rl.run import start_run

SHORT = (
    "cold_start.steps=1", "rl.steps=3", "rl.prompts_per_step=2", "rl.group_size=2", "evaluation.every=1", "checkpoint.every=1",
    "checkpoint.keep=1",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("ways", [("learner.ranks=2", "learner.shard=full", "learner.min_passes=2"), ("runtime=ray",)])
def test_best_checkpoint_stays_beside_the_last_and_is_exported(
    ways: tuple[str, ...],
    request: pytest.FixtureRequest,
    tiny_recipe: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "runtime=ray" in ways:
        request.getfixturevalue("cluster")
    accuracies = iter((0.1, 0.9, 0.2, 0.3))

    def evaluate(self: Loop) -> Evaluations:
        one = Evaluation(accuracy=next(accuracies), num_scored=8, num_failed=0, mean_length=1.0, groups=())
        return Evaluations(sets={"": one})

    monkeypatch.setattr(Loop, "evaluate", evaluate)
    recipe = tiny_recipe(*SHORT, *ways)
    summary = start_run(recipe, tmp_path)
    assert (summary["best_step"], summary["best_accuracy"]) == (1, 0.9)
    folder = recipe.run_dir / "checkpoints"
    assert sorted(path.name for path in folder.glob("step-*")) == ["step-000001", "step-000003"]
    assert best_checkpoint(recipe.run_dir) == (folder / "step-000001", 1)
    assert export(recipe.run_dir, tmp_path / "out", 1 << 30, best=True).checkpoint == folder / "step-000001"
