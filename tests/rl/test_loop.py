"""The loop without its parts: which seeds a step asks with, and after which steps it evaluates and saves."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.alerts.alerts import Alerts
from samepath.rl.evaluation.held_out import Evaluation, Evaluations
from samepath.rl.loop import Loop
from samepath.rl.overlapped_loop import OverlappedLoop
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.report.progress import ProgressDisplay
from samepath.rl.run_state import RunState
from samepath.rl.saving import Saving
from samepath.rl.tasks.row import Task, TaskRow
from samepath.rl.tracking.sink import Sink
from samepath.rl.tracking.tracker import Tracker


class Book(Sink):
    """Keeps the metrics and checkpoints that it is given."""

    def __init__(self) -> None:
        self.metrics: dict[int, dict[str, float]] = {}
        self.checkpoints: list[int] = []
        self.best: list[tuple[int, str, float]] = []

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self.metrics[step] = dict(metrics)

    def log_checkpoint(self, step: int, path: Path) -> None:
        assert path.name == f"step-{step:06d}"
        self.checkpoints.append(step)

    def log_best(self, step: int, path: Path, accuracy: float) -> None:
        self.best.append((step, path.name, accuracy))


class Saver:
    """A learner that only saves, at once."""

    def save(self, step: int, best: int | None = None) -> Path:
        return Path(f"step-{step}")

    def saved(self, step: int, *, wait: bool) -> bool:
        return True


class EmptyLoop(Loop):
    """Steps and evaluations cost nothing and give the number of the step."""

    def one_step(self, step: int) -> dict[str, float]:
        return {"reward/mean": float(step)}

    def evaluate(self) -> Evaluations:
        result = Evaluation(accuracy=0.25, num_scored=4, num_failed=0, mean_length=1.0, groups=())
        return Evaluations(sets={"": result})


def loop(kind: type[Loop], recipe: Recipe, tokenizer: Tokenizer, sink: Sink | None = None) -> Loop:
    row = TaskRow(row_id="train-0", question="", text="1+2=", dataset="sums", row=0)
    absent: Any = None
    saver: Any = Saver()
    tracker, display = Tracker([] if sink is None else [sink]), ProgressDisplay(total_steps=recipe.rl.steps)
    recipe.run_dir.mkdir(parents=True, exist_ok=True)
    return kind(
        recipe=recipe,
        task=Task(name="sums", train=[row], held_out=[], seed=0),
        sets=(),
        tokenizer=tokenizer,
        learner=saver,
        pool=absent,
        scorer=absent,
        saving=Saving(recipe=recipe, learner=saver, tracker=tracker, display=display, state=RunState(), newest=-1),
        tracker=tracker,
        display=display,
        alerts=Alerts(recipe, tracker),
    )


@pytest.mark.parametrize(("every", "wanted"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [2, 4]), (3, [3]), (6, [])])
def test_run_evaluates_after_every_so_many_steps_and_leaves_the_last_to_the_end(
    every: int, wanted: list[int], tiny_recipe, tokenizer: Tokenizer
) -> None:
    book, seen = Book(), []
    made = loop(EmptyLoop, tiny_recipe("rl.steps=6", f"evaluation.every={every}"), tokenizer, book)
    made.run(0, lambda step, metrics: seen.append((step, metrics["reward/mean"])))
    assert seen == [(step + 1, step) for step in range(6)]
    assert sorted(book.metrics) == [1, 2, 3, 4, 5, 6]
    assert [step for step, metrics in book.metrics.items() if "eval/accuracy" in metrics] == wanted


def test_run_that_goes_on_keeps_the_numbers_of_its_steps(tiny_recipe, tokenizer: Tokenizer) -> None:
    book = Book()
    recipe = tiny_recipe("rl.steps=6", "evaluation.every=2", "checkpoint.every=3")
    loop(EmptyLoop, recipe, tokenizer, book).run(3, lambda step, metrics: None)
    assert list(book.metrics) == [4, 5, 6]
    assert [step for step, metrics in book.metrics.items() if "eval/accuracy" in metrics] == [4]
    assert book.checkpoints == [4, 6], "step 4 has the first accuracy, and so the best"


@pytest.mark.parametrize(("every", "wanted"), [(0, []), (2, [2, 4, 6])])
def test_run_saves_after_every_so_many_steps(every: int, wanted: list[int], tiny_recipe, tokenizer: Tokenizer) -> None:
    book = Book()
    recipe = tiny_recipe("rl.steps=6", f"checkpoint.every={every}")
    loop(EmptyLoop, recipe, tokenizer, book).run(0, lambda step, metrics: None)
    assert book.checkpoints == wanted


def test_requests_repeat_and_every_step_prompt_sample_and_run_has_its_own_seed(
    tiny_recipe, tokenizer: Tokenizer
) -> None:
    """The task has one row, so each request is the same prompt: only the seeds tell them apart."""
    first = loop(Loop, tiny_recipe(), tokenizer)
    assert first.requests(1) == first.requests(1)
    asked = [
        request
        for made in (first, loop(Loop, tiny_recipe("seed=1"), tokenizer))
        for step in range(3)
        for request in made.requests(step)
    ]
    assert {request.prompt.prompt_id for request in asked} == {"train-0"}
    seeds = [seed for request in asked for seed in request.seeds]
    assert len(seeds) == 2 * 3 * 4 * 4
    assert len(set(seeds)) == len(seeds)
    assert [request.group_id for request in first.requests(2)] == ["s3-g0", "s3-g1", "s3-g2", "s3-g3"]


class LateLoop(OverlappedLoop):
    """Steps cost nothing; their rollouts take a moment to be written, but for `broken_step`, which cannot be."""

    written: ClassVar[list[int]] = []
    broken_step: ClassVar[int] = -1

    def one_step(self, step: int) -> dict[str, float]:
        def write() -> None:
            time.sleep(0.05)
            if step == self.broken_step:
                raise OSError("the disk is gone")
            self.written.append(step + 1)

        self.keep(write)
        return {"reward/mean": 0.0}


def test_overlapped_run_writes_rollouts_beside_the_next_step_and_before_a_checkpoint(
    tiny_recipe, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LateLoop, "written", [])
    seen: dict[int, list[int]] = {}
    recipe = tiny_recipe("rl.steps=5", "checkpoint.every=2", "evaluation.every=0")
    made = loop(LateLoop, recipe, tokenizer)
    made.run(0, lambda step, metrics: seen.update({step: list(LateLoop.written)}))
    assert LateLoop.written == [1, 2, 3, 4, 5]
    assert (seen[2], seen[4]) == ([1, 2], [1, 2, 3, 4])
    assert (seen[1], seen[3]) == ([], [1, 2])


def test_overlapped_run_ends_with_what_the_writing_raised(
    tiny_recipe, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LateLoop, "broken_step", 1)
    made = loop(LateLoop, tiny_recipe("rl.steps=4", "evaluation.every=0"), tokenizer)
    with pytest.raises(OSError, match="the disk is gone"):
        made.run(0, lambda step, metrics: None)
