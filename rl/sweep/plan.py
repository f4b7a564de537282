"""Which runs a sweep makes: the product of the values that are given, times seeds, each with a name that says what differs."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe

SEEDS = "seeds"
OPEN, CLOSED = "[{(", "]})"


class SweepError(ValueError):
    """A sweep that cannot be made; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One run of a sweep.

    Example:
        PlannedRun(name="quickstart-lr_1e-3-seed_1", overrides=("rl.steps=20", "optimizer.lr=1e-3", "seed=1", "name=…"), recipe=recipe)
    """

    name: str
    overrides: tuple[str, ...]
    """All that is laid over the recipe's file, in order."""
    recipe: Recipe
    """With its overrides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """All runs of a sweep."""

    name: str
    """Of the recipe."""
    recipe_file: Path
    runs: tuple[PlannedRun, ...]

    @property
    def folder(self) -> Path:
        """Where its logs and its comparison lie, beside the runs."""
        return Path(self.runs[0].recipe.runs_dir) / f"{self.name}-sweep"


def plan_sweep(recipe_file: Path, words: Sequence[str]) -> Sweep:
    """The runs of `key=a,b,c … seeds=3`, seeds innermost; every recipe is read before any is run.

    A comma stands between values, unless it is in brackets or quotes; a key with one value, and `~key`, are the same for all. `seeds=3` means
    the recipe's seed and the next two. Raises SweepError, or RecipeError for a recipe that one of the runs could not have.
    """
    fixed: list[str] = []
    axes: list[list[str]] = []
    seeds = 1
    for word in words:
        key, equals, text = word.partition("=")
        values = values_of(text)
        if key == SEEDS and equals:
            seeds = _count(text)
        elif key in ("name", "runs_dir") and len(values) > 1:
            raise SweepError(f"{key} is one for all runs of a sweep, which are named by what differs; got {word}")
        elif equals and not word.startswith("~") and len(values) > 1:
            if len(set(values)) < len(values):
                raise SweepError(f"{word} must give each value once")
            axes.append([f"{key}={value}" for value in values])
        else:
            fixed.append(word)
    base = load_recipe(recipe_file, fixed, Recipe)
    if seeds > 1:
        if any(axis[0].startswith("seed=") for axis in axes):
            raise SweepError("give seeds=N, which counts from the recipe's seed, or seed=a,b,c; not both")
        axes.append([f"seed={base.seed + number}" for number in range(seeds)])
    short = _short_keys([axis[0].partition("=")[0] for axis in axes])
    runs = []
    for changes in itertools.product(*axes):
        parts = [f"{short[key]}_{_cleaned(value)}" for key, _, value in (change.partition("=") for change in changes)]
        name = "-".join([base.name, *parts])
        overrides = (*fixed, *changes, f"name={name}")
        runs.append(PlannedRun(name=name, overrides=overrides, recipe=load_recipe(recipe_file, overrides, Recipe)))
    names = [run.name for run in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SweepError(
            f"two runs would have one name: {', '.join(twice)}. Write the values so that letters and digits tell them apart"
        )
    return Sweep(name=base.name, recipe_file=recipe_file, runs=tuple(runs))


def values_of(text: str) -> list[str]:
    """The parts of a text between commas that stand in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        depth += (letter in OPEN) - (letter in CLOSED) if not quote else 0
        if letter == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,3}", text):
        raise SweepError(
            f"seeds must be how many seeds each configuration gets, at least 1; got seeds={text}. Particular ones are seed=a,b,c"
        )
    return int(text)


def _short_keys(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key, or all of it where two keys end alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: _cleaned(short if last.count(short) == 1 else key) for key, short in zip(keys, last, strict=True)}


def _cleaned(text: str) -> str:
    """Letters, digits, `_`, `.`, `-` and `+` turned so that they can stand in a folder's name."""
    return re.sub(r"[^\w.-]+", "_", text).strip("_") or "_"
