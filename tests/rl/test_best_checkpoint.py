"""The checkpoint with the best held-out accuracy: begun when an evaluation is one, kept, named once it is whole, found by the commands."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from samepath.rl.cli import app
from samepath.rl.evaluation.held_out import Evaluation, Evaluations
from samepath.rl.learner.checkpoints import CheckpointError, best_checkpoint
from samepath.rl.loop import Loop
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.report import report
from samepath.rl.report.progress import ProgressDisplay
from samepath.rl.resume import plan_resume, rewind
from samepath.rl.run import resume_run, start_run
from samepath.rl.run_folder import recipe_of_run
from samepath.rl.run_state import Best, RunState
from samepath.rl.saving import Saving
from samepath.rl.tracking.tracker import Tracker
from tests.rl.test_loop import Book
from tests.rl.test_resume import folder

SMALL = ("cold_start.steps=1", "rl.prompts_per_step=2", "rl.group_size=2", "evaluation.every=1", "checkpoint.keep=1")


class Saver:
    """Notes what it is to save and to keep; a checkpoint is whole when it is waited for, or `done`."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int | None]] = []
        self.done = True

    def save(self, step: int, best: int | None = None) -> Path:
        self.asked.append((step, best))
        return Path(f"step-{step:06d}")

    def saved(self, step: int, *, wait: bool) -> bool:
        return wait or self.done


def saving_of(recipe: Any, learner: Any, book: Book | None = None) -> Saving:
    recipe.run_dir.mkdir(parents=True)
    state = RunState()
    return Saving(
        recipe=recipe,
        learner=learner,
        tracker=Tracker([book or Book()]),
        display=ProgressDisplay(total_steps=9),
        state=state,
        newest=-1,
    )


def after_each(saving: Saving, accuracies: dict[int, float]) -> None:
    for step, accuracy in accuracies.items():
        saving.evaluated(step, accuracy)
        saving.after(step)


def test_evaluation_that_is_a_new_best_begins_a_checkpoint_and_an_equal_or_missing_one_does_not(tiny_recipe) -> None:
    learner, book = Saver(), Book()
    saving = saving_of(tiny_recipe("checkpoint.every=3"), learner, book)
    saving.evaluated(0, 0.5)
    assert saving.state.best == Best(step=0, accuracy=0.5), "the reference is whole already"
    after_each(saving, {1: 0.4, 2: 0.6, 3: 0.6, 4: math.nan, 5: 0.7, 6: 0.1})
    assert learner.asked == [(2, 2), (3, 2), (5, 5), (6, 5)]
    assert saving.state.best == Best(step=5, accuracy=0.7)
    assert [saving.due(step) for step in (4, 5, 9)] == [False, True, True]
    assert book.best == [(0, "reference", 0.5), (2, "step-000002", 0.6), (5, "step-000005", 0.7)]


def test_best_is_named_once_its_checkpoint_is_whole_and_the_one_before_until_then(tiny_recipe) -> None:
    learner = Saver()
    saving = saving_of(tiny_recipe("checkpoint.every=0"), learner)
    after_each(saving, {2: 0.5})
    learner.done = False
    after_each(saving, {4: 0.75})
    written = RunState.load(saving.recipe.run_dir)
    assert written.best == Best(step=2, accuracy=0.5)
    assert written.begun[4].best == Best(step=4, accuracy=0.75)
    saving.finish()
    assert RunState.load(saving.recipe.run_dir).best == Best(step=4, accuracy=0.75)


def test_without_keep_best_nothing_is_begun_named_or_kept(tiny_recipe) -> None:
    learner = Saver()
    saving = saving_of(tiny_recipe("checkpoint.every=3", "checkpoint.keep_best=false"), learner)
    after_each(saving, {1: 0.4, 2: 0.6, 3: 0.9, 6: 0.1})
    assert learner.asked == [(3, None), (6, None)]
    assert RunState.load(saving.recipe.run_dir).best is None
    # A run that had one, and goes on without.
    saving.state.best = Best(step=3, accuracy=0.9)
    again = Saving(
        recipe=saving.recipe,
        learner=learner,
        tracker=saving.tracker,
        display=saving.display,
        state=saving.state,
        newest=6,
    )
    again.begin(7)
    assert (learner.asked[-1], again.state.best) == ((7, None), None)
    with pytest.raises(CheckpointError, match=r"names no best checkpoint.*keep_best"):
        best_checkpoint(saving.recipe.run_dir)


def test_marks_of_the_best_stay_so_that_it_can_be_gone_on_from(tiny_recipe) -> None:
    saving = saving_of(tiny_recipe("checkpoint.every=1", "checkpoint.keep=1"), Saver())
    after_each(saving, {step: 0.9 if step == 2 else 0.1 for step in range(1, 9)})
    assert {2, 8} <= set(saving.state.marks)
    assert 3 not in saving.state.marks


def test_run_json_of_an_older_version_is_read_without_a_best(tiny_recipe) -> None:
    run_dir = folder(tiny_recipe(), "training", (2,), steps=2)
    data = json.loads((run_dir / "run.json").read_text())
    del data["best"]
    for mark in data["marks"].values():
        del mark["best"]
    (run_dir / "run.json").write_text(json.dumps(data))
    state = RunState.load(run_dir)
    assert (state.best, state.marks[2].best) == (None, None)


