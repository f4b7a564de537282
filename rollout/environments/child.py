"""A child process that holds sessions of an environment under an interpreter of its own, as the parent sees it: requests, deadlines, its end.

The child's half and the lines between the two are described in `foreign/main.py`.
"""

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samepath.model.text.conversation import JsonValue
from samepath.rewards.sandbox.environment import child_environment
from samepath.rewards.sandbox.tree import descendants
from samepath.rollout.environments.protocol import EnvironmentFailure, FailureKind

MAIN = Path(__file__).parent / "foreign" / "main.py"
MAX_LINE_BYTES = 16 * 2**20
"""Longest line in either direction; the child keeps to the same bound."""
MAX_OUTPUT_CHARS = 2000
"""How much of the end of what the child printed is kept for messages."""
SHORTAGES = (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)
"""Errors of starting a process that say that the machine lacks memory, processes or files."""
END_WAIT_S = 5.0
"""Longest wait for a killed process to go."""


class RequestError(RuntimeError):
    """The child answered that a request raised; it lives on."""

    def __init__(self, kind: str, text: str) -> None:
        """`kind` is the child's word for it."""
        super().__init__(text)
        self.kind, self.text = kind, text


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a child runs.

    Example:
        Program(what="MCP server ['python', 'server.py']", adapter="mcp_client.py", options={"command": ["python", "server.py"]}, install="mcp==2.3.0")
    """

    what: str
    """Named in messages."""
    adapter: str
    """File in the folder `foreign`, or the path of another."""
    options: Mapping[str, JsonValue] = field(default_factory=dict)
    """Keyword arguments of its `Adapter`."""
    python: str = ""
    """Interpreter; empty: this process's own."""
    install: str = ""
    """What pip must install where a package is missing."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables beside those that foreign code is given anyway: PATH, language, numbers of threads, no keys."""

    @property
    def interpreter(self) -> str:
        """Path or name of the interpreter."""
        return self.python or sys.executable


