"""The manifest of a folder: size and SHA-256 of each file, written last, so that a torn, flipped or missing file is found.

`python -m samepath.model.manifest FOLDER` writes one for a folder that is known to be whole, such as one of a version without manifests.
"""

import hashlib
import sys
from pathlib import Path
from typing import Any

from samepath.model.durable_file import sync
from samepath.model.json_file import read_json, write_json

MANIFEST_FILE = "manifest.json"


class BrokenFolderError(ValueError):
    """A folder that is not what its manifest says; the message names the file."""


def seal(folder: Path) -> None:
    """Sync every file of the folder to the disk, then write and sync its manifest."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_FILE):
        sync(path)
        files[path.relative_to(folder).as_posix()] = _entry(path)
    for inner in folder.rglob("*/"):
        sync(inner)
    write_json(folder / MANIFEST_FILE, {"files": files})


def require_whole(folder: Path) -> None:
    """Read every file of the folder and compare it with the manifest. Raises BrokenFolderError; files beyond the manifest's are ignored."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise BrokenFolderError(
            f"{folder} must hold {MANIFEST_FILE}; it has none: it was copied in part, or written by a version without manifests. "
            f"If you know that it is whole: python -m samepath.model.manifest {folder}"
        )
    try:
        files = read_json(path)["files"]
        entries = {str(name): {"bytes": entry["bytes"], "sha256": entry["sha256"]} for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenFolderError(f"{path} must list the folder's files; it is torn or changed ({error})") from error
    if not entries:
        raise BrokenFolderError(f"{path} must list the folder's files; it lists none")
    for name, expected in entries.items():
        file = folder / name
        if not file.is_file():
            raise BrokenFolderError(f"{file} is missing")
        # The size first: it costs nothing.
        if file.stat().st_size != expected["bytes"]:
            raise BrokenFolderError(f"{file} must have {expected['bytes']} bytes; it has {file.stat().st_size}")
        if _entry(file) != expected:
            raise BrokenFolderError(f"{file} has other content than was written: its SHA-256 differs")


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


if __name__ == "__main__":
    seal(Path(sys.argv[1]))
