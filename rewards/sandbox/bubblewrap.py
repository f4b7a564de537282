"""Bubblewrap: a command in namespaces of its own, with the file system read-only and nothing of the driver's processes in sight."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

HIDDEN = ("/tmp", "/var/tmp", "/run")
"""Folders that are empty inside but for what must be read there: other processes' files and sockets live in them."""
PROBE_TIMEOUT_S = 20.0


def bubblewrap_command(
    folder: Path, command: Sequence[str], *, readable: Iterable[Path], disk_bytes: int, network: bool
) -> list[str]:
    """The command line that runs `command` with `folder` as its private, working and only lasting place to write.

    `readable` are paths that must stay where they are even below HIDDEN. `folder`, `/tmp` and `/dev/shm` hold at most `disk_bytes`
    each, in memory; everything else is read-only.
    """
    new = ("--size", str(disk_bytes), "--tmpfs")
    hidden = [name for name in HIDDEN if Path(name).is_dir()]
    shown = sorted({str(path) for path in readable if _below(path, hidden)}, key=len)
    sealed = [name for name in hidden if name != HIDDEN[0]]
    return [
        "bwrap",
        "--unshare-all",
        *(["--share-net"] if network else []),
        "--die-with-parent",
        "--new-session",
        *("--cap-drop", "ALL"),
        *("--ro-bind", "/", "/"),
        *("--dev", "/dev", *new, "/dev/shm", "--remount-ro", "/dev"),
        *("--proc", "/proc"),
        *(word for name in hidden for word in (*new, name)),
        *(word for path in shown for word in ("--ro-bind-try", path, path)),
        *(*new, str(folder)),
        *(word for name in sealed for word in ("--remount-ro", name)),
        *("--chdir", str(folder)),
        "--",
        *command,
    ]


def readable_paths(environment: Mapping[str, str], search_path: Path, *, network: bool) -> list[Path]:
    """What a Python child reads: its interpreter, this process's module folders, this package, and where its environment points."""
    places = [sys.prefix, sys.base_prefix, sys.executable, *sys.path]
    for name in ("PYTHONPATH", "PATH", "LD_LIBRARY_PATH"):
        places += environment.get(name, "").split(os.pathsep)
    found = [Path(place).absolute() for place in places if place]
    found += [search_path.absolute(), Path(__file__).absolute().parents[2]]
    if network:
        found.append(Path("/etc/resolv.conf"))
    # A link to a folder below a hidden one is no use without its target.
    return [*found, *(path.resolve() for path in found)]


@functools.cache
def bubblewrap_problem() -> str:
    """Why bubblewrap does not work here, empty if it does: the same options are tried on a Python that ends at once."""
    if shutil.which("bwrap") is None:
        return "there is no program `bwrap` on PATH (Debian, Fedora: package bubblewrap)"
    readable = readable_paths({}, Path(), network=False)
    command = bubblewrap_command(
        Path("/tmp/samepath-probe"),
        [sys.executable, "-I", "-S", "-c", "pass"],
        readable=readable,
        disk_bytes=1 << 20,
        network=False,
    )
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"bwrap did not end within {PROBE_TIMEOUT_S:g} s"
    if done.returncode == 0:
        return ""
    said = done.stderr.decode(errors="replace").strip()
    return f"bwrap ends with {done.returncode}: {said or 'it says nothing'}"


def bubblewrap_version() -> str:
    """What `bwrap --version` prints."""
    done = subprocess.run(["bwrap", "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=True)
    return done.stdout.decode().strip()


def _below(path: Path, hidden: Iterable[str]) -> bool:
    return any(path.is_relative_to(name) for name in hidden)
