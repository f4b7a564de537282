"""An environment's rows as a task: each is worked in a conversation, and the environment judges it."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from samepath.rl.machine import find_own_modules
from samepath.rl.recipe.task import EnvironmentTask
from samepath.rl.tasks.row import RowEpisode, Task, TaskError, TaskRow
from samepath.rollout.environments.plugin import load_environment
from samepath.rollout.environments.protocol import Environment, EnvironmentFailure, EnvironmentRow, Split
from samepath.rollout.environments.settings import EnvironmentSettings, EpisodeSettings

PROBED_ROWS = 256
"""Training rows that are held against the held-out ones."""


def build_environment(settings: EnvironmentTask, recipe_dir: Path) -> Task:
    """The environment's training rows, made when they are asked for, and its held-out rows.

    Modules beside the recipe and where the command is started can be imported. Raises TaskError for a split without rows, and for held-out
    rows among the first training rows; ImportPathError for an environment that cannot be used.
    """
    source = EnvironmentSettings(environment=settings.environment, options=settings.options)
    environment = _loaded(source, recipe_dir)
    train = _rows(environment, source, settings.episode, "train")
    all_held_out = _rows(environment, source, settings.episode, "held_out")
    held_out = list(itertools.islice(all_held_out, settings.max_held_out or None))
    texts = {row.canonical for row in held_out}
    seen = [row.row_id for row in itertools.islice(train, PROBED_ROWS) if row.canonical in texts]
    if seen:
        raise TaskError(
            f"{settings.environment}: training and held-out rows must not ask the same; of the first {PROBED_ROWS} training rows {len(seen)} "
            f"are held out too, such as {seen[0]}."
        )
    return Task(name=train.name, train=train, held_out=held_out, seed=settings.seed)


def environment_rows(
    source: EnvironmentSettings, episode: EpisodeSettings, split: Split, recipe_dir: Path
) -> "EnvironmentRows":
    """The rows of one split. Raises TaskError if there are none."""
    return _rows(_loaded(source, recipe_dir), source, episode, split)


def _loaded(source: EnvironmentSettings, recipe_dir: Path) -> Environment:
    find_own_modules(recipe_dir)
    return load_environment(source)


def _rows(
    environment: Environment, source: EnvironmentSettings, episode: EpisodeSettings, split: Split
) -> "EnvironmentRows":
    try:
        rows = environment.tasks(split)
    except EnvironmentFailure as failure:
        # Rows may come from a child process.
        raise TaskError(f"{source.environment}: {failure.detail}") from failure
    if not len(rows):
        raise TaskError(f"{source.environment} must have at least one row; tasks({split!r}) has none.")
    return EnvironmentRows(source, episode, rows, split)


class EnvironmentRows:
    """Rows of one split."""

    def __init__(
        self, source: EnvironmentSettings, episode: EpisodeSettings, rows: Sequence[EnvironmentRow], split: Split
    ) -> None:
        self._source, self._episode, self._rows, self._split = source, episode, rows, split
        self.name = source.environment.rpartition(":")[2]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[TaskRow]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> TaskRow:
        """Row `index`; raises IndexError outside the split."""
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in 0 … {len(self) - 1}; got {index}")
        row = self._rows[index]
        dataset = row.dataset or self.name
        return TaskRow(
            row_id=row.row_id,
            question=row.text,
            text=row.text,
            answer={**row.data, "dataset": dataset},
            dataset=dataset,
            row=index,
            where=f"{self._source.environment} {self._split} row {index}",
            episode=RowEpisode(environment=self._source, row=row, settings=self._episode),
        )
