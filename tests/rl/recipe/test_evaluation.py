import math
from typing import Any

import pytest
from pydantic import ValidationError

from samepath.rl.recipe.evaluation import EvaluationSettings
from samepath.rl.recipe.evaluation_rows import FileRows, HeldOutRows
from samepath.rl.recipe.file import dump_recipe, load_recipe
from samepath.rl.recipe.node import RecipeError
from samepath.rl.recipe.recipe import Recipe
from samepath.rollout.sampling_settings import SamplingSettings

TRAINING = SamplingSettings(
    temperature=0.7, top_k=5, top_p=0.8, min_p=0.1, max_new_tokens=9, stop_strings=("\n",), stop_token_ids=(3,)
)


def settings(**sets: dict[str, Any]) -> EvaluationSettings:
    return EvaluationSettings.model_validate({"sets": sets})


def test_samplings_keep_lengths_and_stops_and_take_their_own_temperature_and_top_p() -> None:
    expected = SamplingSettings(
        temperature=0.2, top_p=0.95, max_new_tokens=9, stop_strings=("\n",), stop_token_ids=(3,)
    )
    assert EvaluationSettings(temperature=0.2, top_p=0.95).samplings(TRAINING) == {"evaluation": expected}
    assert not EvaluationSettings().samplings(TRAINING)["evaluation"].truncates


def test_samplings_of_sets_are_their_own() -> None:
    both = settings(long={"sampling": {"max_new_tokens": 90, "temperature": 0.6, "top_k": 3}}, plain={})
    kept = {"stop_strings": ("\n",), "stop_token_ids": (3,)}
    assert both.samplings(TRAINING) == {
        "evaluation.sets.long.sampling": SamplingSettings(temperature=0.6, top_k=3, max_new_tokens=90, **kept),
        "evaluation.sets.plain.sampling": SamplingSettings(temperature=0.0, max_new_tokens=9, **kept),
    }


def test_named_sets_stand_in_the_recipes_order_and_the_short_form_is_one_without_a_name() -> None:
    assert list(settings(zebra={}, ant={}).named) == ["zebra", "ant"]
    ((name, plain),) = EvaluationSettings(samples=3, temperature=0.5).named.items()
    assert (name, plain.num_samples, plain.pass_at, plain.task) == ("", 3, (), HeldOutRows())


@pytest.mark.parametrize(
    ("one", "said"),
    [
        ({"num_samples": 2, "pass_at": [1, 3], "sampling": {"temperature": 1}}, "no k above num_samples=2.*got 3"),
        ({"pass_at": [1, 1]}, "each k once"),
        ({"pass_at": [0]}, "greater than or equal to 1"),
        ({"num_samples": 4}, "as many equal responses"),
        ({"task": {"kind": "flie", "path": "x"}}, "kind"),
        ({"task": {"kind": "reasoning_gym", "dataset": "chain_sum", "params": {"size": 3}}}, "set num_rows"),
        ({"samples": 4}, "samples"),
    ],
)
def test_set_that_cannot_be_measured_is_refused(one: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        settings(some=one)


@pytest.mark.parametrize("name", ["", "a b", "a/b", ".hidden", "größe", "x" * 65])
def test_set_name_that_no_metric_can_carry_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="match pattern|at most 64"):
        settings(**{name: {}})


@pytest.mark.parametrize("given", [{"samples": 4}, {"temperature": 0.6}, {"top_p": 0.9}])
def test_short_form_beside_sets_is_refused_where_it_would_say_nothing(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="says nothing beside sets"):
        EvaluationSettings.model_validate({**given, "sets": {"some": {}}})
    assert not math.isnan(EvaluationSettings.model_validate({"full_reward": 0.5, "sets": {"some": {}}}).full_reward)


def test_recipe_with_sets_loads_overrides_and_comes_back(tiny_recipe, tmp_path) -> None:
    made = tiny_recipe(
        "evaluation.sets.aime.task={kind: file, path: aime.jsonl, template: 'Q: {question}'}",
        "evaluation.sets.aime.num_samples=8",
        "evaluation.sets.aime.sampling.temperature=0.6",
        "evaluation.sets.aime.pass_at=[1, 8]",
        "evaluation.sets.own={}",
    )
    aime = made.evaluation.sets["aime"]
    assert isinstance(aime.task, FileRows)
    assert (aime.task.path, aime.num_samples, aime.pass_at) == ("aime.jsonl", 8, (1, 8))
    (tmp_path / "again.yaml").write_text(dump_recipe(made))
    assert load_recipe(tmp_path / "again.yaml", [], Recipe) == made


def test_recipe_with_two_sets_of_one_name_or_a_response_too_long_names_the_place(tiny_recipe, tmp_path) -> None:
    with pytest.raises(RecipeError, match="evaluation.sets.long.sampling.max_new_tokens=500 leaves no room"):
        tiny_recipe("evaluation.sets.long.sampling.max_new_tokens=500")
    text = dump_recipe(tiny_recipe("evaluation.sets.same={}"))
    (tmp_path / "twice.yaml").write_text(text.replace("  sets:\n", "  sets:\n    same: {}\n"))
    with pytest.raises(RecipeError, match="same.*twice|duplicate|already"):
        load_recipe(tmp_path / "twice.yaml", [], Recipe)
