"""Recipes from YAML files: read, extend, override, validate; and write back.

A recipe file is YAML 1.2. `extends: other.yaml` (relative to the file) names one file that it builds on. Text may hold
`${env:NAME}` or `${env:NAME:default}`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from samepath.rl.recipe.did_you_mean import files_beside
from samepath.rl.recipe.node import RecipeError, RecipeNode, plain
from samepath.rl.recipe.overrides import with_overrides
from samepath.rl.recipe.problems import problems_of
from samepath.rl.recipe.short_forms import merged_recipes
from samepath.rl.recipe.variables import escaped, interpolated
from samepath.rl.recipe.yaml_text import dump_yaml, parse_yaml

M = TypeVar("M", bound=BaseModel)


def load_recipe(path: str | Path, overrides: Sequence[str], model: type[M]) -> M:
    """Read a recipe file, apply overrides (`rl.group_size=8`, `~key`) and validate it as `model`.

    Raises RecipeError, listing all problems with dotted path, file and line (or override), and what was got.
    """
    root = with_overrides(_read(Path(path), ()), overrides)
    root = interpolated(root)
    try:
        return model.model_validate(plain(root))
    except ValidationError as error:
        problems = problems_of(error, root, model)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise RecipeError("\n  ".join([f"{count} in recipe {path}:", *problems])) from error


def recipe_keys(path: str | Path, overrides: Sequence[str]) -> frozenset[str]:
    """Top-level keys of a recipe file with what it extends and the overrides: what kind of recipe it is. Raises RecipeError for no YAML mapping."""
    root = with_overrides(_read(Path(path), ()), overrides).value
    assert isinstance(root, dict)
    return frozenset(root)


def dump_recipe(recipe: BaseModel) -> str:
    """Write a recipe as YAML that loads back to an equal recipe, every default written out.

    The text holds resolved environment variables, secrets among them if the recipe has any.
    """
    return dump_yaml(_escaped(recipe.model_dump(mode="json", round_trip=True)))


def recipe_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of recipe files, for editors and documentation."""
    schema = model.model_json_schema()
    extends = {"type": "string", "description": "Recipe file that this one builds on, relative to this file."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "properties": {"extends": extends, **schema.get("properties", {})},
    }


def _read(path: Path, extended_by: tuple[Path, ...]) -> RecipeNode:
    """Read one file and, below it, the files that it extends."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        asked = f" (extended by {extended_by[-1]})" if extended_by else ""
        raise RecipeError(f"recipe {path} does not exist{asked}; {files_beside(path)}.") from error
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {path} must be UTF-8 text; {error.reason} at byte {error.start}.") from error
    root = parse_yaml(text, lambda line: f"{path}:{line}")
    if root.value is None:
        root = RecipeNode(value={}, source=f"{path}:1")
    if not isinstance(root.value, dict):
        raise RecipeError(f"{root.source}: a recipe must be a mapping (key: value); got {plain(root)!r:.80}.")
    children = dict(root.value)
    extends = children.pop("extends", None)
    root = RecipeNode(value=children, source=root.source)
    if extends is None:
        return root
    if not isinstance(extends.value, str) or not extends.value:
        raise RecipeError(f"{extends.source}: extends must name one file; got {plain(extends)!r:.80}.")
    chain = (*extended_by, path)
    base = path.parent / extends.value
    if base.resolve() in [known.resolve() for known in chain]:
        names = " -> ".join(str(known) for known in (*chain, base))
        raise RecipeError(f"{extends.source}: recipes may not extend each other in a circle: {names}.")
    return merged_recipes(_read(base, chain), root)


def _escaped(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _escaped(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_escaped(value) for value in data]
    return escaped(data) if isinstance(data, str) else data
