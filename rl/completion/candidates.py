"""What the shell may complete of a `samepath` command line: subcommands, options, recipe files, run folders, override keys. Needs no torch."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from samepath.rl.run_state import RECIPE_FILE

RECIPE_SUFFIXES = (".yaml", ".yml")


def candidates(group: Any, words: Sequence[str]) -> list[str]:
    """The ways in which the last of the words after `samepath` may go on; `group` is the command's tree.

    Example: `candidates(group, ["run", "recipes/quickstart.yaml", "rl.group"])` gives `["rl.group_size="]`.
    """
    *before, current = words or [""]
    commands = {name: command for name, command in group.commands.items() if not command.hidden}
    name = next((word for word in before if not word.startswith("-")), "")
    if not name:
        offered: Iterator[str] | Sequence[str] = _options(group.params) if current.startswith("-") else sorted(commands)
    elif name in commands:
        offered = _of_command(commands[name].params, list(before[before.index(name) + 1 :]), current)
    else:
        offered = []
    return list(dict.fromkeys(word for word in offered if word.startswith(current)))


def _of_command(params: Sequence[Any], before: list[str], current: str) -> Iterator[str] | Sequence[str]:
    options = {
        text: one for one in params if one.param_type_name == "option" for text in (*one.opts, *one.secondary_opts)
    }
    if before and (option := options.get(before[-1])) is not None and not option.is_flag:
        return _values(option, current)
    if current.startswith("-"):
        return _options(params)
    arguments = [one for one in params if one.param_type_name == "argument"]
    place = 0
    for index, word in enumerate(before):
        valued = index > 0 and (option := options.get(before[index - 1])) is not None and not option.is_flag
        place += not word.startswith("-") and not valued
    if not arguments:
        return []
    argument = arguments[min(place, len(arguments) - 1)]
    if place >= len(arguments) and argument.nargs != -1:
        return []
    return override_keys(current) if argument.name == "overrides" else _values(argument, current)


def _options(params: Sequence[Any]) -> Iterator[str]:
    for one in params:
        if one.param_type_name == "option" and not one.hidden:
            yield from (*one.opts, *one.secondary_opts)
    yield from ("--help", "-h")


def _values(param: Any, current: str) -> Iterator[str] | Sequence[str]:
    """Values of an option or argument, by its choices or by what its name says."""
    annotation = param.type_descriptor.annotation
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    match param.name:
        case "recipe":
            return recipes(current)
        case "run_dir" | "run_dirs":
            return runs(current)
        case "source":
            return [*(path for path in recipes(current) if not path.endswith("/")), *runs(current)]
        case "checkpoint" | "target" | "runs_dir":
            return folders(current)
    return []


def recipes(current: str) -> Iterator[str]:
    """Recipe files; where nothing is typed yet, also those of the folder `recipes`."""
    if not current:
        yield from (str(path) for path in sorted(Path("recipes").glob("*")) if path.suffix in RECIPE_SUFFIXES)
    for path, shown in _entries(current):
        if path.is_dir():
            yield f"{shown}/"
        elif path.suffix in RECIPE_SUFFIXES:
            yield shown


def runs(current: str) -> Iterator[str]:
    """Folders of runs; where nothing is typed yet, those of the folder `runs`."""
    if not current:
        yield from (str(path.parent) for path in sorted(Path("runs").glob(f"*/{RECIPE_FILE}")))
    for path, shown in _entries(current):
        if path.is_dir():
            yield shown if (path / RECIPE_FILE).is_file() and not current.startswith(f"{shown}/") else f"{shown}/"


def folders(current: str) -> Iterator[str]:
    """Folders."""
    for path, shown in _entries(current):
        if path.is_dir():
            yield f"{shown}/"


def _entries(current: str) -> Iterator[tuple[Path, str]]:
    """(path, as it is to be typed) of what stands in the folder that is typed so far; hidden entries only where one is begun."""
    head, _, begun = current.rpartition("/")
    folder = Path(f"{head}/") if "/" in current else Path()
    try:
        found = sorted(folder.iterdir()) if folder.is_dir() else []
    except PermissionError:
        return
    for path in found:
        if begun.startswith(".") or not path.name.startswith("."):
            yield path, f"{head}/{path.name}" if "/" in current else path.name


def override_keys(current: str) -> Iterator[str]:
    """Keys of a recipe, one level at a time (`rl.`, `rl.steps=`), and after `=` the values of a setting that has only a few; `~` deletes."""
    # Late: building the checks of every setting takes time that other words do not need.
    from samepath.rl.recipe.file import recipe_schema
    from samepath.rl.recipe.recipe import Recipe

    schema = recipe_schema(Recipe)
    sign = "~" if current.startswith("~") else ""
    path, equals, _ = current.removeprefix("~").partition("=")
    *parents, begun = path.split(".")
    nodes = [schema]
    for name in [*parents, begun] if equals else parents:
        nodes = [below for node in nodes for below in _below(node, name, schema)]
    if equals:
        yield from (f"{path}={value}" for node in nodes for value in _choices(node))
        return
    names = [name for node in nodes for name in node.get("properties", {})]
    for name in dict.fromkeys(name for name in names if name.startswith(begun) and (parents or name != "extends")):
        dotted = ".".join([*parents, name])
        inner = [one for node in nodes for one in _below(node, name, schema)]
        if any("properties" in one or _named_freely(one) for one in inner):
            yield f"{sign}{dotted}."
        else:
            yield f"{sign}{dotted}" if sign else f"{dotted}="


def _below(node: Mapping[str, Any], name: str, schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The forms that stand under a name: one for each kind."""
    found = node.get("properties", {}).get(name) or _named_freely(node)
    return list(_forms(found, schema)) if found else []


def _named_freely(node: Mapping[str, Any]) -> dict[str, Any] | None:
    """What stands under each name of the user's own, if the node is a mapping of such."""
    for found in (node.get("additionalProperties"), *node.get("patternProperties", {}).values()):
        if isinstance(found, dict):
            return found
    return None


def _forms(node: dict[str, Any], schema: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if "$ref" in node:
        yield from _forms(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
    elif parts := node.get("anyOf") or node.get("oneOf") or node.get("allOf"):
        for part in parts:
            yield from _forms(part, schema)
    else:
        yield node


def _choices(node: Mapping[str, Any]) -> list[str]:
    if node.get("type") == "boolean":
        return ["true", "false"]
    return [str(value) for value in node.get("enum", [node["const"]] if "const" in node else [])]
