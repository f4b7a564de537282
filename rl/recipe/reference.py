"""The reference of every recipe key, written from the settings' own models: `python -m samepath.rl.recipe.reference > docs/recipes.md`."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from samepath.model.config import ModelConfig
from samepath.rl.recipe.did_you_mean import kinds_of, models_in
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.recipe.text import TextRecipe

FROM_TOKENIZER = ("vocab_size", "bos_token_id", "eos_token_id")
"""Sizes that `model.kind: new` takes from its tokenizer, so that a recipe may not give them."""

HEAD = """# Recipe reference

Every key of a recipe with its type and range, its default, and what it does. This page is written by
`python -m samepath.rl.recipe.reference > docs/recipes.md`; a test fails when it and the settings' models differ.

A recipe is one YAML 1.2 file; [recipes/quickstart.yaml](../recipes/quickstart.yaml) is the one to start from.

- `extends: other.yaml` names one recipe, relative to this file, that this one builds on. Mappings are merged key by key, all else is
  replaced; a mapping of another `kind` replaces the old one wholly.
- `${env:NAME}` and `${env:NAME:default}` inside a value are filled from the environment.
- On the command line `key=value` sets, `~key` deletes and `list[0].key=value` reaches into a list:
  `samepath run recipes/quickstart.yaml name=second seed=1 rl.objective.kl.beta=0.01`.
- Keys that no model knows are errors with a suggestion; all problems of a recipe are listed at once, each with file and line.
- `samepath validate recipe.yaml` prints the whole recipe with every default, then every check as `ok`, `warning` (it runs, but hardly as
  it is meant), `not checked` (with the reason), `obstacle` (the recipe is right, this version or machine cannot run it) or `wrong`, and
  the memory it needs (docs/memory.md). It reads every row of the task, for two minutes at most, and calls each reward function
  once; it starts nothing else. The exit status is 0 if nothing is wrong; with `--strict` only if all is `ok`. `samepath schema`
  prints the JSON schema that editors check against.

Paths of `task` and `model` are relative to the recipe. `runs_dir` and `reward.search_path` are relative to the folder in which the
command is started. *Required* means that there is no default. Where `kind` chooses between forms, each has a table of its own.

`reward` has two short forms beside the full one below: a string is the import path of its only part
(`reward: samepath.rewards.exact:number`), and in a mapping without `parts` whatever is no setting of the reward is a part
(`reward: {answer: samepath.rewards.math:answer, short: {function: …, weight: 0.1}, timeout_s: 2}`). `model: NAME` is a checkpoint's
path and `engine: vllm` an engine's kind. Overrides and `extends` reach into each of these forms.
"""

TEXT_HEAD = """
# Recipes on text

A recipe with a `stage` trains on text instead of rewards ([docs/sparse.md](sparse.md)). It has `name`, `seed`, `runs_dir`, `model` (a checkpoint of the own
network), `checkpoint` and `tracking` as above, of `learner` the keys `ranks`, `min_passes` and `update_timeout_s`, and two sections of its own.
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


def sections(model: type[BaseModel], prefix: str = "", title: str = "Top level") -> Iterator[Section]:
    """Yield the table of `model` and, after it, those of every model below it, in the order of the fields."""
    properties = model.model_json_schema()["properties"]
    rows: list[Row] = []
    below: list[Section] = []
    for name, field in model.model_fields.items():
        nested = models_in(field.annotation)
        is_mapping = get_origin(field.annotation) is dict
        if not nested or is_mapping:
            rows.append(_row(prefix + name, field, properties[name]))
        path = f"{prefix}{name}.<name>" if is_mapping else prefix + name
        for inner in nested:
            kind = f" (`kind: {kinds_of(inner)[0]}`)" if len(nested) > 1 else ""
            below += sections(inner, f"{path}.", f"`{path}`{kind}")
    purpose = (model.__doc__ or "").strip().splitlines()[0]
    # `kind` says which table this is, wherever a parent class put it.
    rows.sort(key=lambda row: row.key != f"{prefix}kind")
    if rows:
        yield Section(title=title, purpose=purpose, rows=tuple(rows))
    yield from below


def recipe_reference() -> str:
    """The whole page as Markdown."""
    tables: dict[str, Section] = {}
    for table in sections(Recipe):
        # Both kinds of task have the same `task.rewrite`; one table is enough.
        tables.setdefault(table.title, table)
        if table.title == "`model` (`kind: new`)":
            tables |= {sizes.title: sizes for sizes in _sizes_of_a_new_model()}
    stages = [table for table in sections(TextRecipe) if table.title.startswith(("`text", "`stage"))]
    return HEAD + "".join(map(_table, tables.values())) + TEXT_HEAD + "".join(map(_table, stages))


def _sizes_of_a_new_model() -> Iterator[Section]:
    """The recipe holds them as plain data, because the model that checks them also needs what the tokenizer gives."""
    for table in sections(ModelConfig, "model.config.", "`model.config`"):
        kept = tuple(row for row in table.rows if row.key.removeprefix("model.config.") not in FROM_TOKENIZER)
        yield Section(title=table.title, purpose=table.purpose, rows=kept)


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
    """Begin with a capital, unless with code or a symbol, and end with a full stop."""
    text = text.strip()
    if text.split(" ")[0].rstrip(",;:").isalpha():
        text = text[0].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


if __name__ == "__main__":
    sys.stdout.write(recipe_reference())
