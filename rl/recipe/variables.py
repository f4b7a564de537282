"""Environment variables in recipes: `${env:NAME}` and `${env:NAME:default}`, and nothing else."""

import re

from samepath.rl.machine import read_variable
from samepath.rl.recipe.node import RecipeError, RecipeNode

_OPENING = re.compile(r"\$+\{env:")
_REFERENCE = re.compile(r"(?P<escaped>\$\$+\{env:)|\$\{env:(?P<name>[^:}]*)(?::(?P<default>[^}]*))?(?P<end>\}?)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_UNSET = "\0"
"""Default that tells an unset variable from an empty one: no variable can hold it."""


def interpolated(root: RecipeNode) -> RecipeNode:
    """Put environment variables into the text values of a recipe.

    The result stays text; a numeric setting still takes it, because pydantic reads numbers from text. `$${env:` stands for
    a literal `${env:`, and any other `${…}` is left alone. Raises RecipeError naming every variable that is not set.
    """
    problems: list[str] = []
    result = _interpolate(root, problems)
    if problems:
        raise RecipeError("\n".join(problems))
    return result


def escaped(text: str) -> str:
    """Return text that `interpolated` turns back into `text`."""
    return _OPENING.sub(lambda match: "$" + match.group(), text)


def _interpolate(node: RecipeNode, problems: list[str]) -> RecipeNode:
    value = node.value
    if isinstance(value, dict):
        value = {key: _interpolate(child, problems) for key, child in value.items()}
    elif isinstance(value, list):
        value = [_interpolate(child, problems) for child in value]
    elif isinstance(value, str) and "${env:" in value:
        value = _REFERENCE.sub(lambda match: _variable(match, node.source, problems), value)
    else:
        return node
    return RecipeNode(value=value, source=node.source, from_override=node.from_override)


def _variable(match: re.Match[str], source: str, problems: list[str]) -> str:
    if match["escaped"]:
        return match["escaped"][1:]
    name = match["name"]
    if not match["end"] or not _NAME.match(name):
        problems.append(f"{source}: write ${{env:NAME}} or ${{env:NAME:default}}; got {match.group()!r}.")
    elif (value := read_variable(name, _UNSET)) != _UNSET:
        return value
    elif match["default"] is not None:
        return match["default"]
    else:
        problems.append(
            f"{source}: environment variable {name} is not set; set it, or give a default: ${{env:{name}:default}}."
        )
    return ""
