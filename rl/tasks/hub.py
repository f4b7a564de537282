"""Problems of a dataset on the Hugging Face hub, or of a local folder in the same layout, as a task."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from samepath.rl.recipe.did_you_mean import did_you_mean
from samepath.rl.recipe.evaluation_rows import HubRows
from samepath.rl.recipe.task import HubTask
from samepath.rl.tasks.hub_folder import hub_folder
from samepath.rl.tasks.row import Task, TaskError, TaskRow
from samepath.rl.tasks.table import check_columns, split_task, table_rows

REASON_CHARS = 300
"""Longest reason of the datasets library that is shown; it may hold whole schemas."""


def build_hub(settings: HubTask, recipe_dir: Path) -> Task:
    """Read the splits and make rows of them (see `split_task`). Raises TaskError, or HubUnreachableError without network and cache."""
    rows = hub_rows(settings, settings.train_split, recipe_dir)
    held_out = hub_rows(settings, settings.held_out_split, recipe_dir) if settings.held_out_split else None
    return split_task(rows, held_out, settings, _name(settings), f"{settings.path} {settings.train_split}")


def hub_rows(settings: HubTask | HubRows, split: str, recipe_dir: Path) -> list[TaskRow]:
    """Read one split; the rows have bare ids and the split's row numbers. Raises as `build_hub`."""
    folder = recipe_dir / settings.path
    # A local folder wins, so that a copy beside the recipe needs no network. A name is resolved by the hub client, because the
    # datasets library tries for half a minute where there is no network, and does not look into the hub's cache then.
    if not folder.is_dir():
        folder = hub_folder(settings.path, "dataset", ["*"], settings.revision)
    table = _table(folder, split, settings)
    check_columns(table.column_names, settings.columns, f"{settings.path} {split}")
    entries = _entries(table.select_columns(settings.columns.names), f"{settings.path} {split}")
    return table_rows(entries, settings, _name(settings))


def _name(settings: HubTask | HubRows) -> str:
    return settings.path.rstrip("/").rpartition("/")[2]


def _table(folder: Path, split: str, settings: HubTask | HubRows) -> Any:
    """The split as the datasets library reads it."""
    try:
        # Late: optional, and it takes a second.
        import datasets
    except ImportError as error:
        raise TaskError(f"task.kind hub needs a package: pip install samepath[hub] ({error}).") from error
    try:
        configs = datasets.get_dataset_config_names(str(folder))
        if settings.config not in configs and (settings.config or len(configs) > 1):
            hint = did_you_mean(settings.config, configs)
            raise TaskError(
                f"task.config must be one that {settings.path} has; got {settings.config!r}{hint}; there are: {', '.join(configs)}"
            )
        known = datasets.get_dataset_split_names(str(folder), settings.config or None)
        if split.partition("[")[0] not in known:
            raise TaskError(
                f"{settings.path} has no split {split!r}{did_you_mean(split, known)}; there are: {', '.join(known)}"
            )
        return datasets.load_dataset(str(folder), settings.config or None, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, TaskError):
            raise
        # The library's own message often says only that something failed; the reason is the error below it.
        reason = " ".join((f"{error}: {error.__cause__}" if error.__cause__ else str(error)).split())
        raise TaskError(
            f"the dataset {settings.path} (config {settings.config!r}, split {split!r}) cannot be read: {reason[:REASON_CHARS]}"
        ) from error


def _entries(table: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for row, record in enumerate(table):
        yield f"{where} row {row}", record
