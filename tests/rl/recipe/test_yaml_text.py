import json
import math
from contextlib import suppress

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from samepath.rl.recipe.node import RecipeError, plain
from samepath.rl.recipe.yaml_text import dump_yaml, parse_yaml

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def parse(text):
    return parse_yaml(text, lambda line: f"r.yaml:{line}")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("-2E3", -2000.0),
        (".5", 0.5),
        ("3.", 3.0),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("y", "y"),
        ("0123", 123),
        ("0o17", 15),
        ("0x1F", 31),
        ("-7", -7),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("0b11", "0b11"),
        ("=", "="),
        ("true", True),
        ("FALSE", False),
        ("tRue", "tRue"),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
        ("-.inf", -math.inf),
        ("+.INF", math.inf),
        ("[1, on, {a: 0123}]", [1, "on", {"a": 123}]),
        ("{on: 1, 1: off, null: ~}", {"on": 1, "1": "off", "null": None}),
    ],
)
def test_parse_yaml_scalars_follow_yaml_12(text, value):
    got = plain(parse(text))
    assert got == value
    assert type(got) is type(value)


def test_parse_yaml_nan_is_a_float():
    assert math.isnan(plain(parse(".NaN")))


def test_parse_yaml_every_value_knows_the_line_of_its_key():
    root = parse("# comment\nrl:\n\n  lr: 1\n  list:\n    - a\n    - b: 1\n")
    rl = root.value["rl"]
    assert rl.source == "r.yaml:2"
    assert rl.value["lr"].source == "r.yaml:4"
    assert [item.source for item in rl.value["list"].value] == ["r.yaml:6", "r.yaml:7"]


def test_parse_yaml_anchors_are_followed():
    assert plain(parse("a: &x {b: 1}\nc: *x\n")) == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", r"r\.yaml:3: key 'a' stands twice, first in line 1"),
        ("x:\n  a: 1\n  'a': 3\n", r"r\.yaml:3: key 'a' stands twice, first in line 2"),
        ("a: [1\nb: 2\n", r"r\.yaml:\d: not valid YAML"),
        ("a: 1\n\tb: 2\n", r"r\.yaml:2: not valid YAML"),
        ("a: 1\n---\nb: 1\n", r"r\.yaml:2: not valid YAML"),
        ("a: \x07", r"r\.yaml:1: not valid YAML"),
        ("? [a]\n: 1\n", r"r\.yaml:1: a key must be one word"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", r"r\.yaml:3: '<<' is not part of YAML 1\.2; use `extends"),
        ("a: !!python/object/apply:os.getcwd []", r"r\.yaml:1: tag .* is not supported"),
        ("a: !thing 1", r"tag '!thing' is not supported"),
        ("a: !!int word", r"r\.yaml:1: 'word' is no int"),
        ("a: " + "9" * 5000, r"is no int"),
        ("a: &x [*x]", r"may not contain itself"),
        ("[" * 3000, r"nested too deeply|not valid YAML"),
    ],
)
def test_parse_yaml_bad_text_is_refused_with_its_line(text, said):
    with pytest.raises(RecipeError, match=said):
        parse(text)


@given(PLAIN)
def test_dump_yaml_any_plain_data_reads_back_equal(data):
    text = dump_yaml(data)
    assert json.dumps(plain(parse(text))) == json.dumps(data)


@given(st.text())
def test_parse_yaml_any_text_parses_or_is_a_recipe_error(text):
    with suppress(RecipeError):
        plain(parse(text))


@pytest.mark.parametrize(
    "text", ["on", "off", "no", "1e5", "0123", "0o17", "1_000", "1:30", "2024-01-01", "~", "<<", ""]
)
def test_dump_yaml_ambiguous_text_is_quoted_for_yaml_11_readers_too(text):
    assert yaml.safe_load(dump_yaml({"a": text})) == {"a": text}
