from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from samepath.rl.recipe.file import dump_recipe, load_recipe, recipe_schema
from samepath.rl.recipe.node import RecipeError


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Adam(Settings):
    kind: Literal["adam"] = "adam"
    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.99)


class Muon(Settings):
    kind: Literal["muon"] = "muon"
    momentum: float = 0.9
    steps: int | Literal["auto"] = "auto"


class Reward(Settings):
    name: str = Field(min_length=1, description="Import path of the function.")
    weight: float = 1.0


class Rl(Settings):
    group_size: int = Field(default=8, ge=2)
    batch_size: int = 16
    keep_routing: Literal["off", "on", "auto"] = "auto"

    @model_validator(mode="after")
    def _check(self):
        if self.batch_size % self.group_size:
            raise ValueError(f"batch_size must be a multiple of group_size; got {self.batch_size}")
        return self


class Recipe(Settings):
    name: str = "run"
    output: Path = Path("out")
    rl: Rl = Rl()
    optimizer: Annotated[Adam | Muon, Field(discriminator="kind")] = Adam()
    rewards: tuple[Reward, ...] = ()
    params: dict[str, JsonValue] = {}
    temperature: float = 1.0
    flag: bool = False


@pytest.fixture
def write(tmp_path):
    def write_file(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def problems(path, *overrides):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides, Recipe)
    return str(caught.value).replace(str(Path(path).parent) + "/", "").split("\n  ")


def test_load_recipe_file_and_overrides_make_the_model(write):
    path = write(
        "a.yaml", "rl:\n  group_size: 4\n  keep_routing: off\nrewards:\n- name: x\noptimizer: {kind: adam, lr: 1e-5}\n"
    )
    got = load_recipe(str(path), ["rl.batch_size=8", "rewards[0].weight=2", "params.a=0123"], Recipe)
    assert got == Recipe(
        rl=Rl(group_size=4, batch_size=8, keep_routing="off"),
        rewards=(Reward(name="x", weight=2.0),),
        optimizer=Adam(lr=1e-5),
        params={"a": 123},
    )


def test_load_recipe_empty_file_gives_the_defaults(write):
    assert load_recipe(write("a.yaml", "\ufeff# nothing\n"), [], Recipe) == Recipe()


def test_load_recipe_environment_text_fills_numbers(write, monkeypatch):
    monkeypatch.setenv("SP_GROUP", "4")
    path = write("a.yaml", "rl: {group_size: '${env:SP_GROUP}'}\ntemperature: ${env:SP_NONE:1e-1}\n")
    got = load_recipe(path, ["name=run-${env:SP_GROUP}"], Recipe)
    assert (got.rl.group_size, got.temperature, got.name) == (4, 0.1, "run-4")


def test_load_recipe_extends_merges_deeply_and_relative_to_each_file(write):
    write("grand.yaml", "name: grand\nrl: {group_size: 4, batch_size: 32}\nrewards: [{name: a}, {name: b}]\n")
    write("sub/base.yaml", "extends: ../grand.yaml\nrl: {batch_size: 64}\n")
    got = load_recipe(write("a.yaml", "extends: sub/base.yaml\nrewards: [{name: c}]\n"), [], Recipe)
    assert got == Recipe(name="grand", rl=Rl(group_size=4, batch_size=64), rewards=(Reward(name="c"),))


def test_load_recipe_other_kind_than_the_base_drops_its_keys(write):
    write("base.yaml", "optimizer: {kind: adam, lr: 0.5}\n")
    child = write("a.yaml", "extends: base.yaml\noptimizer: {kind: muon, momentum: 0.1}\n")
    assert load_recipe(child, [], Recipe).optimizer == Muon(momentum=0.1)
    assert load_recipe(child, ["optimizer.kind=adam"], Recipe).optimizer == Adam()


def test_load_recipe_extending_in_a_circle_is_refused(write):
    write("b.yaml", "extends: ./a.yaml\n")
    path = write("a.yaml", "name: x\nextends: b.yaml\n")
    assert "b.yaml:1: recipes may not extend each other in a circle: a.yaml -> b.yaml -> a.yaml" in problems(path)[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("extends: [b.yaml]", "a.yaml:1: extends must name one file; got ['b.yaml']"),
        ("extends:", "a.yaml:1: extends must name one file; got None"),
        ("name: 1\nextends: quikstart.yml", "(extended by a.yaml); beside it: quickstart.yaml."),
        ("- 1", "a.yaml:1: a recipe must be a mapping (key: value); got [1]"),
        ("name: a\nname: b", "a.yaml:2: key 'name' stands twice, first in line 1"),
    ],
)
def test_load_recipe_bad_file_says_where_and_what(write, text, said):
    write("quickstart.yaml", "")
    assert said in problems(write("a.yaml", text))[0]


def test_load_recipe_missing_file_lists_similar_ones(write, tmp_path):
    write("quickstart.yaml", "")
    write("notes.txt", "")
    assert problems(tmp_path / "quikstart.yaml") == [
        "recipe quikstart.yaml does not exist; beside it: quickstart.yaml."
    ]
    assert "beside it: quickstart.yaml" in problems(tmp_path / "zzz.yaml")[0]
    assert "does not exist either" in problems(tmp_path / "no" / "a.yaml")[0]


