"""Files that a kill, a full disk or a power cut leaves whole: replaced in one rename after a sync, or longer by whole lines.

Nothing here knows what is written. Every function raises OSError where the disk refuses, and leaves what stood there before.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

at_writes: list[Callable[[Path], None]] = []
"""Called with every path whose content is written, and neither synced nor in its place: an OSError that they raise is the disk's. Empty but in a
run that breaks itself on purpose."""


def replace_file(path: Path, content: str | bytes) -> None:
    """Put `content` in the place of `path`, which holds the old content or the new one at any moment."""
    with replacing(path) as file:
        file.write(_encoded(content))


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of `path` once the block ends without an error; its folder is made if missing."""
    partial = path.with_name(f".{path.name}.partial")
    with _about(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                _written(path)
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        sync(path.parent)


def append_lines(path: Path, lines: str) -> None:
    """Add whole lines in one write, after ending a line that an earlier process left open; its folder is made if missing.

    `lines` ends in a newline. If the disk takes only part of it, the file is cut back to what it held.
    """
    with _about(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            size = os.lseek(descriptor, 0, os.SEEK_END)
            left_open = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            left = memoryview((b"\n" if left_open else b"") + _encoded(lines))
            try:
                while left:
                    left = left[os.write(descriptor, left) :]
                _written(path)
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)
        if size == 0:
            sync(path.parent)


def whole_lines(path: Path) -> Iterator[bytes]:
    """Yield the file's lines that end in a newline, without it; what a killed process left open at the end is left out."""
    # Lines of bytes: text would also be cut inside a character that a kill cut, and cannot be decoded there.
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line[:-1]


def sync(path: Path) -> None:
    """Wait until the disk holds a file's content, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _written(path: Path) -> None:
    for look in at_writes:
        look(path)


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Let the system's errors say which file they are about; a write knows its descriptor alone."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def _encoded(content: str | bytes) -> bytes:
    """Half of a surrogate pair, which a model may write, has no UTF-8 and becomes a question mark."""
    return content if isinstance(content, bytes) else content.encode("utf-8", errors="replace")
