"""Calls held against the schemas of the tools, as far as a harness needs to refuse a call before it runs."""

from collections.abc import Iterator, Mapping, Sequence

from samepath.model.text.conversation import JsonValue, Problem, ToolCall, ToolSchema

TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}
"""JSON Schema's types; true and false are no numbers, and 3.0 is an integer."""


def schema_problems(calls: Sequence[ToolCall], tools: Sequence[ToolSchema]) -> list[Problem]:
    """Unknown tools, missing and unknown parameters, values of another type than `type`, `enum`, `items`, `properties` and `anyOf` say."""
    known = {tool.name: tool for tool in tools}
    problems: list[Problem] = []
    for call in calls:
        tool = known.get(call.name)
        if tool is None:
            problems.append(Problem(kind="unknown_tool", detail=f"{call.name!r}; there are {', '.join(known)}"))
            continue
        schema = tool.parameters
        properties = schema.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        required = schema.get("required")
        for key in required if isinstance(required, list) else []:
            if key not in call.arguments:
                problems.append(Problem(kind="missing_parameter", detail=f"{key!r} of {call.name!r}"))
        for key, value in call.arguments.items():
            if key not in properties:
                if not schema.get("additionalProperties"):
                    problems.append(Problem(kind="unknown_parameter", detail=f"{key!r} of {call.name!r}"))
            else:
                where = f"{key!r} of {call.name!r}"
                problems += [
                    Problem(kind="wrong_type", detail=detail) for detail in _mismatches(value, properties[key], where)
                ]
    return problems


def _mismatches(value: JsonValue, schema: JsonValue, where: str) -> Iterator[str]:
    """What of the value does not fit the schema; nothing where the schema says nothing that is known here."""
    if not isinstance(schema, dict):
        return
    options = schema.get("anyOf")
    if isinstance(options, list) and options and all([*_mismatches(value, option, where)] for option in options):
        yield f"{where} fits none of {len(options)} forms; got {value!r:.80}"
    said = schema.get("type", [])
    names = [name for name in (said if isinstance(said, list) else [said]) if isinstance(name, str) and name in TYPES]
    if names and not any(_is(value, name) for name in names):
        yield f"{where} must be {' or '.join(names)}; got {value!r:.80}"
        return
    allowed = schema.get("enum")
    if isinstance(allowed, list) and not any(type(one) is type(value) and one == value for one in allowed):
        yield f"{where} must be one of {allowed!r:.200}; got {value!r:.80}"
    if isinstance(value, list):
        for index, one in enumerate(value):
            yield from _mismatches(one, schema.get("items"), f"{where}[{index}]")
    properties = schema.get("properties")
    if isinstance(value, dict) and isinstance(properties, dict):
        for key in (one for one in value if one in properties):
            yield from _mismatches(value[key], properties[key], f"{where}.{key}")


def _is(value: JsonValue, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, TYPES[name]) or (name == "integer" and isinstance(value, float) and value.is_integer())
