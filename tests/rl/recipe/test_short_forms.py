"""Overrides and `extends` below the short forms of `model`, `engine` and `reward`, against the same recipe in its full form."""

from pathlib import Path

import pytest

from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.node import RecipeError
from samepath.rl.recipe.recipe import Recipe

QUICKSTART = Path("recipes/quickstart.yaml")
BASE = "name: short\ntask: {kind: file, path: rows.jsonl, held_out_fraction: 0.1}\nsampling: {top_p: 1.0}\nrl: {max_gap_at_lag_0: 0.5}\n"
TEXT = "model: some/model\nengine: vllm\nreward: samepath.rewards.math:answer\n"
PARTS = "model: some/model\nreward: {answer: samepath.rewards.math:answer, short: {function: 'm:g', weight: 0.1}}\n"


def loaded(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(BASE + text)
    return load_recipe(path, overrides, Recipe)


def test_override_sets_a_limit_beside_the_parts_of_the_quickstart() -> None:
    before, after = load_recipe(QUICKSTART, [], Recipe), load_recipe(QUICKSTART, ["reward.timeout_s=2"], Recipe)
    assert after.reward.timeout_s == 2
    assert after.reward.parts == before.reward.parts


@pytest.mark.parametrize("override", ["reward.answer.weight=2", "reward.parts.answer.weight=2"])
@pytest.mark.parametrize("text", [TEXT, PARTS])
def test_override_reaches_a_part_under_both_of_its_paths(tmp_path: Path, text: str, override: str) -> None:
    before, after = loaded(tmp_path, text), loaded(tmp_path, text, override)
    assert before.reward.parts["answer"].weight == 1
    assert after.reward.parts["answer"].weight == 2
    assert after.reward.parts["answer"].function == "samepath.rewards.math:answer"
    assert list(after.reward.parts) == list(before.reward.parts)


def test_override_adds_and_deletes_parts(tmp_path: Path) -> None:
    added = loaded(tmp_path, TEXT, "reward.timeout_s=3", "reward.short=m:g", "reward.long.function=m:h")
    assert {name: part.function for name, part in added.reward.parts.items()} == {
        "answer": "samepath.rewards.math:answer",
        "short": "m:g",
        "long": "m:h",
    }
    assert added.reward.timeout_s == 3
    assert list(loaded(tmp_path, PARTS, "~reward.answer").reward.parts) == ["short"]
    assert list(loaded(tmp_path, TEXT, "reward.timeout_s=3", "reward=m:g").reward.parts) == ["g"]


def test_override_reaches_below_a_model_and_an_engine_that_are_text(tmp_path: Path) -> None:
    recipe = loaded(
        tmp_path, TEXT, "model.expected={model_type: other}", "engine.max_sequences=512", "engine.dtype=float32"
    )
    assert (recipe.model.kind, recipe.model.path) == ("checkpoint", "some/model")  # type: ignore[union-attr]
    assert recipe.model.expected == {"model_type": "other"}  # type: ignore[union-attr]
    assert (recipe.engine.kind, recipe.engine.max_sequences, recipe.engine.dtype) == ("vllm", 512, "float32")  # type: ignore[union-attr]


def test_parts_stand_beside_limits_in_a_file(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, "model: m\nreward: {timeout_s: 4, answer: 'm:f', other: {function: 'm:g'}}\n")
    assert (recipe.reward.timeout_s, recipe.reward.main_part) == (4, "answer")
    assert recipe.reward.parts["other"].function == "m:g"


def test_extends_merges_into_text_and_replaces_by_text(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(BASE + TEXT)
    child = tmp_path / "child.yaml"
    child.write_text("extends: base.yaml\nreward: {timeout_s: 2}\nmodel: {expected: {model_type: other}}\n")
    recipe = load_recipe(child, [], Recipe)
    assert (recipe.reward.timeout_s, list(recipe.reward.parts)) == (2, ["answer"])
    assert recipe.model.path == "some/model"  # type: ignore[union-attr]
    child.write_text("extends: base.yaml\nreward: m:g\nengine: builtin\n")
    recipe = load_recipe(child, [], Recipe)
    assert (list(recipe.reward.parts), recipe.engine.kind) == (["g"], "builtin")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "reward.timeout=2",
            "reward.timeout: unknown key; did you mean reward.timeout_s? (in override 'reward.timeout=2')",
        ),
        (
            "reward.parts.answer.wieght=2",
            "reward.parts.answer.wieght: unknown key; did you mean reward.parts.answer.weight?",
        ),
        ("~reward.anwser", "nothing to delete, the recipe does not set reward.anwser"),
        ("engine.max_sequence=2", "engine.max_sequence: unknown key; did you mean engine.max_sequences?"),
    ],
)
def test_override_of_a_short_form_that_is_wrong_names_the_key(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        loaded(tmp_path, TEXT, override)
    assert said in str(caught.value)


def test_problem_in_a_short_form_keeps_the_path_that_was_written(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"reward\.answer\.weight: must be a valid number"):
        loaded(tmp_path, "model: m\nreward: {answer: {function: 'm:f', weight: much}}\n")
