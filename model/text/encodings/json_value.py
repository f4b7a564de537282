"""JSON as a model writes it in arguments: read strictly, nothing that JSON cannot say."""

import json
import math
from typing import NoReturn

from samepath.model.text.conversation import JsonValue

MAX_DEPTH = 64
"""Lists and objects within each other; deeper ones are a run of brackets and no argument."""


def read_json_text(text: str) -> JsonValue:
    """The value. Raises ValueError for anything else: NaN, numbers out of range, a key twice, half a surrogate pair, more than `MAX_DEPTH` levels."""
    try:
        value: JsonValue = json.loads(text, parse_constant=_refused, object_pairs_hook=_object, parse_float=_finite)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from error
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for one in level for inner in _inside(one)]
        if not level:
            return value
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


def _inside(value: JsonValue) -> list[JsonValue]:
    """Values one level below. Raises ValueError for text that is not Unicode."""
    if isinstance(value, str):
        value.encode()
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list) else []


def _refused(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text} is out of range")
    return number


def _object(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError(f"a key stands twice among {', '.join(key for key, _ in pairs)}")
    return dict(pairs)