class Child:
    """A running child. All methods belong to the event loop in which it was started."""

    def __init__(self, program: Program, process: asyncio.subprocess.Process, channel: socket.socket) -> None:
        self._program, self._process = program, process
        self._channel = channel
        self._output = ""
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._given_up: set[int] = set()
        self._next = 0
        self._failure: EnvironmentFailure | None = None
        self._ending: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, program: Program, limit_s: float) -> "Child":
        """Start one and open its adapter. Raises EnvironmentFailure of kind `start`, or `resource` where the machine is short of something."""
        ours, theirs = socket.socketpair()
        async with contextlib.AsyncExitStack() as undo:
            undo.callback(ours.close)
            with contextlib.closing(theirs):
                process = await spawned(program, theirs.fileno())
            child = cls(program, process, ours)
            undo.push_async_callback(child.end)
            await child._open(limit_s)
            undo.pop_all()
        return child

    async def _open(self, limit_s: float) -> None:
        self._reader, self._writer = await asyncio.open_connection(sock=self._channel, limit=MAX_LINE_BYTES)
        self._tasks = [asyncio.ensure_future(self._read_output()), asyncio.ensure_future(self._read_answers())]
        adapter = str(MAIN.parent / self._program.adapter)
        try:
            await self.ask("open", {"adapter": adapter, "options": dict(self._program.options)}, limit_s)
        except RequestError as error:
            hint = ""
            if error.kind == "missing" and self._program.install:
                hint = f". Install it there: {self._program.interpreter} -m pip install '{self._program.install}'"
            kind: FailureKind = "resource" if error.kind == "resource" else "start"
            raise EnvironmentFailure(
                kind, f"{self._program.what} under {self._program.interpreter}: {error.text}{hint}"
            ) from error
        except EnvironmentFailure as failure:
            kind = "start" if failure.kind in ("died", "timeout") else failure.kind
            raise EnvironmentFailure(kind, failure.detail) from failure

    @property
    def alive(self) -> bool:
        """True until it has ended or broken the protocol."""
        return self._failure is None

    async def ask(self, method: str, params: Mapping[str, Any], limit_s: float) -> Any:
        """The child's answer, within `limit_s`.

        Raises RequestError where the request raised, and EnvironmentFailure: `timeout` (no answer; the child goes on without this request),
        `died`, `protocol`. A caller who is cancelled gives the request up.
        """
        if self._failure is not None:
            raise self._failure
        number = self._next
        self._next += 1
        line = json.dumps({"id": number, "method": method, "params": params}).encode() + b"\n"
        if len(line) > MAX_LINE_BYTES:
            raise EnvironmentFailure(
                "protocol",
                f"{self._program.what}: a {method} of {len(line)} bytes; at most {MAX_LINE_BYTES} can be sent",
            )
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(limit_s):
                self._writer.write(line)
                with contextlib.suppress(ConnectionError):
                    await self._writer.drain()
                return await answer
        except TimeoutError as error:
            raise EnvironmentFailure(
                "timeout", f"{self._program.what}: no answer to {method} for {limit_s:g} s{self._printed()}"
            ) from error
        finally:
            if self._waiting.pop(number, None) is not None and self.alive:
                self._given_up.add(number)
                self._writer.write(json.dumps({"cancel": number}).encode() + b"\n")

    async def end(self) -> None:
        """Kill it with everything that it started, and free what it held. May be called again."""
        self._fail(EnvironmentFailure("died", f"{self._program.what}: ended"))
        if self._ending is None:
            self._ending = asyncio.ensure_future(self._end())
        # Whoever is cancelled meanwhile leaves nothing behind.
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        self._kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_WAIT_S):
                await self._process.wait()
        if hasattr(self, "_writer"):
            self._writer.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=END_WAIT_S)
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()
        self._channel.close()

    def _kill(self) -> None:
        """Stop everything below the child before anything is killed: nothing can start more, or slip away from its parent, meanwhile."""
        if self._process.returncode is not None:
            return
        seen: set[int] = set()
        while new := {self._process.pid, *descendants(self._process.pid)} - seen:
            for pid in new:
                send(pid, signal.SIGSTOP)
            seen |= new
        for pid in seen:
            send(pid, signal.SIGKILL)

    async def _read_output(self) -> None:
        assert self._process.stdout is not None
        while data := await self._process.stdout.read(1 << 16):
            self._output = (self._output + data.decode(errors="replace"))[-MAX_OUTPUT_CHARS:]

    async def _read_answers(self) -> None:
        """Hand answers out until there can be no more."""
        failure = EnvironmentFailure("died", f"{self._program.what}: the loop of its conversations ended")
        try:
            failure = await self._first_failure()
        finally:
            self._kill()
            self._fail(failure)

    async def _first_failure(self) -> EnvironmentFailure:
        while True:
            try:
                line = await self._reader.readline()
            except ValueError:
                return self._broken(f"a line of more than {MAX_LINE_BYTES} bytes")
            except ConnectionError:
                line = b""
            if not line.endswith(b"\n"):
                return await self._ended()
            if (problem := self._take(line)) is not None:
                return self._broken(problem)

    def _take(self, line: bytes) -> str | None:
        """Hand one answer to who waits for it; what is wrong with the line, if anything."""
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return f"a line that is no JSON: {line[:200]!r}"
        number = message.get("id") if isinstance(message, dict) else None
        if not isinstance(number, int) or not ({"result", "error"} & set(message)):
            return f"a line that is no answer: {line[:200]!r}"
        if number not in self._waiting and number not in self._given_up:
            return f"an answer that nobody asked for: {line[:200]!r}"
        error = message.get("error")
        if not isinstance(error, dict | None):
            return f"an error that is no object: {line[:200]!r}"
        self._given_up.discard(number)
        waiting = self._waiting.pop(number, None)
        if waiting is None or waiting.done():
            return None
        if error is None:
            waiting.set_result(message.get("result"))
        else:
            waiting.set_exception(RequestError(str(error.get("kind")), str(error.get("text"))))
        return None

    async def _ended(self) -> EnvironmentFailure:
        """The socket is closed: wait for the process, and for the last that it prints, and tell who waits."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_WAIT_S):
                await self._process.wait()
                await asyncio.wait(self._tasks[:1])
        code = self._process.returncode
        how = f"ended with exit code {code}" if code is not None else "closed its connection and does not end"
        if code is not None and code < 0:
            how = f"ended by signal {signal.Signals(-code).name}"
        return EnvironmentFailure("died", f"{self._program.what}: its process {how}{self._printed()}")

    def _broken(self, problem: str) -> EnvironmentFailure:
        return EnvironmentFailure("protocol", f"{self._program.what}: its process sent {problem}{self._printed()}")

    def _printed(self) -> str:
        text = self._output.strip()
        return f"; the end of what it printed: {text}" if text else "; it printed nothing"

    def _fail(self, failure: EnvironmentFailure) -> None:
        """From here on every request fails so; the first failure stays."""
        self._failure = self._failure or failure
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(EnvironmentFailure(self._failure.kind, self._failure.detail))
                # Whoever asked may have been cancelled.
                answer.exception()


async def spawned(program: Program, descriptor: int) -> asyncio.subprocess.Process:
    """The process of a child, which finds its socket under `descriptor`. Raises EnvironmentFailure."""
    try:
        return await asyncio.create_subprocess_exec(
            program.interpreter,
            str(MAIN),
            str(descriptor),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=[descriptor],
            start_new_session=True,
            # Sets and hashes of text have the same order in each child, whatever this process was started with.
            env={"PYTHONHASHSEED": "0", **child_environment(program.environment, ())},
        )
    except OSError as error:
        if error.errno in SHORTAGES:
            raise EnvironmentFailure("resource", f"{program.what}: no process can be started: {error}") from error
        raise EnvironmentFailure(
            "start",
            f"{program.what}: python must name an interpreter that can be run; got {program.interpreter!r} ({error.strerror}). "
            "Give the path of one that has the package.",
        ) from error


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
