import pytest
from hypothesis import given
from hypothesis import strategies as st

from samepath.rl.recipe.node import RecipeError, RecipeNode, plain
from samepath.rl.recipe.variables import escaped, interpolated
from samepath.rl.recipe.yaml_text import parse_yaml


def interpolate(text):
    return plain(interpolated(parse_yaml(text, lambda line: f"r.yaml:{line}")))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${env:SP_SET}", "7"),
        ("a ${env:SP_SET}/${env:SP_SET}", "a 7/7"),
        ("${env:SP_UNSET:5}", "5"),
        ("${env:SP_UNSET:}", ""),
        ("${env:SP_UNSET:http://x:1}", "http://x:1"),
        ("${env:SP_SET:5}", "7"),
        ("${env:SP_EMPTY:5}", ""),
        ("$${env:SP_SET}", "${env:SP_SET}"),
        ("$$${env:SP_SET}", "$${env:SP_SET}"),
        ("${SP_SET} $x {y} ${oc.env:SP_SET}", "${SP_SET} $x {y} ${oc.env:SP_SET}"),
    ],
)
def test_interpolated_only_env_references_are_replaced(text, value, monkeypatch):
    monkeypatch.setenv("SP_SET", "7")
    monkeypatch.setenv("SP_EMPTY", "")
    monkeypatch.delenv("SP_UNSET", raising=False)
    assert interpolate(f"a: [{{b: '{text}'}}]") == {"a": [{"b": value}]}


def test_interpolated_value_is_not_read_again(monkeypatch):
    monkeypatch.setenv("SP_SET", "${env:SP_OTHER}")
    assert interpolate("a: ${env:SP_SET}") == {"a": "${env:SP_OTHER}"}


def test_interpolated_lists_all_problems_with_lines(monkeypatch):
    for name in ("SP_A", "SP_B"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RecipeError) as caught:
        interpolate('a: ${env:SP_A}\nb: 1\nc: ${env:SP_B} ${env:}\nd: "${env:SP_A"\n')
    lines = str(caught.value).split("\n")
    assert [line.split(" ")[0] for line in lines] == ["r.yaml:1:", "r.yaml:3:", "r.yaml:3:", "r.yaml:4:"]
    assert "environment variable SP_A is not set; set it, or give a default: ${env:SP_A:default}" in lines[0]
    assert "got '${env:}'" in lines[2]


@given(st.lists(st.sampled_from(["$", "{", "env:", "}", "NAME", ":", "x", "${env:"])).map("".join))
def test_escaped_any_text_comes_back(text):
    assert interpolated(RecipeNode(value=escaped(text), source="here")).value == text
