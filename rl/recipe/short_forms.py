"""Short forms of a recipe's parts, written out on the tree, so that overrides and `extends` reach into each of them.

`model: NAME`, `engine: KIND`, `reward: package.module:function` and `reward: {part: …}` stand for mappings. A part is written out only where
something is laid over it: a recipe that is read as it stands keeps its own paths in messages.
"""

from collections.abc import Sequence

from samepath.rewards.settings import RewardSettings, is_part
from samepath.rl.recipe.node import PathKey, RecipeNode, merged, plain


def written_out(key: str, node: RecipeNode) -> RecipeNode:
    """Return what stands at a key of the recipe in its full form; everything else as it is."""
    match key:
        case "model":
            kind = RecipeNode(value="checkpoint", source=node.source, from_override=node.from_override)
            return _mapping(node, kind=kind, path=node) if isinstance(node.value, str) else node
        case "engine":
            return _mapping(node, kind=node) if isinstance(node.value, str) else node
        case "reward":
            return _reward(node)
    return node


def full_path(path: tuple[PathKey, ...], root: RecipeNode, value: RecipeNode | None) -> tuple[PathKey, ...]:
    """Return where an override's path leads once the recipe is written out: `reward.answer` is `reward.parts.answer`.

    `value` is what it sets, None if it deletes.
    """
    if len(path) < 2 or path[0] != "reward" or path[1] in RewardSettings.model_fields:
        return path
    reward = root.value.get("reward") if isinstance(root.value, dict) else None
    parts = _child(_reward(reward), "parts") if reward is not None else None
    known = parts is not None and isinstance(parts.value, dict) and path[1] in parts.value
    new = value is not None and (path[2:3] == ("function",) or (len(path) == 2 and is_part(plain(value))))
    return (path[0], "parts", *path[1:]) if known or new else path


def with_written_out(root: RecipeNode, path: Sequence[PathKey]) -> RecipeNode:
    """Return the tree with each short form on the way to `path` written out."""
    if len(path) < 2 or not isinstance(root.value, dict) or path[0] not in root.value:
        return root
    top = str(path[0])
    node = written_out(top, root.value[top])
    parts = _child(node, "parts")
    if top == "reward" and len(path) > 3 and parts is not None and isinstance(parts.value, dict):
        written = {name: _part(part) if name == path[2] else part for name, part in parts.value.items()}
        node = _with(node, parts=_like(parts, written))
    return _with(root, **{top: node})


def merged_recipes(base: RecipeNode, child: RecipeNode) -> RecipeNode:
    """Merge a recipe into the one that it extends; a short form below a mapping is written out, as text it replaces what stood there."""
    if isinstance(base.value, dict) and isinstance(child.value, dict):
        over = {key: node for key, node in child.value.items() if isinstance(node.value, dict)}
        base = _with(base, **{key: written_out(key, base.value[key]) for key in over if key in base.value})
        child = _with(child, **{key: written_out(key, node) for key, node in over.items()})
    return merged(base, child)


def _reward(node: RecipeNode) -> RecipeNode:
    """The full form of a reward: its parts below `parts`, beside the limits."""
    if isinstance(node.value, str):
        return _mapping(node, parts=_mapping(node, **{node.value.rpartition(":")[2]: _part(node)}))
    if not isinstance(node.value, dict) or "parts" in node.value:
        return node
    names = [key for key in node.value if key not in RewardSettings.model_fields and is_part(plain(node.value[key]))]
    if not names:
        return node
    limits = {key: child for key, child in node.value.items() if key not in names}
    return _like(node, {"parts": _like(node, {name: node.value[name] for name in names}), **limits})


def _part(node: RecipeNode) -> RecipeNode:
    return _mapping(node, function=node) if isinstance(node.value, str) else node


def _mapping(place: RecipeNode, **children: RecipeNode) -> RecipeNode:
    return _like(place, children)


def _like(place: RecipeNode, children: dict[str, RecipeNode]) -> RecipeNode:
    return RecipeNode(value=children, source=place.source, from_override=place.from_override)


def _with(node: RecipeNode, **changes: RecipeNode) -> RecipeNode:
    assert isinstance(node.value, dict)
    return _like(node, {**node.value, **changes})


def _child(node: RecipeNode, key: str) -> RecipeNode | None:
    return node.value.get(key) if isinstance(node.value, dict) else None
