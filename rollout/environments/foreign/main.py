"""The child's half of a foreign environment: started by its path, under an interpreter that needs none of this project's packages.

Runs on Python 3.10 and later with the standard library alone; what is foreign comes with the file that the first request names. The protocol has
a socket of its own, whose number is the only argument: whatever foreign code prints goes elsewhere. One JSON object a line. The parent asks
`{"id": 3, "method": "call", "params": {…}}`; the child answers `{"id": 3, "result": …}` or `{"id": 3, "error": {"kind": "raised", "text": …}}`,
in whatever order the answers come. `{"cancel": 3}` gives a request up; it has no answer then.
"""

import asyncio
import ctypes
import errno
import functools
import importlib.util
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from typing import Any

MAX_LINE_BYTES = 16 * 2**20
"""Longest line in either direction."""
METHODS = ("rows", "start", "call", "reply", "score", "close")
"""What may be asked of the adapter once it is open."""
RESOURCE_ERRORS = (errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EAGAIN)
"""Errors of the operating system that say that memory, disk, files or processes are short."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
"""prctl(2)."""


class Child:
    """Answers requests, each in a task of its own."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._adapter: Any = None
        self._running: dict[int, asyncio.Task[Any]] = {}

    def take(self, line: bytes) -> None:
        """Begin what the parent asks for."""
        message = json.loads(line)
        if "cancel" in message:
            task = self._running.pop(message["cancel"], None)
            if task is not None:
                task.cancel()
            return
        number = message["id"]
        task = asyncio.ensure_future(self._ask(message["method"], message["params"]))
        self._running[number] = task
        task.add_done_callback(functools.partial(self._answer, number))

    async def _ask(self, method: str, params: dict[str, Any]) -> Any:
        if method == "open":
            self._adapter = loaded(params["adapter"]).Adapter(**params["options"])
            return {"python": sys.version.split()[0]}
        if method not in METHODS:
            raise ValueError(f"a child can be asked {', '.join(METHODS)}; got {method!r}")
        return await getattr(self._adapter, method)(**params)

    def _answer(self, number: int, task: "asyncio.Task[Any]") -> None:
        if self._running.pop(number, None) is None or task.cancelled():
            return
        error = task.exception()
        if error is None:
            line = written({"id": number, "result": task.result()})
        else:
            traceback.print_exception(type(error), error, error.__traceback__)
            line = written({"id": number, "error": {"kind": kind_of(error), "text": described(error)}})
        self._writer.write(line)


def loaded(path: str) -> Any:
    """Import the adapter's file, which need not be where imports are looked for."""
    spec = importlib.util.spec_from_file_location(os.path.basename(path)[: -len(".py")], path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # It may be in several files, of which this is the first.
    sys.path.insert(0, os.path.dirname(path))
    spec.loader.exec_module(module)
    sys.path.pop(0)
    return module


def written(message: dict[str, Any]) -> bytes:
    """One line; a result that JSON cannot say, or that is too long, becomes an error of that request."""
    try:
        line = json.dumps(message, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        return written(
            {"id": message["id"], "error": {"kind": "protocol", "text": f"a result that JSON cannot say: {error}"}}
        )
    if len(line) > MAX_LINE_BYTES:
        text = f"a result of {len(line)} bytes; at most {MAX_LINE_BYTES} can be handed over"
        return written({"id": message["id"], "error": {"kind": "protocol", "text": text}})
    return line


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors inside a group, or the error itself; groups have a type of their own from Python 3.11 on."""
    inner = getattr(error, "exceptions", None)
    if not isinstance(inner, (tuple, list)):
        yield error
        return
    for part in inner:
        yield from leaves(part)


def kind_of(error: BaseException) -> str:
    """What the parent makes of it: `missing` (package), `resource`, what the error says itself, else `raised`."""
    for leaf in leaves(error):
        if isinstance(leaf, ModuleNotFoundError):
            return "missing"
        if isinstance(leaf, MemoryError) or (isinstance(leaf, OSError) and leaf.errno in RESOURCE_ERRORS):
            return "resource"
        kind = getattr(leaf, "failure_kind", None)
        if isinstance(kind, str):
            return kind
    return "raised"


def described(error: BaseException) -> str:
    """For people."""
    return "; ".join(f"{type(leaf).__name__}: {leaf}"[:2000] for leaf in leaves(error))


def die_with_parent() -> None:
    """End with the parent, and keep orphans of what is started here below this process, where the parent finds them (Linux)."""
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


async def serve(descriptor: int) -> None:
    """Answer until the parent closes the socket."""
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    reader, writer = await asyncio.open_connection(sock=channel, limit=MAX_LINE_BYTES)
    child = Child(writer)
    while line := await reader.readline():
        child.take(line)
        await writer.drain()


if __name__ == "__main__":
    die_with_parent()
    # The folder of this file is no place for imports of foreign code.
    sys.path.pop(0)
    asyncio.run(serve(int(sys.argv[1])))
    sys.stderr.flush()
    # Threads of foreign code must not keep the process.
    os._exit(0)
