"""`run.json` and tracking name a checkpoint once it is whole; what its writing raised ends the run."""

import json
from pathlib import Path
from typing import Any

import pytest

from samepath.rl.learner import checkpoint_writer
from samepath.rl.learner.checkpoints import CheckpointError, latest_checkpoint
from samepath.rl.learner.learner import Learner
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.report.progress import ProgressDisplay
from samepath.rl.resume import plan_resume, rewind
from samepath.rl.run import start_run
from samepath.rl.run_state import RunState
from samepath.rl.saving import Saving
from samepath.rl.tracking.tracker import Tracker
from tests.rl.test_loop import Book

SMALL = ("cold_start.steps=1", "rl.prompts_per_step=2", "rl.group_size=2")


class SlowLearner:
    """Its checkpoints become whole when it is told to, or waited for."""

    def __init__(self) -> None:
        self.done = False
        self.error: Exception | None = None
        self.waits = 0

    def save(self, step: int, best: int | None = None) -> Path:
        self.done = False
        return Path(f"step-{step:06d}")

    def saved(self, step: int, *, wait: bool) -> bool:
        self.waits += wait
        if self.error is not None:
            raise self.error
        self.done = self.done or wait
        return self.done


def saving_of(recipe: Recipe, learner: Any, book: Book) -> Saving:
    recipe.run_dir.mkdir(parents=True)
    return Saving(
        recipe=recipe,
        learner=learner,
        tracker=Tracker([book]),
        display=ProgressDisplay(total_steps=9),
        state=RunState(),
        newest=-1,
    )


def test_saving_cut_off_by_a_full_disk_counts_its_checkpoint_once(
    tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = SlowLearner()
    saving = saving_of(tiny_recipe("checkpoint.every=1"), learner, Book())
    saving.after(1)
    learner.done = True

    def full(state: RunState, run_dir: Path) -> None:
        raise OSError(28, "No space left on device", "run.json")

    with monkeypatch.context() as patch:
        patch.setattr(RunState, "save", full)
        with pytest.raises(OSError, match="run.json"):
            saving.after(2)
        saving.close()
    assert sorted(saving.state.marks) == [1]


def named(recipe: Recipe) -> tuple[list[str], list[str]]:
    """Steps that `run.json` says are whole, and are being written."""
    state = json.loads((recipe.run_dir / "run.json").read_text())
    return sorted(state["marks"]), sorted(state["begun"])


def test_after_names_a_checkpoint_only_once_it_is_whole(tiny_recipe) -> None:
    recipe, learner, book = tiny_recipe("checkpoint.every=2"), SlowLearner(), Book()
    saving = saving_of(recipe, learner, book)
    for step, begun in ((1, []), (2, ["2"]), (3, ["2"])):
        saving.after(step)
        assert named(recipe) == ([], begun)
        assert saving.writing == bool(begun)
    assert book.checkpoints == []
    saving.after(4)
    assert learner.waits == 1, "a second one waits for the first"
    assert named(recipe) == (["2"], ["4"])
    learner.done = True
    saving.after(5)
    assert named(recipe) == (["2", "4"], [])
    assert book.checkpoints == [2, 4]
    assert learner.waits == 1


def test_begin_of_the_newest_step_writes_nothing_and_finish_waits(tiny_recipe) -> None:
    recipe, learner, book = tiny_recipe("checkpoint.every=0"), SlowLearner(), Book()
    saving = saving_of(recipe, learner, book)
    saving.begin(3)
    saving.begin(3)
    assert learner.waits == 0
    saving.finish()
    saving.finish()
    assert (learner.waits, book.checkpoints) == (1, [3])


def test_error_of_the_writing_is_raised_once_after_the_next_step_and_not_by_close(
    tiny_recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    learner = SlowLearner()
    saving = saving_of(tiny_recipe("checkpoint.every=2"), learner, Book())
    saving.after(2)
    learner.error = CheckpointError("step-000002 cannot be written")
    with pytest.raises(CheckpointError, match="step-000002"):
        saving.after(3)
    saving.close()
    assert "not written" not in capsys.readouterr().out


def test_close_says_what_nobody_has_seen(tiny_recipe, capsys: pytest.CaptureFixture[str]) -> None:
    learner = SlowLearner()
    saving = saving_of(tiny_recipe("checkpoint.every=2"), learner, Book())
    saving.after(2)
    learner.error = CheckpointError("the disk is full")
    saving.close()
    assert "the checkpoint of step 2 was not written: the disk is full" in " ".join(capsys.readouterr().out.split())


def test_run_whose_checkpoint_cannot_be_written_ends_after_the_next_step_at_the_latest(
    tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = checkpoint_writer.write_folder

    def refusing(folder: Path, write: Any) -> None:
        if folder.name == "step-000002":
            raise CheckpointError(f"{folder} cannot be written: full")
        original(folder, write)

    monkeypatch.setattr(checkpoint_writer, "write_folder", refusing)
    recipe = tiny_recipe("rl.steps=5", "checkpoint.every=1", *SMALL)
    with pytest.raises(CheckpointError, match="step-000002 cannot be written"):
        start_run(recipe, tmp_path)
    steps = [json.loads(line)["step"] for line in (recipe.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) in (2, 3)
    found = latest_checkpoint(recipe.run_dir)
    assert found is not None
    assert found[1] == 1
    assert named(recipe) == (["0", "1"], ["2"])


def test_resume_from_a_whole_checkpoint_that_run_json_does_not_name_yet_loses_nothing(
    tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the rename of the folder and the line in `run.json`."""
    monkeypatch.setattr(Learner, "saved", lambda self, step, *, wait: self._writer.whole(wait=True) and wait)
    recipe = tiny_recipe("rl.steps=3", "checkpoint.every=2", *SMALL)
    monkeypatch.setattr(Saving, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        start_run(recipe, tmp_path)
    assert named(recipe)[1] == ["3"]
    plan = plan_resume(recipe, recipe.run_dir, None)
    assert plan.first_step == 3
    rewind(plan, recipe.run_dir)
    assert named(recipe) == (["0", "2", "3"], [])
