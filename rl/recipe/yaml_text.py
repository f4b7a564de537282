"""Text to recipe nodes and back: PyYAML's parser with the scalars of YAML 1.2.

PyYAML alone follows YAML 1.1, where `1e-5` is a string, `off` is False, `0123` is 83 and `1:30` is 90.
"""

import re
from collections.abc import Callable
from typing import Any

import yaml

from samepath.rl.recipe.node import RecipeError, RecipeNode, Scalar

_TAG = "tag:yaml.org,2002:"
_LITERALS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_UNICODE_BREAK = re.compile("[\x85\u2028\u2029\ufeff]")
# YAML 1.2.2, section 10.3.2 (core schema); no first-character index, hence the [None] below.
_CORE_SCHEMA = (
    ("null", re.compile(r"(?:~|null|Null|NULL|)\Z")),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")),
    ("int", re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")),
    (
        "float",
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
    ),
)


class _Loader(yaml.SafeLoader):
    """Only parses and resolves: nothing is constructed, so no tag can run code."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  PyYAML's own attribute, replaced on purpose


class _Dumper(yaml.SafeDumper):
    """Quotes every string that YAML 1.1 or 1.2 would read as something else, so that all tools agree."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values out twice rather than as anchor and alias."""
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Quote text with Unicode line breaks: PyYAML reads them back as blanks unless they are escaped."""
    return dumper.represent_scalar(_TAG + "str", text, style='"' if _UNICODE_BREAK.search(text) else None)


_Dumper.add_representer(str, _represent_text)
for _name, _pattern in _CORE_SCHEMA:
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, [None])
    _Dumper.add_implicit_resolver(_TAG + _name, _pattern, [None])


def parse_yaml(text: str, locate: Callable[[int], str], *, from_override: bool = False) -> RecipeNode:
    """Parse one YAML 1.2 document; `locate` turns a line (from 1) into the place shown in errors.

    An empty document is null. Raises RecipeError on bad syntax, duplicate keys, keys that are no scalars, `<<`, tags other
    than those of the core schema, and anchors that contain themselves.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(part for part in (error.context, error.problem) if part)
        raise RecipeError(f"{locate(mark.line + 1 if mark else 1)}: not valid YAML: {reason}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{locate(1)}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise RecipeError(f"{locate(1)}: nested too deeply to be a recipe") from error
    if root is None:
        return RecipeNode(value=None, source=locate(1), from_override=from_override)
    return _Converter(locate, from_override).convert(root, root.start_mark.line + 1)


def dump_yaml(data: Any) -> str:
    """Write plain data (mappings, lists, scalars) as YAML that both YAML 1.1 and 1.2 readers read back alike."""
    # Endless width: a long prompt stays on one line, where a person can search for it.
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31)
    return text


class _Converter:
    """Turns PyYAML's nodes into recipe nodes, keeping lines."""

    def __init__(self, locate: Callable[[int], str], from_override: bool) -> None:
        self._locate = locate
        self._from_override = from_override
        self._open: set[int] = set()

    def convert(self, node: yaml.Node, line: int) -> RecipeNode:
        """Convert one node; `line` is that of its key, or its own."""
        source = self._locate(line)
        if id(node) in self._open:
            raise RecipeError(f"{source}: an anchor may not contain itself; write the value out.")
        self._open.add(id(node))
        value: Scalar | list[RecipeNode] | dict[str, RecipeNode]
        if isinstance(node, yaml.ScalarNode):
            value = _scalar(node, source)
        elif node.tag not in (_TAG + "map", _TAG + "seq"):
            raise RecipeError(f"{source}: tag {node.tag!r} is not supported; write plain YAML.")
        elif isinstance(node, yaml.SequenceNode):
            value = [self.convert(item, item.start_mark.line + 1) for item in node.value]
        else:
            value = self._mapping(node)
        self._open.remove(id(node))
        return RecipeNode(value=value, source=source, from_override=self._from_override)

    def _mapping(self, node: yaml.Node) -> dict[str, RecipeNode]:
        value: dict[str, RecipeNode] = {}
        first_lines: dict[str, int] = {}
        for key, item in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise RecipeError(f"{self._locate(line)}: a key must be one word or text, got a list or mapping.")
            if key.value == "<<" and key.style is None:
                raise RecipeError(f"{self._locate(line)}: '<<' is not part of YAML 1.2; use `extends: other.yaml`.")
            if key.value in value:
                raise RecipeError(
                    f"{self._locate(line)}: key {key.value!r} stands twice, first in line {first_lines[key.value]};"
                    " delete one of the two."
                )
            value[key.value] = self.convert(item, line)
            first_lines[key.value] = line
        return value


def _scalar(node: yaml.ScalarNode, source: str) -> Scalar:
    text: str = node.value
    kind = node.tag.removeprefix(_TAG)
    try:
        if kind == "str":
            return text
        if kind in ("null", "bool"):
            return _LITERALS[text]
        if kind == "int":
            return int(text[2:], 8 if text[1] == "o" else 16) if text[:2] in ("0o", "0x") else int(text)
        if kind == "float":
            # Python spells infinity and not-a-number without YAML's dot.
            return float(text.replace(".", "")) if text[-1] in "fFnN" else float(text)
    except (KeyError, ValueError) as error:
        raise RecipeError(f"{source}: {text[:40]!r} is no {kind} that can be read: {error}") from error
    raise RecipeError(f"{source}: tag {node.tag!r} is not supported; write plain YAML.")
