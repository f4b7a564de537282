"""Pydantic's errors as lines that people can act on: dotted path, place, what must hold, what was got."""

import json
import re
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from samepath.rl.recipe.did_you_mean import did_you_mean, kinds_of, models_at, models_in, suggest_key
from samepath.rl.recipe.node import PathKey, RecipeNode, child_at, deepest_at, dotted, kind_of, plain

_QUOTED = re.compile(r"'([^']*)'")
_KEY = re.compile(r"[a-z][a-z_]*(?:\.[a-z_0-9]+)+")
"""A dotted setting inside a message."""
_SHOWN_CHARS = 80
_MAPPING = "must be a mapping (key: value)"
_REASONS = {
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    "dict_type": _MAPPING,
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "path_type": "must be a path",
}
"""Words for error types whose own message speaks of Python rather than of YAML."""


def problems_of(error: ValidationError, root: RecipeNode, model: type[BaseModel]) -> list[str]:
    """Return one line for each value that is wrong, in the order of the error.

    Example: `rl.group_size: must be greater than or equal to 2; got 1 (recipes/quickstart.yaml:4)`.
    """
    reasons: dict[tuple[PathKey, ...], list[str]] = {}
    across: list[str] = []
    for detail in error.errors(include_url=False):
        path = _path(detail, root)
        reason = _reason(detail, path, root, model)
        if not path and detail["type"] == "value_error":
            across += [_across_line(part, root) for part in reason.split("\n")]
            continue
        if reason not in reasons.setdefault(path, []):
            reasons[path].append(reason)
    return [*(_line(path, found, root) for path, found in reasons.items()), *across]


def _across_line(reason: str, root: RecipeNode) -> str:
    """A problem between settings, with the place of the first one named in it that the recipe gives."""
    named = [tuple(text.split(".")) for text in _KEY.findall(reason)]
    nodes = [found for path in named if (found := deepest_at(root, path)) is not root]
    return f"{reason} ({(nodes or [root])[0].source})"


def _path(detail: ErrorDetails, root: RecipeNode) -> tuple[PathKey, ...]:
    """Return the path in the recipe: pydantic's own also names union members, which no one wrote."""
    path: list[PathKey] = []
    node: RecipeNode | None = root
    loc = detail["loc"]
    for position, key in enumerate(loc):
        child = child_at(node, key) if node is not None else None
        # A key that equals its mapping's kind comes twice: first as the member's name, then as the key.
        is_member_name = node is not None and key == kind_of(node) and loc[position + 1 : position + 2] == (key,)
        if child is not None and not is_member_name:
            node = child
            path.append(key)
    if detail["type"] == "missing":
        path.append(loc[-1])
    elif detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path.append("kind")
    return tuple(path)


def _reason(detail: ErrorDetails, path: tuple[PathKey, ...], root: RecipeNode, model: type[BaseModel]) -> str:
    """Say what must hold; `_line` adds what was got."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key{suggest_key(model, root, path)}"
    if kind == "missing":
        descriptions = [
            field.description
            for owner in models_at(model, root, path[:-1])
            if (field := owner.model_fields.get(str(path[-1]))) is not None and field.description
        ]
        return "must be given" + (f": {descriptions[0]}" if descriptions else "")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        kinds = [name for owner in models_at(model, root, path[:-1]) for name in kinds_of(owner)]
        return f"must be one of {', '.join(kinds)}{_near_kind(str(context.get('tag', '')), kinds)}"
    if kind in _REASONS:
        return _REASONS[kind]
    message = re.sub(r"^(Value error|Assertion failed), ", "", detail["msg"])
    message = re.sub(r", unable to (parse|interpret) .*", "", re.sub(r"^\w+ should ", "must ", message))
    if kind == "string_pattern_mismatch" and (meaning := _meaning_of(model, str(context.get("pattern")))):
        message += f" ({meaning.rstrip('.')})"
    if kind == "literal_error":
        message += did_you_mean(str(detail["input"]), _QUOTED.findall(str(context.get("expected", ""))))
    return message


def _meaning_of(model: type[BaseModel], pattern: str) -> str:
    """Description of the setting that has this pattern; an expression alone tells few people what to write."""
    for field in model.model_fields.values():
        if any(getattr(entry, "pattern", None) == pattern for entry in field.metadata):
            return field.description or ""
        for nested in models_in(field.annotation):
            if found := _meaning_of(nested, pattern):
                return found
    return ""


def _near_kind(word: str, kinds: list[str]) -> str:
    return did_you_mean(word, kinds) if word else ""


def _line(path: tuple[PathKey, ...], reasons: list[str], root: RecipeNode) -> str:
    node = deepest_at(root, path)
    exists = _exists(root, path)
    got = f"; got {_shown(plain(node))}" if exists and _worth_showing(node, reasons) else ""
    first, *others = reasons
    said = " or ".join([first, *(reason.removeprefix("must be ") for reason in others)])
    return f"{dotted(path) or 'the recipe'}: {said}{got} ({node.source})"


def _exists(root: RecipeNode, path: tuple[PathKey, ...]) -> bool:
    node: RecipeNode | None = root
    for key in path:
        node = child_at(node, key) if node is not None else None
    return node is not None


def _worth_showing(node: RecipeNode, reasons: list[str]) -> bool:
    """Tell whether the value helps: not for an unknown key, nor where the message already says what was got."""
    if any(reason.startswith("unknown key") or "got " in reason for reason in reasons):
        return False
    return not isinstance(node.value, dict) or any(reason in _REASONS.values() for reason in reasons)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"
