"""The page of recipe keys follows the models it is written from."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.recipe.reference import recipe_reference, sections

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "recipes.md"


class Circle(BaseModel):
    """A round thing.

    More about it that does not belong into a table.
    """

    radius: float = Field(2.0, gt=0, le=1e6, description="half the width, metres")
    kind: Literal["circle"] = Field("circle", description="names this shape")


class Text(BaseModel):
    """A written thing."""

    kind: Literal["text"] = Field("text", description="names this shape")
    words: tuple[str, ...] = Field((), description="`a|b` or more")


class Drawing(BaseModel):
    """A picture."""

    size: int = Field(multiple_of=4, ge=4, description="pixels a side")
    shape: Annotated[Circle | Text, Field(discriminator="kind")] = Field(description="what is drawn")
    extras: dict[str, Circle] = Field(default_factory=dict, description="drawn on top")
    seed: int | None = Field(None, description="any number")


def test_recipes_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == recipe_reference(), (
        "docs/recipes.md is not what the settings say; write it again: "
        "python -m samepath.rl.recipe.reference > docs/recipes.md"
    )


def test_sections_hand_made_model_gives_hand_written_rows() -> None:
    tables = {table.title: table for table in sections(Drawing)}
    assert list(tables) == ["Top level", "`shape` (`kind: circle`)", "`shape` (`kind: text`)", "`extras.<name>`"]
    assert tables["`shape` (`kind: circle`)"].purpose == "A round thing."
    rows = {row.key: (row.form, row.default, row.meaning) for table in tables.values() for row in table.rows}
    assert rows["size"] == ("integer, ≥ 4, multiple of 4", "*required*", "Pixels a side.")
    assert rows["seed"] == ("integer or `null`", "`null`", "Any number.")
    assert rows["extras"] == ("mapping", "`{}`", "Drawn on top.")
    assert rows["extras.<name>.radius"] == ("number, > 0, ≤ 1e+06", "`2.0`", "Half the width, metres.")
    assert rows["shape.words"] == ("list of text", "`[]`", "`a|b` or more.")


def test_sections_kind_stands_first() -> None:
    circle = next(table for table in sections(Drawing) if "circle" in table.title)
    assert [row.key for row in circle.rows] == ["shape.kind", "shape.radius"]


def test_recipe_reference_names_every_key_of_a_resolved_recipe() -> None:
    """Dumped from the quickstart; keys inside free mappings and names of the user's own are no settings."""
    recipe = load_recipe(ROOT / "recipes" / "quickstart.yaml", [], Recipe)
    page = recipe_reference()
    free = (
        "task.params",
        "cold_start.options",
        "cold_start.late_options",
        "reward.parts",
        "rl.objective.kl.beta_by_dataset",
    )
    missing = [
        key
        for key in leaves(recipe.model_dump(mode="json"), "")
        # A part that is not given is named by its own keys.
        if f"| `{key}` |" not in page and f"| `{key}." not in page and not key.startswith(free)
    ]
    assert missing == []


def test_recipe_reference_lists_no_size_that_the_alphabet_gives() -> None:
    page = recipe_reference()
    assert "`model.config.hidden_size`" in page
    assert "`model.config.vocab_size`" not in page


def test_recipe_reference_cells_never_break_the_table() -> None:
    """Four columns in each row, whatever stands in a description."""
    rows = [line for line in recipe_reference().splitlines() if line.startswith("|")]
    assert len(rows) > 100
    assert {line.replace("\\|", "").count("|") for line in rows} == {5}


def test_sections_of_the_recipe_describe_every_key() -> None:
    assert [row.key for table in sections(Recipe) for row in table.rows if len(row.meaning) < 3] == []


def test_examples_of_overrides_on_the_page_are_accepted() -> None:
    line = next(line for line in recipe_reference().splitlines() if line.startswith("  `samepath run"))
    _, _, path, *overrides = line.strip().rstrip(".").strip("`").split()
    assert load_recipe(ROOT / path, overrides, Recipe).rl.objective.kl.beta == 0.01


def leaves(data: Any, path: str) -> list[str]:
    """Dotted paths of everything that is no mapping."""
    if not isinstance(data, dict):
        return [path]
    return [leaf for key, value in data.items() for leaf in leaves(value, f"{path}.{key}" if path else key)]
