"""Writes a run's checkpoints, one at a time: in a thread while the run goes on, or at once."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from samepath.rl.learner.checkpoints import drop_others, write_folder


class CheckpointWriter:
    """A checkpoint that is begun is whole once `whole` says so, and nothing is begun before.

    What the writing raised is raised by the next call of `whole`, and by every one after it: an error cannot be missed.
    """

    def __init__(self, *, asynchronous: bool, keep: int) -> None:
        self._keep = keep
        # Its thread is joined when the interpreter ends, so that a process that leaves in the middle has written its checkpoint.
        self._thread = ThreadPoolExecutor(1, "checkpoint") if asynchronous else None
        self._newest: Future[None] | None = None

    def begin(self, folder: Path, prepare: Callable[[], Callable[[Path], None]], best: Path | None = None) -> None:
        """Let what `prepare` returns fill `folder` (see `write_folder`), then drop what it makes superfluous, but for `best`.

        The one before is waited for first, so that there is one copy of the weights at most.
        """
        self.whole(wait=True)
        write = prepare()
        if self._thread is not None:
            self._newest = self._thread.submit(_written, folder, write, self._keep, best)
        else:
            _written(folder, write, self._keep, best)

    def take_part(self, prepare: Callable[[], Callable[[], None]]) -> None:
        """Do on another rank what rank 0 needs of it for the checkpoint that it begins at the same time."""
        self.whole(wait=True)
        write = prepare()
        if self._thread is not None:
            self._newest = self._thread.submit(write)
        else:
            write()

    def whole(self, *, wait: bool) -> bool:
        """Whether the newest checkpoint stands under its name. Raises what its writing raised: CheckpointError if the disk did not take it."""
        if self._newest is None:
            return True
        if wait or self._newest.done():
            self._newest.result()
            return True
        return False


def _written(folder: Path, write: Callable[[Path], None], keep: int, best: Path | None) -> None:
    write_folder(folder, write)
    drop_others(folder, keep, best)
