"""The sets that an evaluation asks: their rows, how each is sampled, and what training may have seen of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.recipe.evaluation_rows import EnvironmentRows, FileRows, GymRows, HeldOutRows, HubRows
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.recipe.task import EnvironmentTask
from samepath.rl.tasks.environment import environment_rows
from samepath.rl.tasks.file import file_rows
from samepath.rl.tasks.hub import hub_rows
from samepath.rl.tasks.reasoning_gym import generated_rows
from samepath.rl.tasks.row import Task, TaskError, TaskRow
from samepath.rl.tasks.survey import Survey, TooLarge, survey
from samepath.rl.tasks.table import numbered
from samepath.rollout.environments.settings import EnvironmentSettings
from samepath.rollout.sampling_settings import SamplingSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedSet:
    """Prompts of one set and how they are to be answered.

    Example:
        AskedSet(name="math500", rows=(…), sampling=SamplingSettings(temperature=0.6), num_samples=8, pass_at=(1, 8))
    """

    name: str
    """Its name in the recipe; empty where the recipe names no sets."""
    rows: tuple[TaskRow, ...]
    """At least one."""
    sampling: SamplingSettings
    """How responses are drawn."""
    num_samples: int
    """n, responses to each prompt."""
    pass_at: tuple[int, ...] = ()
    """k of each pass@k that is reported."""
    seen: int = 0
    """Rows whose prompt is also trained on; generated tasks, whose rows are made when they are asked for, are not looked at."""

    @property
    def title(self) -> str:
        """For people."""
        return self.name or "held-out"


def build_sets(recipe: Recipe, task: Task, recipe_dir: Path) -> tuple[AskedSet, ...]:
    """The sets of a recipe, the first being the headline. Raises as `build_set`."""
    return tuple(build_set(recipe, name, task, recipe_dir) for name in recipe.evaluation.named)


def build_set(recipe: Recipe, name: str, task: Task, recipe_dir: Path) -> AskedSet:
    """One set of a recipe. Raises TaskError that names it if it has no rows or they cannot be read, HubUnreachableError as a task does."""
    settings = recipe.evaluation.named[name]
    try:
        rows = _rows(settings.task, name, task, recipe, recipe_dir)[: settings.max_prompts or None]
    except TaskError as error:
        raise TaskError(f"evaluation.sets.{name}: {error}") from error
    trained: set[str] = set()
    if isinstance(task.train, list) and not isinstance(settings.task, HeldOutRows):
        trained = {row.canonical for row in task.train}
    return AskedSet(
        name=name,
        rows=tuple(rows),
        sampling=settings.sampling.over(recipe.sampling),
        num_samples=settings.num_samples,
        pass_at=settings.pass_at,
        seen=sum(row.canonical in trained for row in rows),
    )


def check_sets(sets: Sequence[AskedSet], tokenizer: Tokenizer) -> None:
    """Raise TaskError for a set without a prompt that can be encoded; single rows that cannot be fail like samples."""
    for one in sets:
        if one.name:
            found = survey_set(one, tokenizer)
            if not found.usable_held_out:
                raise TaskError(f"evaluation.sets.{one.name}: no row can be asked; {found.described()}")


def survey_set(asked: AskedSet, tokenizer: Tokenizer, too_large: TooLarge = lambda tokens: ("", "")) -> Survey:
    """Encode every row of a set."""
    rows = Task(name=asked.title, train=[], held_out=list(asked.rows), seed=0)
    return survey(rows, tokenizer, too_large=too_large)


def seen_in_training(sets: Sequence[AskedSet]) -> Iterator[str]:
    """A sentence about each set that asks what is trained on."""
    for one in sets:
        if one.seen:
            yield (
                f"{one.seen} of {len(one.rows)} prompts of evaluation.sets.{one.name} are training rows too, so its numbers say how well they "
                "were learned, not how well others are answered"
            )


def _rows(
    settings: HeldOutRows | GymRows | FileRows | HubRows | EnvironmentRows,
    name: str,
    task: Task,
    recipe: Recipe,
    recipe_dir: Path,
) -> list[TaskRow]:
    match settings:
        case HeldOutRows():
            return task.held_out
        case GymRows():
            return generated_rows(settings)
        case EnvironmentRows():
            return _environment_rows(settings, recipe, recipe_dir)
        case FileRows():
            rows, source = file_rows(recipe_dir / settings.path, settings), str(recipe_dir / settings.path)
        case HubRows():
            rows, source = hub_rows(settings, settings.split, recipe_dir), f"{settings.path} {settings.split}"
    if not rows:
        raise TaskError(f"{source} must have at least one row to evaluate on; it has none.")
    return numbered(rows, name)


def _environment_rows(settings: EnvironmentRows, recipe: Recipe, recipe_dir: Path) -> list[TaskRow]:
    """Rows of the run's environment with other options."""
    if not isinstance(recipe.task, EnvironmentTask):
        raise TaskError(
            f"kind environment needs task.kind: environment, whose options it changes; got task.kind: {recipe.task.kind}."
        )
    source = EnvironmentSettings(
        environment=recipe.task.environment, options={**recipe.task.options, **settings.options}
    )
    return list(environment_rows(source, recipe.task.episode, settings.split, recipe_dir))
