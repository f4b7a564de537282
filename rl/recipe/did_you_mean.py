"""Suggestions for error messages: near words, near file names, and where else a recipe has a key."""

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from samepath.rl.recipe.node import PathKey, RecipeNode, child_at, kind_of
from samepath.rl.recipe.synonyms import synonyms_of

_NEAR = 0.75
_FAR = 0.6
"""Least similarity (difflib ratio, 0 to 1) of a suggestion: to be preferred, and to be made at all."""


def near_words(word: str, known: Iterable[str], *, cutoff: float = _FAR) -> list[str]:
    """Return up to three known words that look like `word`, best first."""
    return difflib.get_close_matches(word, sorted(set(known)), n=3, cutoff=cutoff)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?` for the nearest known word, or empty text when none is near."""
    near = near_words(word, known)
    return f"; did you mean {near[0]}?" if near else ""


def files_beside(path: Path) -> str:
    """Say, for a file that does not exist, which similar files stand beside it."""
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    near = near_words(path.name, names) or [name for name in names if Path(name).suffix == path.suffix][:5]
    return f"beside it: {', '.join(near)}" if near else f"{folder} holds no file like it"


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that an annotation names, through unions, lists, mappings and `Annotated`."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in get_args(annotation) for model in models_in(part)]


def kinds_of(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the values that a union member's `kind` may have; empty when the model has no `kind`."""
    field = model.model_fields.get("kind")
    if field is None or get_origin(field.annotation) is not Literal:
        return ()
    return tuple(str(value) for value in get_args(field.annotation))


def models_at(model: type[BaseModel], root: RecipeNode, path: Iterable[PathKey]) -> list[type[BaseModel]]:
    """Return the models that may stand at a path, narrowed by each `kind` that the recipe gives on the way."""
    models = [model]
    node: RecipeNode | None = root
    for key in path:
        fields = [found for owner in models if (found := owner.model_fields.get(str(key))) is not None]
        if fields:
            models = [nested for field in fields for nested in models_in(field.annotation)]
        node = child_at(node, key) if node is not None else None
        kind = kind_of(node) if node is not None else None
        models = [nested for nested in models if kind in kinds_of(nested)] or models
    return models


def suggest_key(model: type[BaseModel], root: RecipeNode, path: tuple[PathKey, ...]) -> str:
    """Return `; did you mean …?` for an unknown key: what others call so, else a near sibling, else the same key elsewhere, else nothing."""
    *parents, last = path
    word = str(last)
    siblings = [name for owner in models_at(model, root, parents) for name in owner.model_fields]
    everywhere = list(_fields(model, root, "", ()))
    elsewhere = [shown for name, shown in everywhere if name == word]
    # Without the condition `(with … .kind=…)` that may follow a path.
    by_path = {shown.partition(" ")[0]: shown for _, shown in everywhere}
    beside, others = synonyms_of(word, ".".join(map(str, parents)), by_path)
    if beside:
        found = beside
    elif near := near_words(word, siblings, cutoff=_NEAR):
        found = [".".join([*(str(key) for key in parents), near[0]])]
    elif others:
        found = others
    elif elsewhere:
        found = list(dict.fromkeys(elsewhere))[:3]
    elif near := near_words(word, siblings):
        found = [".".join([*(str(key) for key in parents), near[0]])]
    else:
        by_name = dict(everywhere)
        found = [by_name[name] for name in near_words(word, by_name, cutoff=_NEAR)[:1]]
    if found:
        return f"; did you mean {' or '.join(found)}?"
    return f"; known here: {', '.join(sorted(set(siblings)))}" if siblings else ""


def _fields(
    model: type[BaseModel], node: RecipeNode | None, prefix: str, seen: tuple[type[BaseModel], ...]
) -> Iterator[tuple[str, str]]:
    """Yield (key, dotted path) of every field in the tree; where another `kind` has it, the path says which."""
    if model in seen:
        return
    for name, field in model.model_fields.items():
        yield name, prefix + name
        child = child_at(node, name) if node is not None else None
        kind = (kind_of(child) if child is not None else None) or getattr(field.default, "kind", None)
        members = models_in(field.annotation)
        for inner in members:
            kinds = kinds_of(inner)
            is_other = len(members) > 1 and kinds and kind not in kinds
            condition = f" (with {prefix}{name}.kind={'|'.join(kinds)})" if is_other else ""
            for key, shown in _fields(inner, child, f"{prefix}{name}{_step(field.annotation)}", (*seen, model)):
                yield key, shown + (condition if key != "kind" else "")


def _step(annotation: Any) -> str:
    """Return what joins a field to its children: a dot, with an index or a name between for collections."""
    origin = get_origin(annotation)
    if origin in (list, tuple):
        return ".<index>."
    if isinstance(origin, type) and issubclass(origin, dict):
        return ".<name>."
    return "."
