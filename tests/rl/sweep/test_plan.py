"""Which runs a sweep makes, and what they are called."""

from pathlib import Path
from typing import Any

import pytest

from samepath.rl.recipe.node import RecipeError
from samepath.rl.sweep.plan import Sweep, SweepError, plan_sweep, values_of


@pytest.fixture
def planned(tiny_recipe: Any, tmp_path: Path) -> Any:
    """`planned("key=a,b", …)`."""
    tiny_recipe()

    def plan(*words: str) -> Sweep:
        return plan_sweep(tmp_path / "tiny.yaml", [f"runs_dir={tmp_path / 'runs'}", *words])

    return plan


def test_plan_is_the_product_with_seeds_innermost_and_names_say_what_differs(planned: Any) -> None:
    sweep = planned("optimizer.lr=1e-3,1e-4", "rl.steps=5", "rl.group_size=2,4", "seeds=2", "seed=3")
    assert [run.name for run in sweep.runs] == [
        f"tiny-lr_{lr}-group_size_{size}-seed_{seed}" for lr in ("1e-3", "1e-4") for size in (2, 4) for seed in (3, 4)
    ]
    last = sweep.runs[-1].recipe
    assert (last.optimizer.lr, last.rl.group_size, last.seed, last.rl.steps, last.name) == (
        1e-4,
        4,
        4,
        5,
        sweep.runs[-1].name,
    )
    assert sweep.folder.name == "tiny-sweep"


def test_plan_without_values_is_the_recipe_itself(planned: Any) -> None:
    (run,) = planned("rl.steps=5").runs
    assert (run.name, run.recipe.rl.steps) == ("tiny", 5)


def test_plan_names_keys_that_end_alike_in_full(planned: Any) -> None:
    sweep = planned("task.seed=1,2", "seed=1,2", "name=mine")
    assert sweep.runs[0].name == "mine-task.seed_1-seed_1"
    both = planned("sampling.top_p=0.5,0.9", "evaluation.top_p=0.5,1.0")
    assert both.runs[0].name == "tiny-sampling.top_p_0.5-evaluation.top_p_0.5"


def test_commas_in_brackets_and_quotes_are_no_borders(planned: Any) -> None:
    assert values_of("[1,2],{a: 3, b: 4},'x,y',5") == ["[1,2]", "{a: 3, b: 4}", "'x,y'", "5"]
    (run,) = planned("sampling.stop_strings=['a,b', c]").runs
    assert run.recipe.sampling.stop_strings == ("a,b", "c")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("seeds=0",), "seeds=0"),
        (("seeds=1,2",), "seed=a,b,c"),
        (("seeds=2", "seed=1,2"), "not both"),
        (("name=a,b",), "name is one for all"),
        (("rl.steps=1,1",), "each value once"),
        (("sampling.stop_strings=[a b],[a_b]",), "one name"),
    ],
)
def test_plan_that_cannot_be_made_says_why(words: tuple[str, ...], said: str, planned: Any) -> None:
    with pytest.raises(SweepError, match=said):
        planned(*words)


def test_plan_reads_every_recipe_before_any_is_run(planned: Any) -> None:
    with pytest.raises(RecipeError, match="group_size"):
        planned("rl.group_size=4,1")