def test_load_recipe_folder_or_bytes_are_recipe_errors(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"name: \xff")
    assert "must be UTF-8 text" in problems(tmp_path / "a.yaml")[0]
    assert "cannot be read" in problems(tmp_path)[0]


def test_load_recipe_lists_every_problem_with_path_place_and_value(write):
    write("base.yaml", "temperature: hot\n")
    path = write(
        "a.yaml",
        "extends: base.yaml\nrl:\n  group_size: 1\n  lr: 3\n  keep_routing: of\nrewards:\n- weight: 1\n- 5\n"
        "optimizer:\n  kind: muon\n  steps: many\n  lr: 1\n",
    )
    head, *lines = problems(path, "nam=x", "output=[1]", "rewards[0].wait=2")
    assert head == "11 problems in recipe a.yaml:"
    assert set(lines) == {
        'temperature: must be a valid number; got "hot" (base.yaml:1)',
        "rl.group_size: must be greater than or equal to 2; got 1 (a.yaml:3)",
        "rl.lr: unknown key; did you mean optimizer.lr (with optimizer.kind=adam)? (a.yaml:4)",
        "rl.keep_routing: must be 'off', 'on' or 'auto'; did you mean off?; got \"of\" (a.yaml:5)",
        "rewards.0.name: must be given: Import path of the function. (a.yaml:7)",
        "rewards.0.wait: unknown key; did you mean rewards.0.weight? (in override 'rewards[0].wait=2')",
        "rewards.1: must be a mapping (key: value); got 5 (a.yaml:8)",
        "optimizer.steps: must be a valid integer or 'auto'; got \"many\" (a.yaml:11)",
        "optimizer.lr: unknown key; did you mean optimizer.lr (with optimizer.kind=adam)? (a.yaml:12)",
        "nam: unknown key; did you mean name? (in override 'nam=x')",
        "output: must be a path; got [1] (in override 'output=[1]')",
    }


def test_load_recipe_key_of_another_section_is_pointed_to(write):
    assert problems(write("a.yaml", "rl: {lr: 1}\n"))[1] == "rl.lr: unknown key; did you mean optimizer.lr? (a.yaml:1)"


def test_load_recipe_key_like_nothing_lists_what_is_known(write):
    assert problems(write("a.yaml", "rl: {zzzz: 1}\n"))[1] == (
        "rl.zzzz: unknown key; known here: batch_size, group_size, keep_routing (a.yaml:1)"
    )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.kind=mun", 'optimizer.kind: must be one of adam, muon; did you mean muon?; got "mun"'),
        ("optimizer={lr: 1}", "optimizer.kind: must be one of adam, muon"),
        ("optimizer=adam", 'optimizer: must be a mapping (key: value); got "adam"'),
        ("rewards={a: 1}", 'rewards: must be a list; got {"a": 1}'),
        ("rl.batch_size=9", "rl: batch_size must be a multiple of group_size; got 9"),
        ("name=5", "name: must be a valid string; got 5"),
        ("name=", "name: must be a valid string; got null"),
        ("name=[" + "1, " * 100 + "]", "…"),
    ],
)
def test_load_recipe_bad_override_is_explained_and_named(write, override, said):
    (line,) = problems(write("a.yaml", "rl: {group_size: 8}\n"), override)[1:]
    assert said in line
    assert ("(in override" in line) != override.startswith("rl.batch")
    assert len(line) < 500


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20) | st.sampled_from(
    ["${env:HOME}", "$${env:", "off", "1"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
RECIPES = st.builds(
    Recipe,
    name=TEXT,
    output=st.sampled_from([Path("a/b"), Path("on"), Path("12")]),
    rl=st.builds(Rl, group_size=st.just(4), batch_size=st.integers(1, 9).map(lambda n: 4 * n)),
    optimizer=st.builds(Adam, lr=st.floats(min_value=0, exclude_min=True), betas=st.tuples(FINITE, FINITE))
    | st.builds(Muon, momentum=FINITE, steps=st.integers() | st.just("auto")),
    rewards=st.lists(st.builds(Reward, name=TEXT.filter(bool), weight=FINITE), max_size=3).map(tuple),
    params=st.dictionaries(TEXT, JSON, max_size=3),
    temperature=FINITE,
    flag=st.booleans(),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(recipe=RECIPES)
def test_dump_recipe_any_recipe_loads_back_equal(recipe, tmp_path):
    path = tmp_path / "dumped.yaml"
    path.write_bytes(dump_recipe(recipe).encode())
    again = load_recipe(path, [], Recipe)
    assert again == recipe
    assert dump_recipe(again) == dump_recipe(recipe)


def test_recipe_schema_describes_every_section_and_extends():
    schema = recipe_schema(Recipe)
    assert list(schema["properties"])[:2] == ["extends", "name"]
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Rl"]["properties"]["group_size"]["minimum"] == 2
    assert schema["properties"]["optimizer"]["discriminator"]["propertyName"] == "kind"
