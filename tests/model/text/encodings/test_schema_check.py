"""Calls against schemas: what does not fit has its kind, and what a schema leaves open is no problem."""

import pytest

from samepath.model.text.conversation import JsonValue, ToolCall, ToolSchema
from samepath.model.text.encodings.schema_check import schema_problems
from tests.marked_conversations import ADD, GET, KEYS


def told(arguments: dict[str, JsonValue], name: str = "get", *, schema: JsonValue = None) -> list[tuple[str, str]]:
    tools = [GET, ADD, KEYS]
    if schema is not None:
        tools = [ToolSchema(function={"name": name, "parameters": {"type": "object", "properties": {"v": schema}}})]
    return [(one.kind, one.detail) for one in schema_problems([ToolCall(name=name, arguments=arguments)], tools)]


def test_schema_problems_by_kind() -> None:
    assert told({"key": "C"}) == []
    assert told({}) == [("missing_parameter", "'key' of 'get'")]
    assert told({"key": "C", "kez": 1}) == [("unknown_parameter", "'kez' of 'get'")]
    assert told({"key": 1}) == [("wrong_type", "'key' of 'get' must be string; got 1")]
    assert told({}, "put") == [("unknown_tool", "'put'; there are get, add, keys")]
    assert told({}, "add") == told({}, "keys") == []
    assert told({"x": 1}, "keys") == [("unknown_parameter", "'x' of 'keys'")]


@pytest.mark.parametrize(
    ("value", "schema", "fits"),
    [
        (3, {"type": "integer"}, True),
        (3.0, {"type": "integer"}, True),
        (3.5, {"type": "integer"}, False),
        (True, {"type": "integer"}, False),
        (True, {"type": "number"}, False),
        (True, {"type": "boolean"}, True),
        (1, {"type": "boolean"}, False),
        (3, {"type": "number"}, True),
        (None, {"type": ["string", "null"]}, True),
        (None, {"type": "string"}, False),
        ("b", {"enum": ["a", "b"]}, True),
        ("c", {"enum": ["a", "b"]}, False),
        (True, {"enum": [1]}, False),
        ([1, "2"], {"type": "array", "items": {"type": "integer"}}, False),
        ([1, 2], {"type": "array", "items": {"type": "integer"}}, True),
        ({"a": "x"}, {"type": "object", "properties": {"a": {"type": "integer"}}}, False),
        ({"b": "x"}, {"type": "object", "properties": {"a": {"type": "integer"}}}, True),
        ("x", {"anyOf": [{"type": "string"}, {"type": "null"}]}, True),
        (1, {"anyOf": [{"type": "string"}, {"type": "null"}]}, False),
        (1, {"$ref": "#/$defs/x"}, True),
        (1, True, True),
        (1, {"type": "unheard-of"}, True),
        (1, {"type": 7, "enum": "x", "anyOf": 3}, True),
    ],
)
def test_schema_problems_of_a_value(value: JsonValue, schema: JsonValue, fits: bool) -> None:
    assert (told({"v": value}, schema=schema) == []) is fits


def test_schema_problems_further_parameters_are_free_where_the_schema_says_so() -> None:
    open_ = ToolSchema(function={"name": "any", "parameters": {"additionalProperties": True, "properties": 7}})
    assert schema_problems([ToolCall(name="any", arguments={"x": 1})], [open_]) == []
