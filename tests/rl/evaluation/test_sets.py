"""Which rows an evaluation set asks, and what it is refused for."""

import json
from pathlib import Path

import pytest

from samepath.rl.evaluation.sets import build_set, build_sets, check_sets, seen_in_training
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.tasks.row import Task, TaskError
from samepath.rl.tasks.tasks import build_task

ROWS = [{"question": f"{index}+1=", "answer": str(index + 1)} for index in range(6)]


def written(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def task(tmp_path: Path, recipe: Recipe) -> Task:
    return build_task(recipe.task, tmp_path)


@pytest.fixture
def file_recipe(tiny_recipe, tmp_path: Path):
    """A recipe whose task is a file of the test's folder."""
    written(tmp_path / "train.jsonl", ROWS)
    return lambda *overrides: tiny_recipe("task={kind: file, path: train.jsonl, held_out_fraction: 0.3}", *overrides)


def test_sets_have_the_held_out_rows_or_all_rows_of_their_own(file_recipe, tmp_path: Path) -> None:
    written(tmp_path / "hard.jsonl", [{"question": f"{index}-9=", "answer": "0"} for index in range(4)])
    recipe = file_recipe(
        "evaluation.sets.hard={max_prompts: 3, task: {kind: file, path: hard.jsonl, template: 'Q{question}'}}",
        "evaluation.sets.own={}",
        "evaluation.sets.sums={task: {kind: reasoning_gym, dataset: chain_sum, num_rows: 5}}",
    )
    trained = task(tmp_path, recipe)
    hard, own, sums = build_sets(recipe, trained, tmp_path)
    assert [row.text for row in hard.rows] == ["Q0-9=", "Q1-9=", "Q2-9="]
    assert [row.row_id for row in hard.rows] == ["hard-0", "hard-1", "hard-2"]
    assert list(own.rows) == trained.held_out
    assert len({row.canonical for row in sums.rows}) == 5
    assert [one.seen for one in (hard, own, sums)] == [0, 0, 0]
    assert list(seen_in_training((hard, own, sums))) == []


def test_generated_set_of_the_tasks_seed_asks_what_the_task_holds_out(tiny_recipe, tmp_path: Path) -> None:
    """So that nothing of it is trained on."""
    recipe = tiny_recipe()
    held_out = task(tmp_path, recipe).held_out
    settings = recipe.task.model_dump(include={"kind", "dataset", "params", "rewrite"}) | {"num_rows": 6}
    with_set = tiny_recipe(f"evaluation.sets.again={json.dumps({'task': settings})}")
    (again,) = build_sets(with_set, task(tmp_path, with_set), tmp_path)
    assert [row.text for row in again.rows] == [row.text for row in held_out[:6]]


def test_set_that_asks_what_is_trained_on_is_said(file_recipe, tmp_path: Path) -> None:
    recipe = file_recipe("evaluation.sets.again={task: {kind: file, path: train.jsonl}}")
    trained = task(tmp_path, recipe)
    assert 0 < len(trained.train) < len(ROWS)
    (again,) = build_sets(recipe, trained, tmp_path)
    assert again.seen == len(trained.train)
    (said,) = seen_in_training((again,))
    assert said.startswith(f"{again.seen} of 6 prompts of evaluation.sets.again are training rows too")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{kind: file, path: empty.jsonl}", "empty.jsonl must have at least one row"),
        ("{kind: file, path: trian.jsonl}", "trian.jsonl does not exist.*train.jsonl"),
        ("{kind: reasoning_gym, dataset: chain_sun}", "reasoning_gym has.*chain_sum"),
        ("{kind: file, path: train.jsonl, columns: {answer: gold}}", "no column 'gold'"),
    ],
)
def test_set_without_rows_or_of_an_unknown_task_is_refused_by_name(
    settings: str, said: str, file_recipe, tmp_path: Path
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    recipe = file_recipe(f"evaluation.sets.some.task={settings}")
    with pytest.raises(TaskError, match=rf"(?s)^evaluation\.sets\.some: .*{said}"):
        build_set(recipe, "some", task(tmp_path, recipe), tmp_path)


def test_set_of_which_no_row_can_be_encoded_is_refused_and_one_bad_row_is_not(
    file_recipe, tmp_path: Path, tokenizer
) -> None:
    written(tmp_path / "bad.jsonl", [{"question": "äöü", "answer": "1"}])
    written(tmp_path / "half.jsonl", [{"question": "äöü", "answer": "1"}, ROWS[0]])
    recipe = file_recipe(
        "evaluation.sets.half.task={kind: file, path: half.jsonl}",
        "evaluation.sets.bad.task={kind: file, path: bad.jsonl}",
    )
    half, bad = build_sets(recipe, task(tmp_path, recipe), tmp_path)
    check_sets([half], tokenizer)
    with pytest.raises(TaskError, match=r"evaluation\.sets\.bad: no row can be asked; 1 of 1 rows"):
        check_sets([half, bad], tokenizer)
