from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samepath.rl.recipe.node import RecipeError, plain
from samepath.rl.recipe.overrides import with_overrides
from samepath.rl.recipe.yaml_text import dump_yaml, parse_yaml

RECIPE = """
rl: {group_size: 4, lr: 0.1}
rewards:
  - {name: a, weight: 1}
  - {name: b}
optimizer: {kind: adam, betas: [1, 2], inner: {x: 1}}
empty:
"""


def overridden(*overrides, recipe=RECIPE):
    return plain(with_overrides(parse_yaml(recipe, lambda line: f"r.yaml:{line}"), overrides))


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("rl.group_size=8", "rl", {"group_size": 8, "lr": 0.1}),
        ("rl.lr=1e-5", "rl", {"group_size": 4, "lr": 1e-5}),
        ("rl={a: off}", "rl", {"a": "off"}),
        ("rl.a.b=x=y", "rl", {"group_size": 4, "lr": 0.1, "a": {"b": "x=y"}}),
        ("new=[1, 0123]", "new", [1, 123]),
        ("new=", "new", None),
        ('new=""', "new", ""),
        ("empty.a=1", "empty", {"a": 1}),
        ("rewards.0.weight=2", "rewards", [{"name": "a", "weight": 2}, {"name": "b"}]),
        ("rewards[1].weight=2", "rewards", [{"name": "a", "weight": 1}, {"name": "b", "weight": 2}]),
        ("rewards[1]=7", "rewards", [{"name": "a", "weight": 1}, 7]),
        ("~rl.lr", "rl", {"group_size": 4}),
        ("~rewards[0]", "rewards", [{"name": "b"}]),
        ("~rewards.0.weight", "rewards", [{"name": "a"}, {"name": "b"}]),
        ("optimizer.betas.1=3", "optimizer", {"kind": "adam", "betas": [1, 3], "inner": {"x": 1}}),
    ],
)
def test_with_overrides_one_override_changes_one_value(override, key, value):
    expected = {**overridden(), key: value}
    assert overridden(override) == expected


def test_with_overrides_deleting_a_key_removes_it():
    assert "optimizer" not in overridden("~optimizer")


def test_with_overrides_new_kind_drops_what_the_file_said_and_keeps_overrides():
    got = overridden("optimizer.inner.y=2", "optimizer.lr=3", "optimizer.kind=muon", "optimizer.momentum=4")
    assert got["optimizer"] == {"inner": {"y": 2}, "lr": 3, "kind": "muon", "momentum": 4}


def test_with_overrides_same_kind_keeps_all():
    assert overridden("optimizer.kind=adam") == overridden()


def test_with_overrides_later_one_wins():
    assert overridden("rl.lr=1", "rl.lr=2")["rl"]["lr"] == 2


def test_with_overrides_leaves_the_given_tree_alone():
    root = parse_yaml(RECIPE, str)
    with_overrides(root, ["rewards[0].weight=9", "~rl.lr", "optimizer.kind=x"])
    assert plain(root) == overridden()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rl.lr", "an override is written key=value or ~key"),
        ("=1", "the key is empty"),
        ("~", "the key is empty"),
        ("rl..lr=1", "is no key"),
        ("rl.=1", "is no key"),
        (".rl=1", "is no key"),
        ("rl.[0]=1", "is no key"),
        ("[0]=1", "is no key"),
        ("rewards[x]=1", "is no key"),
        ("rewards[0]weight=1", "is no key"),
        ("rl lr=1", "is no key"),
        ("~rl.lr=1", "is no key"),
        ("rl.lr=[1", "not valid YAML"),
        ("rl.lr={a: 1, a: 2}", "key 'a' stands twice"),
        ("extends=other.yaml", "`extends` belongs in the file"),
        ("rewards.2.weight=1", r"rewards is a list of 2 \(r\.yaml:3\); there is no item 2"),
        ("rewards.x=1", r"rewards is a list of 2 .*name an item by its number, not 'x'"),
        ("rl.lr.x=1", r"rl\.lr is 0\.1 \(r\.yaml:2\), so it has no key 'x'"),
        ("new[0]=1", "new is not set .* so it has no item 0"),
        ("rl[0]=1", "rl is a mapping .* so it has no item 0"),
        ("~rl.group_sise", r"does not set rl\.group_sise; did you mean group_size\?"),
        ("~rl.lr.x", r"does not set rl\.lr\.x"),
        ("~new.x", "does not set new"),
        ("~rewards[2]", "there is no item 2"),
    ],
)
def test_with_overrides_bad_override_is_named_in_the_error(override, said):
    with pytest.raises(RecipeError, match=said) as caught:
        overridden(override)
    assert f"in override {override!r}" in str(caught.value)


KEYS = st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True).filter(lambda key: key not in ("kind", "extends"))
TREES = st.dictionaries(
    KEYS,
    st.recursive(st.integers() | st.text(), lambda inner: st.dictionaries(KEYS, inner) | st.lists(inner), max_leaves=8),
)


def leaves(value, path=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield from leaves(child, (*path, key))
    if path and not isinstance(value, (dict, list)):
        yield path


@given(tree=TREES, new=st.integers() | st.text() | st.floats(allow_nan=False), bracket=st.booleans(), data=st.data())
def test_with_overrides_setting_any_leaf_changes_that_leaf_only(tree, new, bracket, data):
    paths = list(leaves(tree))
    path = data.draw(st.sampled_from(paths)) if paths else ("fresh",)
    key = "".join(f"[{step}]" if bracket and isinstance(step, int) else f".{step}" for step in path)[1:]
    expected = plain(parse_yaml(dump_yaml(tree), str))
    owner = expected
    for step in path[:-1]:
        owner = owner[step]
    owner[path[-1]] = new
    assert overridden(f"{key}={dump_yaml(new)}", recipe=dump_yaml(tree)) == expected


@given(st.text(max_size=20))
def test_with_overrides_any_text_works_or_is_a_recipe_error(text):
    with suppress(RecipeError):
        overridden(text)
