import json
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from samepath.rl.recipe.task import ReasoningGymTask
from samepath.rl.tasks import reasoning_gym as task_reasoning_gym
from samepath.rl.tasks.reasoning_gym import build_reasoning_gym
from samepath.rl.tasks.row import TaskError, canonical_text

pytest.importorskip("reasoning_gym")

TWO_DIGITS = {"min_terms": 3, "max_terms": 3, "min_digits": 2, "max_digits": 2}
ONE_DIGIT = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
REWRITE = {"match": "problem: (.+) =", "template": "{1}=", "remove": (" ",)}


def build(**more):
    return build_reasoning_gym(ReasoningGymTask(**{"dataset": "chain_sum", "params": TWO_DIGITS, **more}))


def test_build_reasoning_gym_chain_sum_rows_are_sums_with_their_answers():
    task = build(num_train=50, num_held_out=20, rewrite=REWRITE, template="{question}")
    assert (len(task.train), len(task.held_out), task.name) == (50, 20, "chain_sum")
    for row in [*task.train, *task.held_out]:
        assert row.question.startswith("State the final answer to the following arithmetic problem: ")
        expression = row.text.removesuffix("=")
        terms = expression.replace("-", "+").split("+")
        assert [len(term) for term in terms] == [2, 2, 2]
        assert row.answer["answer"] == str(eval(expression))
        assert row.answer["dataset"] == "chain_sum"
        assert row.answer["config"] == TWO_DIGITS
        assert row.answer["entry"]["question"] == row.question
        assert json.loads(json.dumps(row.answer))["entry"]["metadata"]["num_terms"] == 3
    assert task.train[7].row_id == "train-7"
    assert task.held_out[7].row_id == "held-out-7"


def test_build_reasoning_gym_default_text_is_the_question():
    row = build(num_train=1, num_held_out=1).train[0]
    assert row.text == row.question


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**40), num_held_out=st.integers(1, 60), num_train=st.integers(1, 120))
@example(seed=1, num_held_out=18, num_train=1)
def test_build_reasoning_gym_splits_are_disjoint_distinct_and_alike(seed, num_held_out, num_train):
    # 200 different texts, of which up to 60 are held out: many first draws collide.
    more = {"params": ONE_DIGIT, "seed": seed, "num_held_out": num_held_out, "num_train": num_train, "rewrite": REWRITE}
    task = build(**more)
    held_out = {canonical_text(row.text) for row in task.held_out}
    assert len(held_out) == num_held_out
    train = list(task.train)
    assert len(train) == num_train
    assert not held_out & {canonical_text(row.text) for row in train}
    again = build(**more)
    assert list(again.train) == train
    assert again.held_out == task.held_out
    assert [again.train_row(i) for i in range(5)] == [task.train_row(i) for i in range(5)]


def test_build_reasoning_gym_neighbouring_seeds_share_no_run_of_rows():
    first, second = (build(num_train=100, num_held_out=1, seed=seed) for seed in (0, 1))
    assert len({row.text for row in first.train} & {row.text for row in second.train}) < 10


def test_train_rows_index_outside_is_refused():
    train = build(num_train=3, num_held_out=1).train
    for index in (-1, 3):
        with pytest.raises(IndexError, match=r"0 … 2"):
            train[index]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"dataset": "chain_smu"}, "got 'chain_smu'; did you mean chain_sum\\?"),
        ({"params": {"min_term": 3}}, "chain_sum has no parameter 'min_term'; did you mean min_terms\\? .*max_digits"),
        (
            {"params": {"min_terms": 5, "max_terms": 3}},
            "chain_sum does not take params .*max_terms must be >= min_terms",
        ),
        ({"params": {"min_terms": "three"}}, "chain_sum does not take params"),
        ({"dataset": "codeio", "params": {}}, "codeio cannot be a task, it gives other rows each time"),
        ({"dataset": "list_functions", "params": {}}, "list_functions cannot be a task"),
        ({"dataset": "composite", "params": {}}, "composite cannot be a task"),
        ({"params": ONE_DIGIT, "num_held_out": 300}, "draws gave 200 of 300. Lower num_held_out"),
        (
            {"params": ONE_DIGIT, "num_held_out": 180},
            "of 32 training rows .* were held out. Lower num_held_out \\(180\\)",
        ),
        ({"rewrite": {"match": "nothing"}}, "chain_sum held-out row 0: rewrite.match 'nothing' must match"),
    ],
)
def test_build_reasoning_gym_bad_settings_say_what_to_do(more, said):
    with pytest.raises(TaskError, match=said):
        build(**more)


def test_build_reasoning_gym_dataset_without_answers_warns():
    with pytest.warns(UserWarning, match="graph_color stores no answer"):
        task = build(dataset="graph_color", params={}, num_train=2, num_held_out=1)
    assert task.train[0].answer["answer"] == ""


def test_build_reasoning_gym_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(TaskError, match=r"pip install samepath\[gym\]"):
        build()


def test_build_reasoning_gym_hash_dependent_dataset_needs_a_fixed_hash_seed():
    code = (
        "from samepath.rl.tasks.reasoning_gym import *\n"
        "task = build_reasoning_gym(ReasoningGymTask(dataset='isomorphic_strings', num_train=3, num_held_out=2))\n"
        "print([row.text for row in [*task.train, *task.held_out]])"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True)
        for seed in ("0", "0", "1")
    ]
    assert runs[0].stdout == runs[1].stdout != ""
    assert "start Python with PYTHONHASHSEED=0" in runs[2].stderr


def test_module_import_does_not_load_reasoning_gym():
    code = f"import sys, {task_reasoning_gym.__name__}; assert 'reasoning_gym' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
