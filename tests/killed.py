"""A process that ends at its k-th call to the file system: from then on nothing reaches the disk, clean-up included."""

import io
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CALLS = ("replace", "rename", "fsync", "open", "write", "unlink", "rmdir", "mkdir", "ftruncate")


class Killed(BaseException):
    """The process has ended here."""


def killed_at_each_call(monkeypatch: pytest.MonkeyPatch, folder: Path, act: Callable[[], object]) -> Iterator[int]:
    """Run `act` killed at its first call to the file system, its second, …; yields after each, and ends when `act` came to its end.

    Whoever iterates puts the files back as `act` needs them. Only calls on paths below `folder`, or on open files, count.
    """
    for last in itertools.count():
        left = iter(range(last))
        with monkeypatch.context() as patch:
            for module, name in [*((os, name) for name in CALLS), (io, "open")]:
                patch.setattr(module, name, _counted(getattr(module, name), left, folder))
            try:
                act()
            except Killed:
                ended = False
            else:
                ended = True
        if ended:
            return
        yield last


def _counted(call: Callable[..., object], left: Iterator[int], folder: Path) -> Callable[..., object]:
    def counted(target: object, *rest: object, **options: object) -> object:
        counts = isinstance(target, int) or "dir_fd" in options or str(folder) in os.fspath(target)  # type: ignore[call-overload]
        if counts and next(left, None) is None:
            raise Killed
        return call(target, *rest, **options)

    return counted
