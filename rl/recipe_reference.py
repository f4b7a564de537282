"""The reference of every recipe key, written from the settings' own models: `python -m samepath.rl.recipe_reference > docs/recipes.md`."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from samepath.model.config import ModelConfig
from samepath.rl.recipe import Recipe
from samepath.rl.recipe_suggest import kinds_of, models_in

FROM_ALPHABET = ("vocab_size", "bos_token_id", "eos_token_id")
"""Sizes that `model.kind: new` takes from its alphabet, so that a recipe may not give them."""

HEAD = """# Recipe reference

Every key of a recipe with its type and range, its default, and what it does. This page is written by
`python -m samepath.rl.recipe_reference > docs/recipes.md`; a test fails when it and the settings' models differ.

A recipe is one YAML 1.2 file; [recipes/quickstart.yaml](../recipes/quickstart.yaml) is the one to start from.

- `extends: other.yaml` names one recipe, relative to this file, that this one builds on. Mappings are merged key by key, all else is
  replaced; a mapping of another `kind` replaces the old one wholly.
- `${env:NAME}` and `${env:NAME:default}` inside a value are filled from the environment.
- On the command line `key=value` sets, `~key` deletes and `list[0].key=value` reaches into a list:
  `samepath run recipes/quickstart.yaml name=second seed=1 rl.objective.kl.beta=0.01`.
- Keys that no model knows are errors with a suggestion; all problems of a recipe are listed at once, each with file and line.
- `samepath validate recipe.yaml` prints the whole recipe with every default and starts nothing. `samepath schema` prints the JSON schema
  that editors check against.

Paths of `task` and `model` are relative to the recipe. `runs_dir` and `reward.search_path` are relative to the folder in which the
command is started. *Required* means that there is no default. Where `kind` chooses between forms, each has a table of its own.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One key of the reference.

    Example:
        Row(key="rl.group_size", form="integer, ≥ 2", default="`8`", meaning="G, samples of each prompt")
    """

    key: str
    """Dotted path; `<name>` stands for a name of the user's own."""
    form: str
    """Type and range."""
    default: str
    """Default as YAML, in backticks, or `*required*`."""
    meaning: str
    """The field's own description."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One table: the fields of one model that are no models themselves."""

    title: str
    """Dotted path, with the kind where there are several."""
    purpose: str
    """First line of the model's docstring."""
    rows: tuple[Row, ...]
    """Its keys in order."""


def sections(model: type[BaseModel], prefix: str = "", title: str = "") -> Iterator[Section]:
    """Yield the table of `model` and, after it, those of every model below it, in the order of the fields."""
    schema = model.model_json_schema()
    rows = []
    below: list[Section] = []
    for name, field in model.model_fields.items():
        nested = models_in(field.annotation)
        if not nested:
            rows.append(_row(prefix + name, field, schema["properties"][name]))
        step = ".<name>." if get_origin(field.annotation) is dict else "."
        for inner in nested:
            kinds = kinds_of(inner) if len(nested) > 1 else ()
            shown = f"{prefix}{name}{step}".rstrip(".") + (f" (`kind: {kinds[0]}`)" if kinds else "")
            below += sections(inner, f"{prefix}{name}{step}", shown)
        if nested and field.is_required() and get_origin(field.annotation) is dict:
            rows.append(
                Row(
                    key=prefix + name,
                    form="mapping, name: part",
                    default="*required*",
                    meaning=_sentence(field.description or ""),
                )
            )
    purpose = (model.__doc__ or "").strip().splitlines()[0]
    if rows:
        yield Section(title=title or "Top level", purpose=purpose, rows=tuple(rows))
    yield from below


def recipe_reference() -> str:
    """The whole page as Markdown."""
    tables = list(sections(Recipe))
    sizes = next(sections(ModelConfig, "model.config.", "model.config (sizes of a new network)"))
    rope = list(sections(ModelConfig, "model.config.", "model.config"))[1:]
    kept = tuple(row for row in sizes.rows if row.key.removeprefix("model.config.") not in FROM_ALPHABET)
    place = 1 + next(index for index, table in enumerate(tables) if table.title == "model (`kind: new`)")
    tables[place:place] = [Section(title=sizes.title, purpose=sizes.purpose, rows=kept), *rope]
    return HEAD + "".join(map(_table, tables))


def _table(section: Section) -> str:
    lines = [
        f"\n## {section.title}\n",
        f"{section.purpose}\n",
        "| key | type | default | what it does |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{row.key}` | {_cell(row.form)} | {_cell(row.default)} | {_cell(row.meaning)} |" for row in section.rows
    ]
    return "\n".join(lines) + "\n"


def _row(key: str, field: FieldInfo, schema: Mapping[str, Any]) -> Row:
    default = field.get_default(call_default_factory=True, validated_data={})
    shown = "*required*" if default is PydanticUndefined else f"`{_as_yaml(default)}`"
    return Row(key=key, form=_form(schema), default=shown, meaning=_sentence(field.description or ""))


def _form(schema: Mapping[str, Any]) -> str:
    """Type and range in words, from a field's JSON schema."""
    if "anyOf" in schema:
        return " or ".join(_form(part) for part in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = {"object": "mapping", "array": "list", "string": "text", "boolean": "`true`, `false`", "null": "`null`"}
    words = [kind.get(schema.get("type", ""), str(schema.get("type", "any")))]
    if schema.get("type") == "array" and "type" in schema.get("items", {}):
        words = [f"list of {_form(schema['items'])}"]
    limits = {
        "minimum": "≥",
        "exclusiveMinimum": ">",
        "maximum": "≤",
        "exclusiveMaximum": "<",
        "multipleOf": "multiple of",
    }
    words += [f"{sign} {_number(schema[name])}" for name, sign in limits.items() if name in schema]
    if schema.get("minLength", 0) == 1:
        words.append("not empty")
    if "pattern" in schema:
        words.append(f"matching `{schema['pattern']}`")
    return ", ".join(words)


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _as_yaml(value: Any) -> str:
    """One line of YAML's flow style, which JSON is."""
    if isinstance(value, str):
        return value or '""'
    return json.dumps(value, ensure_ascii=False)


def _sentence(text: str) -> str:
    """Begin with a capital and end with a full stop, unless the text begins with code or a symbol."""
    text = text.strip()
    if len(text) > 1 and text[0].islower() and text[:2].isalpha():
        text = text[0].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


if __name__ == "__main__":
    sys.stdout.write(recipe_reference())
