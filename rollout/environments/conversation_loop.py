"""The thread beside the engine in which conversations and their tools live: one asyncio loop, watched for code that blocks it."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
END_WAIT_S = 2.0
"""Longest wait for the end of what was cancelled."""
SIGN_EVERY_S = 0.25
"""How often the loop is asked for a sign: each one interrupts it and whoever asks."""


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
        try:
            self._loop.run_forever()
            # Conversations that were cut off close their sessions.
            if tasks := asyncio.all_tasks(self._loop):
                for task in tasks:
                    task.cancel()
                self._loop.run_until_complete(asyncio.wait(tasks, timeout=END_WAIT_S))
        finally:
            self._loop.close()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run a coroutine there."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, function: Callable[..., None], *arguments: object) -> None:
        """Call a function there, soon; not at all if the loop has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    def blocked_s(self) -> float:
        """For how long the loop has not given the sign that it was asked for last, seconds; to be called again and again."""
        waited_s = time.monotonic() - self._asked_s
        if not self._answered:
            return waited_s
        if waited_s > SIGN_EVERY_S:
            self._answered, self._asked_s = False, time.monotonic()
            self.call(self._answer)
        return 0.0

    def _answer(self) -> None:
        self._answered = True

    def stop(self) -> None:
        """Let the loop end, its conversations with it. A thread that is blocked is not waited for: it ends whenever its code comes back."""
        self.call(self._loop.stop)
        self._thread.join(timeout=END_WAIT_S if self.blocked_s() < END_WAIT_S else 0)


async def settled(coroutine: Coroutine[Any, Any, T], limit_s: float) -> "asyncio.Task[T] | None":
    """The finished task of a coroutine; None after `limit_s` seconds. It is cancelled then, and not waited for: it may not heed that."""
    task = asyncio.ensure_future(coroutine)
    await asyncio.wait({task}, timeout=limit_s)
    if not task.done():
        task.cancel()
        return None
    return task
