"""How much a folder of foreign code holds."""

import os
from pathlib import Path

BLOCK_BYTES = 512
"""Unit of `st_blocks`, whatever the file system's own."""
ENTRY_BYTES = 4096
"""What a file or folder counts at least, so that there is a bound on empty ones."""


def holds_more_than(folder: Path, limit_bytes: int) -> bool:
    """True if the files below `folder` take more than `limit_bytes`, each ENTRY_BYTES or more, or a folder below cannot be looked into.

    Files that are deleted but still open are not seen.
    """
    total, waiting = 0, [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    total += max(entry.stat(follow_symlinks=False).st_blocks * BLOCK_BYTES, ENTRY_BYTES)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    if total > limit_bytes:
                        return True
        except FileNotFoundError:
            continue
        except PermissionError:
            return True
    return False
