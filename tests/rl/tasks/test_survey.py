"""What is said of a task's rows before any is asked: counts by kind, the first places, and where the reading ends."""

from collections.abc import Sequence

import pytest

from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.tasks.row import Task, TaskError, TaskRow
from samepath.rl.tasks.survey import check_first_prompts, survey


def rows(*texts: str) -> list[TaskRow]:
    return [
        TaskRow(row_id=f"train-{index}", question="", text=text, dataset="d", row=index, where=f"d.jsonl:{index + 1}")
        for index, text in enumerate(texts)
    ]


def task(train: Sequence[str], held_out: Sequence[str] = ("1=",)) -> Task:
    return Task(name="d", train=rows(*train), held_out=rows(*held_out), seed=0)


def test_survey_counts_each_kind_and_names_the_first_three_places(tokenizer: Tokenizer) -> None:
    """Prompts begin with a start token: `1=` has three tokens."""
    found = survey(
        task(["a", "1=", "b", "c", "12345678", "d"]),
        tokenizer,
        too_large=lambda tokens: ("prompt_too_long", f"{tokens} tokens") if tokens > 8 else ("", ""),
    )
    assert (found.total, found.num_read) == (7, 7)
    assert (found.usable_held_out, found.usable_train, found.longest) == (1, 1, 3)
    assert {kind: fault.count for kind, fault in found.faults.items()} == {
        "prompt_not_encodable": 4,
        "prompt_too_long": 1,
    }
    places = [place.partition(": ")[0] for place in found.faults["prompt_not_encodable"].places]
    assert places == ["d.jsonl:1", "d.jsonl:3", "d.jsonl:4"]
    assert "5 of 7 rows cannot be asked" in found.described()
    assert "prompt_too_long 1 (d.jsonl:5: 9 tokens)" in found.described()


def test_survey_row_that_cannot_be_made_is_counted(tokenizer: Tokenizer) -> None:
    class Unmade(list[TaskRow]):
        def __getitem__(self, index: int) -> TaskRow:  # type: ignore[override]
            raise TaskError(f"d train row {index}: no luck")

    found = survey(Task(name="d", train=Unmade(rows("1=", "2=")), held_out=rows("3="), seed=0), tokenizer)
    assert found.faults["row_not_made"].places == ["d train row 0: no luck", "d train row 1: no luck"]


def test_survey_ends_when_its_time_is_up_and_says_how_far_it_is(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock moves by 4 s a row: progress after 8 s, the end at 12 s."""
    now, heard = iter(range(0, 1000, 4)), []
    monkeypatch.setattr("samepath.rl.tasks.survey.time.monotonic", lambda: float(next(now)))
    found = survey(task(["1="] * 9), tokenizer, limit_s=12, progress=heard.append)
    assert (found.total, found.num_read) == (10, 2)
    assert heard == ["1 of 10 rows read"]


def test_check_first_prompts_is_a_sentence_while_some_can_be_asked(tokenizer: Tokenizer) -> None:
    assert check_first_prompts(task(["1=", "2="]), tokenizer) == ""
    assert "1 of 3 rows cannot be asked: prompt_not_encodable 1 (d.jsonl:2" in check_first_prompts(
        task(["1=", "a"]), tokenizer
    )


def test_check_first_prompts_reads_what_a_run_draws_first(tokenizer: Tokenizer) -> None:
    """Of a hundred rows sixty-four are looked at, in the order of the first epoch."""
    made = task(["1="] * 100)
    late = {made.train_row(index).row for index in range(64, 100)}
    texts = ["a" if index in late else "1=" for index in range(100)]
    assert check_first_prompts(task(texts), tokenizer) == ""


@pytest.mark.parametrize(("train", "held_out", "what"), [(["a"], ["1="], "training"), (["1="], ["a"], "held-out")])
def test_check_first_prompts_nothing_to_ask_is_refused(
    train: list[str], held_out: list[str], what: str, tokenizer: Tokenizer
) -> None:
    with pytest.raises(TaskError, match=rf"no {what} row that was looked at can be asked; 1 of 2 rows"):
        check_first_prompts(task(train, held_out), tokenizer)
