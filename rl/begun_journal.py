"""Tokens of samples under way on disk, until their step is trained: a killed run draws none of them again.

`sampled/step-000012.begun` holds what was told of the groups of step 12 while they were drawn, a record each time.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from samepath.model.durable_file import replace_file
from samepath.rl.record_file import append, framed, unframed
from samepath.rl.run_folder import SAMPLED, step_of
from samepath.rollout.begun import Progress
from samepath.rollout.record_bytes import RecordError, as_bytes, from_bytes

_RESTART = b""
"""In place of a `Progress`: all that was told of the group before is void."""


class BegunJournal:
    """The samples under way of one run."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / SAMPLED

    def append(self, step: int, told: Sequence[tuple[int, bytes]]) -> None:
        """Keep what was told of groups of a step: (number, a `Progress` as bytes). Raises JournalError; what stood there before stays."""
        append(self._path(step), b"".join(framed(as_bytes(one)) for one in told))

    def restart(self, step: int, number: int, told: Sequence[bytes]) -> None:
        """Let what is told of a group from now on stand behind `told`, in place of all that was told."""
        self.append(step, [(number, _RESTART), *((number, one) for one in told)])

    def entries(self, step: int) -> Mapping[int, list[Progress]]:
        """All that was told of each group of a step, by number, in order."""
        path = self._path(step)
        found: dict[int, list[Progress]] = {}
        spoilt = set[int]()
        for number, content in _told(path) if path.is_file() else ():
            if content == _RESTART:
                found[number] = []
                continue
            try:
                found.setdefault(number, []).append(from_bytes(content))
            except RecordError:
                # What follows does not stand behind what is left.
                spoilt.add(number)
        return {number: told for number, told in found.items() if number not in spoilt}

    def mend(self) -> None:
        """Take off what a kill left open at the end of a file: more is appended there."""
        for path in self._files():
            replace_file(path, b"".join(framed(as_bytes(one)) for one in _told(path)))

    def rewind(self, version: int) -> None:
        """Leave of each group the beginning that weights up to `version` drew."""
        for path in self._files():
            step = step_of(path)
            kept = [
                (number, as_bytes(one))
                for number, told in self.entries(step).items()
                for one in takewhile(lambda one: one.newest_version <= version, told)
            ]
            replace_file(path, b"".join(framed(as_bytes(one)) for one in kept))

    def prune(self, done: int) -> None:
        """Remove what was told of groups of the first `done` steps: they have ended."""
        for path in self._files():
            if step_of(path) < done:
                path.unlink()

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:06d}.begun"

    def _files(self) -> Sequence[Path]:
        return sorted(self._folder.glob("step-*.begun"))


def _told(path: Path) -> Iterator[tuple[int, bytes]]:
    """The records as far as they are whole."""
    for content in unframed(path.read_bytes()):
        try:
            number, told = from_bytes(content)
        except RecordError:
            return
        yield number, told
