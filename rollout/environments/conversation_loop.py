"""The thread beside the engine in which conversations and their tools live: one asyncio loop, watched for code that blocks it."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class ConversationLoop:
    """An asyncio loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="conversations", daemon=True)
        self._asked_s = time.monotonic()
        self._answered = True
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run a coroutine there."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, function: Callable[..., None], *arguments: object) -> None:
        """Call a function there, soon."""
        self._loop.call_soon_threadsafe(function, *arguments)

    def blocked_s(self) -> float:
        """For how long the loop has not given the sign that it was asked for last, seconds; to be called again and again."""
        if self._answered:
            self._answered, self._asked_s = False, time.monotonic()
            self.call(self._answer)
        return time.monotonic() - self._asked_s

    def _answer(self) -> None:
        self._answered = True

    def stop(self) -> None:
        """Let the loop end; a thread that is blocked ends whenever its code comes back."""
        self.call(self._loop.stop)


async def settled(coroutine: Coroutine[Any, Any, T], limit_s: float) -> "asyncio.Task[T] | None":
    """The finished task of a coroutine; None after `limit_s` seconds. It is cancelled then, and not waited for: it may not heed that."""
    task = asyncio.ensure_future(coroutine)
    await asyncio.wait({task}, timeout=limit_s)
    if not task.done():
        task.cancel()
        return None
    return task
