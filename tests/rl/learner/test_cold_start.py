"""What the cold start trains on at which step. The written answers show their options: `#5` is bare, `2+3=5;#5` is worked."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.learner.cold_start import ColdStart
from samepath.rl.learner.worked_batches import WorkedBatches
from samepath.rl.recipe.cold_start import ColdStartSettings
from samepath.rl.recipe.learner import LearnerSettings
from samepath.rl.tasks.row import Task, TaskRow
from tests.conftest import tiny_model

WORKED, BARE = {"direct_share": 0.0}, {"direct_share": 1.0}


def cold_start(tokenizer: Tokenizer, seed: int = 0, *, unusable: Sequence[int] = (), **settings: object) -> ColdStart:
    rows = [
        TaskRow(row_id=f"train-{index}", question="", text=f"{index}+3=", dataset="sums", row=index)
        for index in range(10)
    ]
    rows = [replace(row, text=f"{row.text} ×") if row.row in unusable else row for row in rows]
    task = Task(name="sums", train=rows, held_out=[], seed=0)
    made = ColdStartSettings.model_validate({"steps": 6, "batch_size": 3, "options": WORKED, **settings})
    worked = WorkedBatches(tokenizer, task, made, seed)
    return ColdStart(tiny_model(), worked, made, LearnerSettings())


def answers(start: ColdStart, step: int, tokenizer: Tokenizer) -> list[str]:
    """The trained tokens of each sequence as text."""
    segments = [entry.segment for entry in start.worked.batch(step, start.model.shape)]
    return [tokenizer.decode(segment.token_ids[segment.trained].tolist()) for segment in segments]


def kinds(start: ColdStart, tokenizer: Tokenizer) -> list[str]:
    """`worked` or `bare` for each step."""
    found = []
    for step in range(start.settings.steps):
        (kind,) = {"bare" if text.startswith("#") else "worked" for text in answers(start, step, tokenizer)}
        found.append(kind)
    return found


@pytest.mark.parametrize("late", [0, 1, 2, 6, 9])
def test_batch_late_options_hold_for_exactly_the_last_steps(late: int, tokenizer: Tokenizer) -> None:
    start = cold_start(tokenizer, late_steps=late, late_options=BARE)
    num_bare = min(late, 6)
    assert kinds(start, tokenizer) == ["worked"] * (6 - num_bare) + ["bare"] * num_bare


def test_batch_late_options_are_laid_over_the_others(tokenizer: Tokenizer) -> None:
    """The marker stays that of `options`, and what is not late has nothing of `late_options`."""
    start = cold_start(tokenizer, options={**WORKED, "marker": ";"}, late_steps=1, late_options=BARE)
    assert all(text.startswith(";") for text in answers(start, 5, tokenizer))
    assert all("=" in text for text in answers(start, 4, tokenizer))


def test_step_falls_by_its_own_schedule_over_all_steps(tokenizer: Tokenizer) -> None:
    """Linear to nothing over four steps of lr 0.5."""
    optimizer = {"lr": 0.5, "schedule": "linear", "min_lr_share": 0.0}
    start = cold_start(tokenizer, steps=4, optimizer=optimizer)
    assert [start.step(step)["cold_start/lr"] for step in range(2)] == [0.5, 0.375]


def test_batch_is_a_function_of_seed_and_step_alone(tokenizer: Tokenizer) -> None:
    start, other = cold_start(tokenizer, batch_size=8), cold_start(tokenizer, seed=1, batch_size=8)
    forwards = [answers(start, step, tokenizer) for step in range(6)]
    backwards = [answers(start, step, tokenizer) for step in reversed(range(6))]
    assert backwards[::-1] == forwards
    assert len({tuple(texts) for texts in forwards}) == 6
    assert answers(other, 0, tokenizer) != forwards[0]


def test_batch_trains_on_the_answer_and_its_end_but_not_on_the_prompt(tokenizer: Tokenizer) -> None:
    start = cold_start(tokenizer, batch_size=1, options=BARE)
    (entry,) = start.worked.batch(0, start.model.shape)
    token_ids, trained = entry.segment.token_ids, entry.segment.trained
    first = int(trained.argmax())
    assert trained[first:].all()
    assert tokenizer.decode(token_ids[:first].tolist()).endswith("+3=")
    assert token_ids[-1] == tokenizer.end_id
    assert entry.temperature == 1.0


def test_batch_passes_over_rows_that_cannot_be_encoded(tokenizer: Tokenizer) -> None:
    plain, start = cold_start(tokenizer, batch_size=8), cold_start(tokenizer, batch_size=8, unusable=(3,))
    third = tokenizer.encode("3+3=")

    def drawn(made: ColdStart, step: int) -> list[tuple[int, ...]]:
        return [tuple(entry.segment.token_ids.tolist()) for entry in made.worked.batch(step, made.model.shape)]

    sequences = [ids for step in range(6) for ids in drawn(start, step)]
    assert len(sequences) == 48
    assert third not in [ids[: len(third)] for ids in sequences]
    before = [ids[: len(third)] for ids in drawn(plain, 0)].index(third)
    assert sequences[:before] == drawn(plain, 0)[:before]


def test_batch_without_a_usable_row_says_why(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"101 draws one after the other gave no row for the cold start: "):
        answers(cold_start(tokenizer, unusable=range(10)), 0, tokenizer)
