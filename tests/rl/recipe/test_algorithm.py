"""Steps or epochs: exactly one, and what an epoch is in steps."""

from pathlib import Path

import pytest

from samepath.rl.preparation import prepare
from samepath.rl.recipe.algorithm import AlgorithmSettings
from samepath.rl.recipe.file import dump_recipe, load_recipe
from samepath.rl.recipe.node import RecipeError
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.resume import ResumeError, plan_resume
from samepath.rl.run_folder import recipe_of_run
from samepath.rl.run_state import RunState


@pytest.mark.parametrize(
    ("epochs", "rows", "prompts", "steps"),
    [
        (1, 64, 16, 4),
        (1, 65, 16, 5),
        (3, 10, 4, 8),
        (0.5, 64, 16, 2),
        # In floating point 0.1 · 70 is a little more than 7, and 1.1 · 10 a little more than 11.
        (0.1, 70, 7, 1),
        (1.1, 10, 1, 11),
        (0.001, 1, 16, 1),
    ],
)
def test_epochs_are_as_many_steps_as_ask_every_row_so_often(epochs: float, rows: int, prompts: int, steps: int) -> None:
    settings = AlgorithmSettings(epochs=epochs, prompts_per_step=prompts, updates_per_rollout=1)
    assert settings.trains
    counted = settings.counted(rows)
    assert (counted.steps, counted.epochs) == (steps, 0)
    assert counted.counted(10 * rows) == counted


def test_steps_alone_stay_and_neither_means_the_default() -> None:
    assert AlgorithmSettings(steps=7).counted(1000).steps == 7
    assert (AlgorithmSettings().steps, AlgorithmSettings(epochs=2).steps) == (100, 0)
    assert not AlgorithmSettings(steps=0).trains


def test_steps_and_epochs_together_are_refused_with_what_to_take_out(tiny_recipe) -> None:
    """The recipe has steps, and an override asks for epochs."""
    with pytest.raises(RecipeError, match=r"give one of steps and epochs; got 3 steps and 2 epochs.*~rl\.steps"):
        tiny_recipe("rl.epochs=2")
    assert tiny_recipe("rl.epochs=2", "~rl.steps").rl.epochs == 2


def test_recipe_with_epochs_is_checked_as_one_that_trains_and_comes_back(tiny_recipe, tmp_path: Path) -> None:
    made = tiny_recipe("rl.epochs=1.5", "~rl.steps")
    (tmp_path / "again.yaml").write_text(dump_recipe(made))
    assert load_recipe(tmp_path / "again.yaml", [], Recipe) == made
    with pytest.raises(RecipeError, match="temperature must be above 0 for training"):
        tiny_recipe("rl.epochs=1", "~rl.steps", "sampling={temperature: 0}")


def test_prepare_counts_the_tasks_rows(tiny_recipe, tmp_path: Path) -> None:
    """64 training rows, 4 prompts a step."""
    prepared = prepare(tiny_recipe("rl.epochs=1.5", "~rl.steps"), tmp_path)
    assert (prepared.recipe.rl.steps, prepared.recipe.rl.epochs) == (24, 0)
    assert prepare(tiny_recipe(), tmp_path).recipe == tiny_recipe()


def test_prepare_refuses_a_weight_for_a_dataset_that_is_not_there(tiny_recipe, tmp_path) -> None:
    prepare(tiny_recipe("rl.objective.kl.beta_by_dataset={chain_sum: 0.1}"), tmp_path)
    with pytest.raises(ValueError, match="got 'chain_sun'.*chain_sum"):
        prepare(tiny_recipe("rl.objective.kl.beta_by_dataset={chain_sun: 0.1}"), tmp_path)


def test_resume_counts_steps(tiny_recipe) -> None:
    run_dir = tiny_recipe().run_dir
    run_dir.mkdir(parents=True)
    (run_dir / "recipe.yaml").write_text(dump_recipe(tiny_recipe()))
    RunState().save(run_dir)
    with pytest.raises(ResumeError, match=r"goes on counts steps.*Set rl\.steps"):
        plan_resume(recipe_of_run(run_dir, ["rl.epochs=2", "~rl.steps"]), run_dir, None)
