"""The adapter of a child that does whatever it is told, good and bad; needs nothing but Python."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


class Adapter:
    def __init__(self, greeting: str = "", fault: str = "") -> None:
        self._greeting, self._notes = greeting, {}
        print("printed while it opens")
        if fault == "exit":
            print("the last words", file=sys.stderr)
            os._exit(7)
        if fault == "package":
            import a_package_that_nobody_has  # noqa: F401
        if fault == "hang":
            signal.pause()
        if fault == "raise":
            raise ValueError("these options cannot be")

    async def start(self, session: int, row: Any, seed: int) -> Any:
        if row.get("refuse"):
            raise RuntimeError("no such world")
        self._notes[session] = []
        return {"greeting": self._greeting, "seed": seed, "draw": random.Random(seed).random(), "hash": hash("text")}

    async def call(self, session: int, name: str, arguments: dict[str, Any], turn: int) -> Any:
        self._notes[session].append([name, turn])
        return await getattr(self, name)(**arguments)

    async def close(self, session: int) -> None:
        del self._notes[session]

    async def score(self, session: int) -> Any:
        return self._notes[session]

    async def echo(self, text: str) -> Any:
        return {"text": text, "error": ""}

    async def variable(self, key: str) -> Any:
        return {"text": os.environ.get(key, "not set"), "error": ""}

    async def where(self) -> Any:
        return {"text": f"{os.getpid()} {sys.path[0]}", "error": ""}

    async def noisy(self, megabytes: int) -> Any:
        for _ in range(megabytes):
            sys.stdout.write("x" * 2**20)
        subprocess.run([sys.executable, "-c", "print('from below')"], check=True)
        return {"text": "quiet", "error": ""}

    async def hang(self, mark: str = "") -> Any:
        if mark:
            Path(mark).write_text("begun")
        try:
            await asyncio.Event().wait()
        finally:
            if mark:
                Path(mark).write_text("given up")

    async def block(self) -> Any:
        signal.pause()

    async def rendezvous(self, key: str) -> Any:
        """Returns once two calls are here."""
        waiting = self.__dict__.setdefault("_meeting", asyncio.Event())
        if self.__dict__.setdefault("_came", []):
            waiting.set()
        self._came.append(key)
        await waiting.wait()
        return {"text": key, "error": ""}

    async def die(self, code: int) -> Any:
        print("about to die", file=sys.stderr, flush=True)
        os._exit(code)

    async def kill(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    async def fail(self, kind: str) -> Any:
        if kind == "memory":
            raise MemoryError
        raise RuntimeError("not as it should be")

    async def odd(self, what: str) -> Any:
        return {
            "set": {1},
            "nan": float("nan"),
            "number": 5,
            "huge": "y" * (17 * 2**20),
            "half": {"text": "a\ud800b", "error": ""},
        }[what]

    async def long(self, length: int) -> Any:
        return {"text": "z" * length, "error": ""}

    async def wire(self, text: str, times: int = 1) -> Any:
        """Bytes on the protocol's own socket, past the protocol."""
        descriptor = int(sys.argv[1])
        for _ in range(times):
            data = text.encode("latin-1")
            while data:
                try:
                    data = data[os.write(descriptor, data) :]
                except BlockingIOError:
                    await asyncio.sleep(0)
        await asyncio.Event().wait()

    async def offspring(self) -> Any:
        """A process in a session of its own, and one that lost its parent."""
        code = "import os,time\nif os.fork(): os._exit(0)\nos.setsid()\nprint(os.getpid(), flush=True)\nimport signal\nsignal.pause()"
        own = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
        lost = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert lost.stdout is not None
        return {"text": f"{own.pid} {int(lost.stdout.readline())}", "error": ""}
