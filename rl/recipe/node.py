"""Recipe data that remembers where each value was written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Scalar = str | int | float | bool | None
PathKey = str | int
"""One step down: a key of a mapping or an index of a list."""


class RecipeError(ValueError):
    """A recipe that cannot be used; the message lists every problem with its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeNode:
    """One value of a recipe and the place it came from.

    Example:
        RecipeNode(value=1e-5, source="recipes/quickstart.yaml:7")
        RecipeNode(value={"lr": node}, source="in override 'optimizer={lr: 1}'", from_override=True)
    """

    value: "Scalar | list[RecipeNode] | dict[str, RecipeNode]"
    """Plain scalar, list or mapping; never changed once made."""
    source: str
    """`file:line`, or `in override '…'`."""
    from_override: bool = False
    """True if an override wrote it; such keys outlive a change of their `kind`."""


def plain(node: RecipeNode) -> Any:
    """Return the value without places, as pydantic takes it."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def dotted(path: Sequence[PathKey]) -> str:
    """Write a path as people type it: `rewards.0.weight`."""
    return ".".join(str(key) for key in path)


def child_at(node: RecipeNode, key: PathKey) -> RecipeNode | None:
    """Return the child under a key or index, or None when there is none."""
    if isinstance(node.value, dict):
        return node.value.get(str(key))
    if isinstance(node.value, list) and isinstance(key, int) and 0 <= key < len(node.value):
        return node.value[key]
    return None


def deepest_at(node: RecipeNode, path: Sequence[PathKey]) -> RecipeNode:
    """Return the node at a path, or the last one on the way there that exists."""
    for key in path:
        child = child_at(node, key)
        if child is None:
            return node
        node = child
    return node


def kind_of(node: RecipeNode) -> str | None:
    """Return the text under `kind` of a mapping, or None when there is none."""
    kind = child_at(node, "kind") if isinstance(node.value, dict) else None
    return kind.value if kind is not None and isinstance(kind.value, str) else None


def changes_kind(before: RecipeNode, after: str | None) -> bool:
    """Tell whether `after` names another union member than the mapping `before` does."""
    known = kind_of(before)
    return known is not None and after is not None and known != after


def merged(base: RecipeNode, child: RecipeNode) -> RecipeNode:
    """Merge two recipes: mappings key by key, all else (lists too) replaced by the child's.

    A child mapping of another `kind` replaces the base's wholly: keys of the old kind mean nothing to the new one.
    """
    if not (isinstance(base.value, dict) and isinstance(child.value, dict)) or changes_kind(base, kind_of(child)):
        return child
    value: dict[str, RecipeNode] = dict(base.value)
    for key, node in child.value.items():
        value[key] = merged(value[key], node) if key in value else node
    return RecipeNode(value=value, source=child.source, from_override=child.from_override)


def overridden_part(node: RecipeNode) -> Mapping[str, RecipeNode]:
    """Return what overrides wrote of a mapping, without what came from files."""
    assert isinstance(node.value, dict)
    kept: dict[str, RecipeNode] = {}
    for key, child in node.value.items():
        if child.from_override:
            kept[key] = child
        elif isinstance(child.value, dict) and (part := overridden_part(child)):
            kept[key] = RecipeNode(value=dict(part), source=child.source)
    return kept
