"""A rollout worker that runs out of memory once; workers of a pool import it by its name."""

from collections.abc import Sequence
from pathlib import Path

from samepath.rollout.environments.request import Request
from samepath.rollout.pool.worker import RolloutWorker
from samepath.rollout.types import Group

FULL = "full"
"""A file of the folder that the model lies in: there once a worker has run out of memory."""


class HungryWorker(RolloutWorker):
    """The first of all workers on a folder that has finished a group finds no memory at its next call."""

    def __init__(self, model_folder: Path, *arguments: object) -> None:
        super().__init__(model_folder, *arguments)  # type: ignore[arg-type]
        self._mark, self._groups = model_folder / FULL, 0

    def work(self, requests: Sequence[Request], slice_s: float) -> list[Group]:
        """As any worker, but for the one time."""
        if self._groups and self._is_first():
            raise MemoryError("no room for the keys")
        finished = super().work(requests, slice_s)
        self._groups += len(finished)
        return finished

    def _is_first(self) -> bool:
        try:
            self._mark.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True
