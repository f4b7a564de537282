"""The child process in which reward functions run: `python -P -m samepath.rewards.sandbox.worker FD`, started by `process.py`.

One request at a time, on the main thread, so that functions may use signals (math-verify's alarms). The socket FD carries
pickled requests in and JSON replies out: the parent never unpickles what foreign code wrote. Standard output and standard
error both go to the parent's log pipe, so prints cannot touch the protocol.
"""

import asyncio
import json
import math
import os
import pickle
import resource
import socket
import sys
import traceback
from collections.abc import Awaitable, Mapping, Sequence
from inspect import isawaitable
from types import TracebackType
from typing import Any, Self

from samepath.rewards.plugin import PluginError, RewardFunction, resolve
from samepath.rewards.request import RewardRequest
from samepath.rewards.sandbox.frames import HEADER, TOKEN_BYTES, packed
from samepath.rewards.sandbox.reply import MAX_ENTRIES, MAX_NAME_CHARS

RESERVE_BYTES = 8 << 20
"""Address space kept for the reply that says that there is no more; not counted against reward.memory_bytes."""
OUT_OF_MEMORY = "it ran into its memory limit (reward.memory_bytes)"
MAX_MESSAGE_CHARS = 2000

Part = tuple[str, RewardFunction, Mapping[str, Any]]
"""Name, function, options."""


class Contained:
    """Turn whatever foreign code raises into data; the one place where any exception at all is swallowed.

    `sys.exit()` and `BaseException`s of libraries count too: only the parent decides when a child ends.
    """

    def __init__(self) -> None:
        self.status = "ok"
        self.detail = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if kind is None or error is None:
            return False
        if issubclass(kind, MemoryError):
            # No formatting: the frames that filled the memory are still alive here.
            self.status, self.detail = "memory", OUT_OF_MEMORY
            return True
        self.status, self.detail = "error", _explained(kind, error, trace)
        return True


class Channel:
    """The child's end of the socket."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        # Neither a program nor a fork that a reward function starts may keep the socket open or write to it.
        self._socket.set_inheritable(False)
        os.register_at_fork(after_in_child=self._socket.close)
        self._token = bytes(TOKEN_BYTES)
        self._header = memoryview(bytearray(HEADER.size))
        self._waste = memoryview(bytearray(1 << 16))
        self._reserve = bytearray(RESERVE_BYTES)

    def receive(self) -> bytearray:
        """Wait for the next frame, whose token the replies will carry; end the process once the parent has closed its end.

        Raises MemoryError after reading to the end of a frame that does not fit, so that the parent listens again.
        """
        self._fill(self._header)
        size, self._token = HEADER.unpack(self._header)
        try:
            payload = bytearray(size)
        except MemoryError:
            while size:
                size -= self._fill(self._waste[:size])
            raise
        self._fill(memoryview(payload))
        return payload

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one JSON object about the request received last."""
        self._socket.sendall(packed(self._token, json.dumps(message).encode()))

    def send_out_of_memory(self) -> None:
        """Say so, from memory kept back for it; the parent then ends this process."""
        self._reserve.clear()
        self.send({"status": "memory", "detail": OUT_OF_MEMORY})

    def _fill(self, buffer: memoryview) -> int:
        """Read as many bytes as `buffer` holds; return how many those are."""
        done = 0
        while done < len(buffer):
            count = self._socket.recv_into(buffer[done:])
            if count == 0:
                raise SystemExit(0)
            done += count
        return done


def serve(fd: int) -> None:
    """Load every part, report it, then answer requests on the socket `fd` until the parent closes it."""
    channel = Channel(fd)
    orders = pickle.loads(channel.receive())
    sys.path.insert(0, orders["search_path"])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (orders["disk_bytes"], orders["disk_bytes"]))
    parts: list[Part] = []
    for name, path, options in orders["parts"]:
        channel.send({"loading": name})
        with Contained() as contained:
            try:
                parts.append((name, resolve(path, options), options))
            except PluginError as error:
                contained.status, contained.detail = "error", str(error)
        if contained.status != "ok":
            channel.send({"failed": contained.detail})
            return
    with asyncio.Runner() as loop:
        limit_memory(orders["memory_bytes"])
        channel.send({"ready": True})
        while True:
            try:
                answer(channel, loop, parts, channel.receive())
            except MemoryError:
                # Outside the functions too: a leak fills the memory up to wherever the next byte is asked for.
                channel.send_out_of_memory()


def answer(channel: Channel, loop: asyncio.Runner, parts: Sequence[Part], payload: bytearray) -> None:
    """Score one request: a reply for each part in order, up to the first that fails.

    A reply of its own for each part tells the parent which one hangs or kills the process.
    """
    for index, (name, function, options) in enumerate(parts):
        with Contained() as contained:
            if index == 0:
                request: RewardRequest = pickle.loads(payload)
            returned = function(request, **options)
            if isawaitable(returned):
                returned = loop.run(_awaited(returned))
            values, complaint = named_values(name, returned)
        if contained.status == "memory":
            channel.send_out_of_memory()
            return
        if contained.status != "ok":
            channel.send({"status": contained.status, "detail": contained.detail})
            return
        if complaint:
            channel.send({"status": "invalid", "detail": complaint})
            return
        channel.send({"status": "ok", "values": values})


def named_values(part: str, returned: Any) -> tuple[dict[str, float], str]:
    """Turn what a function returned into named numbers, or say why it is no reward.

    Example:
        named_values("answer", 1)              -> {"answer": 1.0}, ""
        named_values("style", {"tone": 0.5})   -> {"style/tone": 0.5}, ""
        named_values("answer", None)           -> {}, "it must return a finite number …"
    """
    if not isinstance(returned, Mapping):
        entries = {part: returned}
    elif returned and all(isinstance(key, str) for key in returned):
        entries = {f"{part}/{key}": value for key, value in returned.items()}
    else:
        return {}, f"a mapping must name at least one number by a string; got {_shortened(repr(returned))}"
    if len(entries) > MAX_ENTRIES or any(len(name) > MAX_NAME_CHARS for name in entries):
        most = f"at most {MAX_ENTRIES} numbers, with names of at most {MAX_NAME_CHARS} characters, the part's included"
        return {}, f"a mapping must hold {most}; got {len(entries)} with names of up to {max(map(len, entries))}"
    values = {}
    for name, value in entries.items():
        number = _finite(value)
        if number is None:
            return (
                {},
                f"it must return a finite number; got {_shortened(repr(value))} ({type(value).__name__}) for {name}",
            )
        values[name] = number
    return values, ""


def limit_memory(memory_bytes: int) -> None:
    """Allow this process `memory_bytes` of address space on top of what is mapped now (0 = no limit).

    Counted from here because imports alone may map gigabytes that are never touched.
    """
    if memory_bytes == 0 or sys.platform != "linux":
        return
    with open("/proc/self/statm", encoding="ascii") as statm:
        mapped_bytes = int(statm.read().split()[0]) * resource.getpagesize()
    limit = mapped_bytes + memory_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _explained(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> str:
    """The exception in one line with the place that raised it."""
    text = _shortened("".join(traceback.format_exception_only(kind, error)).strip())
    if trace is None:
        return text
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"{text} ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"


def _finite(value: Any) -> float | None:
    if not hasattr(type(value), "__float__"):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE_CHARS else text[:MAX_MESSAGE_CHARS] + " …"


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


if __name__ == "__main__":
    serve(int(sys.argv[1]))
