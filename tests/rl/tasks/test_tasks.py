import json
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from samepath.rl.recipe.file import dump_recipe, load_recipe
from samepath.rl.recipe.node import RecipeError
from samepath.rl.recipe.task import FileTask, TaskSettings
from samepath.rl.tasks.tasks import build_task


class Recipe(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    task: TaskSettings


FILE = "task:\n  kind: file\n  path: rows.jsonl\n  held_out_fraction: 0.5\n"
GYM = """
task:
  kind: reasoning_gym
  dataset: chain_sum
  params: {min_terms: 3, max_terms: 3}
  rewrite: {match: "problem: (.+) =", template: "{1}=", remove: [" "]}
"""


@pytest.fixture
def load(tmp_path):
    def load_text(text, *overrides):
        (tmp_path / "r.yaml").write_text(text)
        return load_recipe(tmp_path / "r.yaml", overrides, Recipe)

    return load_text


def test_build_task_kind_chooses_the_builder(load, tmp_path):
    lines = (json.dumps({"question": f"q{i}", "answer": i}) for i in range(20))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    assert build_task(load(FILE).task, tmp_path).name == "rows"
    pytest.importorskip("reasoning_gym")
    gym = load(GYM, "task.num_train=5", "task.num_held_out=2").task
    assert len(build_task(gym, Path("unused")).train) == 5


@pytest.mark.parametrize("text", [FILE, GYM])
def test_task_settings_survive_dump_and_load(load, text):
    recipe = load(text)
    assert load(dump_recipe(recipe)) == recipe


def test_task_settings_new_kind_drops_the_old_settings(load):
    assert load(GYM, "task.kind=file", "task.path=x", "task.held_out_fraction=0.5").task == FileTask(
        path="x", held_out_fraction=0.5
    )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("task.rewrite.match=(", "task.rewrite: match must be a regular expression"),
        ("task.template=x", "task: template must hold {question}"),
        ("task.params.seed=1", "task.params: params must not hold seed"),
        (
            "task.path=x",
            "task.path: unknown key; did you mean task.path (with task.kind=file) or task.path (with task.kind=hub)?",
        ),
        ("task.num_trian=1", "task.num_trian: unknown key; did you mean task.num_train?"),
    ],
)
def test_task_settings_problems_are_told_by_recipe_path(load, override, said):
    with pytest.raises(RecipeError) as caught:
        load(GYM, override)
    assert said in str(caught.value)
