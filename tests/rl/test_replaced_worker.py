"""A worker that dies long after a resume: the checkpoint that the run went on from is gone by then."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from samepath.rl import training
from samepath.rl.loop import Loop
from samepath.rl.machine import child_environment, import_path
from samepath.rl.run import resume_run, start_run
from samepath.rollout.pool.pool import worker_environment
from samepath.rollout.pool.process_pool import ProcessPool
from tests.rl.test_run import comparable

SMALL = ("cold_start.steps=1", "rl.prompts_per_step=2", "rl.group_size=2", "checkpoint.every=1", "checkpoint.keep=1")


def test_resume_run_goes_on_when_a_worker_dies_after_its_checkpoint_was_removed(
    tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny_recipe("name=whole", *SMALL)
    start_run(whole, tmp_path)
    start_run(tiny_recipe("name=cut", "rl.steps=1", *SMALL), tmp_path)
    cut = tiny_recipe("name=cut", *SMALL)
    pools: list[ProcessPool] = []

    def beside(folder: Path, engine: Any, workers: Any, placement: Any, recipe_dir: Path, ranks: None) -> ProcessPool:
        variables = worker_environment(engine, workers, import_path(recipe_dir))
        pools.append(ProcessPool(folder, engine, workers, child_environment(variables)))
        return pools[0]

    original = Loop.one_step

    def killing(self: Loop, step: int) -> dict[str, float]:
        if step == 2:
            self.saving.finish()
            assert [path.name for path in (cut.run_dir / "checkpoints").iterdir()] == ["step-000002"]
            os.kill(pools[0].process_ids()[0], signal.SIGKILL)
        return original(self, step)

    monkeypatch.setattr(training, "inline_pool", beside)
    monkeypatch.setattr(Loop, "one_step", killing)
    summary = resume_run(cut, cut.run_dir)
    assert summary["failures"] == {"rollout/replaced_workers": 1.0}
    wanted, got = comparable(whole.run_dir), comparable(cut.run_dir)
    assert [got[step] for step in (2, 3)] == [wanted[step] for step in (2, 3)]
