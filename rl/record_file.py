"""Files of records that only grow: each as length, SHA-256 and content; what a kill left open at the end is not read."""

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path

_HEAD = struct.Struct("<Q32s")


class JournalError(RuntimeError):
    """What was sampled cannot be written; the message says what to do."""


def framed(content: bytes) -> bytes:
    """A record as it stands in a file."""
    return _HEAD.pack(len(content), hashlib.sha256(content).digest()) + content


def unframed(data: bytes) -> Iterator[bytes]:
    """The contents of a file's records as far as they are whole."""
    place = 0
    while place + _HEAD.size <= len(data):
        length, digest = _HEAD.unpack_from(data, place)
        content = data[place + _HEAD.size : place + _HEAD.size + length]
        if len(content) < length or hashlib.sha256(content).digest() != digest:
            return
        place += _HEAD.size + length
        yield content


def append(path: Path, records: bytes) -> None:
    """Add `framed` records in one write; the folder is made if missing. Raises JournalError; what stood there before stays."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            if file.write(records) != len(records):
                file.truncate(size)
                raise OSError("the disk is full")
    except OSError as error:
        raise JournalError(
            f"{path} cannot be written: {error}. Make room, then go on with `samepath resume`."
        ) from error
