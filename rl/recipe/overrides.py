"""Overrides from the command line: `rl.group_size=8`, `rewards.0.weight=2`, `~rewards[1]`."""

import re
from collections.abc import Sequence

from samepath.rl.recipe.did_you_mean import did_you_mean
from samepath.rl.recipe.node import (
    PathKey,
    RecipeError,
    RecipeNode,
    changes_kind,
    dotted,
    overridden_part,
)
from samepath.rl.recipe.short_forms import full_path, with_written_out
from samepath.rl.recipe.yaml_text import parse_yaml

_STEP = re.compile(r"(?P<key>[^.\[\]~=\s]+)|\[(?P<index>[0-9]{1,9})\]")
_WORD = re.compile(r"[a-z_]+")
_INDEX = re.compile(r"[0-9]{1,9}")


def with_overrides(root: RecipeNode, overrides: Sequence[str]) -> RecipeNode:
    """Apply overrides in order and return the new tree.

    `key=value` sets (the value is YAML 1.2, and replaces what stood there), `~key` deletes. A key is dotted; a list item is
    `.0` or `[0]`; keys that hold a dot cannot be written. Setting `kind` to another value drops what files said under the old
    kind and keeps what overrides said. A short form (`engine: vllm`) is written out where a key leads into it.

    Raises RecipeError if the text is no override or leads through a value that is neither
    mapping nor list.
    """
    for text in overrides:
        where = f"in override {text!r}"
        if text.startswith("~"):
            path = full_path(_parse_path(text[1:], where), root, None)
            root = _deleted(with_written_out(root, path), path, 0, where)
            continue
        key, equals, value_text = text.partition("=")
        if not equals:
            raise RecipeError(f"{where}: an override is written key=value or ~key, for example rl.group_size=8.")
        path = _parse_path(key, where)
        if path[0] == "extends":
            raise RecipeError(f"{where}: `extends` belongs in the file; load the other file instead.")
        value = parse_yaml(value_text, lambda _line, where=where: where, from_override=True)  # type: ignore[misc]
        path = full_path(path, root, value)
        root = _assigned(with_written_out(root, path), path, 0, value)
    return root


def _parse_path(text: str, where: str) -> tuple[PathKey, ...]:
    """Split `rewards[0].weight` into ("rewards", 0, "weight"); a dotted number stays text until its parent is known."""
    path: list[PathKey] = []
    position = 0
    while position < len(text):
        if text[position] == "." and path:
            position += 1
            step = _STEP.match(text, position) if text[position : position + 1] != "[" else None
        elif text[position] == "[" or not path:
            step = _STEP.match(text, position)
        else:
            step = None
        if step is None or (not path and step["key"] is None):
            raise RecipeError(f"{where}: {text!r} is no key; write it as in rl.group_size or rewards[0].weight.")
        path.append(step["key"] if step["key"] is not None else int(step["index"]))
        position = step.end()
    if not path:
        raise RecipeError(f"{where}: the key is empty; an override is written key=value or ~key.")
    return tuple(path)


def _assigned(node: RecipeNode, path: Sequence[PathKey], depth: int, value: RecipeNode) -> RecipeNode:
    """Return `node` with `value` at path[depth:], making mappings on the way."""
    if depth == len(path):
        return value
    key = path[depth]
    if isinstance(node.value, list):
        index = _index(node, path, depth, value.source)
        items = list(node.value)
        items[index] = _assigned(items[index], path, depth + 1, value)
        return RecipeNode(value=items, source=node.source, from_override=node.from_override)
    if isinstance(key, int):
        raise RecipeError(f"{value.source}: {_found(node, path, depth)}, so it has no item {key}; give the whole list.")
    if node.value is not None and not isinstance(node.value, dict):
        where = dotted(path[:depth])
        hint = (
            f" If that is its kind, write {where}.kind={node.value} instead."
            if _WORD.fullmatch(str(node.value))
            else ""
        )
        raise RecipeError(f"{value.source}: {_found(node, path, depth)}, so it has no key {key!r}.{hint}")
    children: dict[str, RecipeNode] = dict(node.value or {})
    if key == "kind" and depth == len(path) - 1 and isinstance(value.value, str) and changes_kind(node, value.value):
        children = dict(overridden_part(node))
    absent = RecipeNode(value=None, source=value.source, from_override=True)
    children[key] = _assigned(children.get(key, absent), path, depth + 1, value)
    return RecipeNode(value=children, source=node.source, from_override=node.from_override)


def _deleted(node: RecipeNode, path: Sequence[PathKey], depth: int, where: str) -> RecipeNode:
    """Return `node` without what stands at path[depth:]."""
    key = path[depth]
    is_last = depth == len(path) - 1
    if isinstance(node.value, list):
        index = _index(node, path, depth, where)
        inner = [] if is_last else [_deleted(node.value[index], path, depth + 1, where)]
        items = [*node.value[:index], *inner, *node.value[index + 1 :]]
        return RecipeNode(value=items, source=node.source, from_override=node.from_override)
    children: dict[str, RecipeNode] = dict(node.value) if isinstance(node.value, dict) else {}
    if str(key) not in children:
        hint = did_you_mean(str(key), children)
        raise RecipeError(f"{where}: nothing to delete, the recipe does not set {dotted(path[: depth + 1])}{hint}")
    child = children.pop(str(key))
    if not is_last:
        children = {**dict(node.value), str(key): _deleted(child, path, depth + 1, where)}  # type: ignore[arg-type]
    return RecipeNode(value=children, source=node.source, from_override=node.from_override)


def _index(node: RecipeNode, path: Sequence[PathKey], depth: int, where: str) -> int:
    """Return path[depth] as an index into the list `node`."""
    assert isinstance(node.value, list)
    key = path[depth]
    if isinstance(key, str) and not _INDEX.fullmatch(key):
        raise RecipeError(f"{where}: {_found(node, path, depth)}; name an item by its number, not {key!r}.")
    if int(key) >= len(node.value):
        raise RecipeError(f"{where}: {_found(node, path, depth)}; there is no item {key} (the first is 0).")
    return int(key)


def _found(node: RecipeNode, path: Sequence[PathKey], depth: int) -> str:
    """Say what stands at path[:depth]: `rewards is a list of 2 (recipes/quickstart.yaml:7)`."""
    if isinstance(node.value, list):
        what = f"a list of {len(node.value)}"
    elif isinstance(node.value, dict):
        what = "a mapping"
    elif node.value is None:
        what = "not set"
    else:
        what = repr(node.value)
    return f"{dotted(path[:depth]) or 'the recipe'} is {what} ({node.source})"