def test_resume_at_an_earlier_step_has_the_best_up_to_there_if_it_is_kept(tiny_recipe) -> None:
    recipe = tiny_recipe("rl.steps=9")
    run_dir = folder(recipe, "training", (2, 4, 6), steps=6)
    state = RunState.load(run_dir)
    # The best up to step 4 was that of step 3, which a better one has made superfluous since; up to step 2 it was that of step 2.
    for step, best in ((2, 2), (4, 3), (6, 6)):
        state.begun[step] = state.marks[step]
        state.begin(run_dir, step, Best(step=best, accuracy=best / 10))
        state.whole(step, 9)
    state.best = Best(step=6, accuracy=0.6)
    state.save(run_dir)
    said = rewind(plan_resume(recipe, run_dir, 4), run_dir)
    assert any("of step 3 (accuracy 0.300), is not kept any more" in line for line in said)
    assert RunState.load(run_dir).best is None
    rewind(plan_resume(recipe, run_dir, 2), run_dir)
    assert RunState.load(run_dir).best == Best(step=2, accuracy=0.2)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Held-out accuracy by the steps that are done; what is evaluated costs nothing."""
    accuracies: dict[int, float] = {}

    def evaluate(self: Loop) -> Evaluations:
        accuracy = accuracies[self.learner.version]  # type: ignore[attr-defined]
        return Evaluations(
            sets={"": Evaluation(accuracy=accuracy, num_scored=8, num_failed=0, mean_length=1.0, groups=())}
        )

    monkeypatch.setattr(Loop, "evaluate", evaluate)
    return accuracies


def steps_on_disk(run_dir: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run_dir / "checkpoints").glob("step-*"))


def chosen(run_dir: Path) -> tuple[int, float]:
    best = json.loads((run_dir / "run.json").read_text())["best"]
    return best["step"], best["accuracy"]


@pytest.mark.parametrize("asynchronous", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_run_that_is_cut_and_goes_on_keeps_its_best_beside_its_last(
    asynchronous: str, tiny_recipe, tmp_path: Path, scripted: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted |= {0: 0.1, 1: 0.2, 2: 0.8, 3: 0.3, 4: 0.4, 5: 0.5}
    recipe = tiny_recipe("rl.steps=5", "checkpoint.every=1", f"checkpoint.asynchronous={asynchronous}", *SMALL)
    original = Loop.one_step

    def cut(self: Loop, step: int) -> dict[str, float]:
        if step == 4:
            raise RuntimeError("cut")
        return original(self, step)

    pages: list[Recipe] = []
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "one_step", cut)
        patch.setattr(report, "FIRST_PAGE_S", 0.0)
        patch.setattr(report, "write_report", lambda recipe, state: pages.append(recipe))
        with pytest.raises(RuntimeError, match="cut"):
            start_run(recipe, tmp_path)
    assert pages, "the report is kept up to date while steps are done"
    assert (recipe.run_dir / "report.html").is_file()
    assert steps_on_disk(recipe.run_dir) == [2, 4]
    assert chosen(recipe.run_dir) == (2, 0.8)
    summary = resume_run(recipe, recipe.run_dir)
    assert steps_on_disk(recipe.run_dir) == [2, 5]
    assert (summary["best_step"], summary["best_accuracy"], summary["accuracy_after"]) == (2, 0.8, 0.5)
    found = best_checkpoint(recipe.run_dir)
    assert found == (recipe.run_dir / "checkpoints" / "step-000002", 2)
    # More steps, whose last evaluation is the best: the one before it has no reason to stay.
    scripted |= {6: 0.6, 7: 0.9}
    summary = resume_run(recipe_of_run(recipe.run_dir, ["rl.steps=7"]), recipe.run_dir)
    assert (summary["best_step"], steps_on_disk(recipe.run_dir)) == (7, [7])
    assert best_checkpoint(recipe.run_dir)[1] == 7


def test_checkpoint_of_a_new_best_is_begun_where_none_is_due_and_the_commands_find_it(
    tiny_recipe, tmp_path: Path, scripted: dict[int, float]
) -> None:
    scripted |= {0: 0.1, 1: 0.9, 2: 0.3, 3: 0.2}
    recipe = tiny_recipe("rl.steps=3", "checkpoint.every=0", *SMALL)
    start_run(recipe, tmp_path)
    run_dir, best = recipe.run_dir, "step-000001"
    assert steps_on_disk(run_dir) == [1, 3]

    def called(*words: str) -> str:
        result = CliRunner().invoke(app, list(words), catch_exceptions=False, env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.output

    read = json.loads(called("eval", str(run_dir), "--best", "--json"))
    assert (read["step"], Path(read["checkpoint"]).name) == (1, best)
    assert best in called("export", str(run_dir), str(tmp_path / "exported"), "--best")
    newest = called("sample", str(run_dir), "1+2=", "--count", "1", "--max-new-tokens", "4")
    of_best = called("sample", str(run_dir), "1+2=", "--count", "1", "--max-new-tokens", "4", "--best")
    of_folder = called(
        "sample", str(run_dir / "checkpoints" / best), "1+2=", "--count", "1", "--max-new-tokens", "4", "--no-chat"
    )
    assert of_best.split()[-6:] == of_folder.split()[-6:]
    assert newest != of_best
    with pytest.raises(ValueError, match="one of --best"):
        called("eval", str(run_dir), "--best", "--step", "1")
    with pytest.raises(ValueError, match="--best go with a run"):
        called("eval", str(run_dir / "checkpoints" / best), "--best")


def test_best_of_a_run_that_never_beats_its_reference_is_the_reference(tiny_recipe) -> None:
    run_dir = folder(tiny_recipe(), "training", (2,), steps=2)
    state = RunState.load(run_dir)
    state.best = Best(step=0, accuracy=0.5)
    state.save(run_dir)
    assert best_checkpoint(run_dir) == (run_dir / "reference", 0)
    state.best = Best(step=3, accuracy=0.5)
    state.save(run_dir)
    with pytest.raises(CheckpointError, match="whole checkpoint of step 3; it has those of steps 2"):
        best_checkpoint(run_dir)
