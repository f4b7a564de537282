"""A call into code that may hang (Ray, a pipe to a child, a tracking store), with a bound on the wait for it.

The call runs in a thread of its own. If it is not back in time the thread is left behind: nothing can end it, and it holds nobody up.
"""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

Answer = TypeVar("Answer")

LOOK_EVERY_S = 0.25
"""How often a wait looks whether what it waits for is still there."""

_overdue: list[threading.Thread] = []


class OverdueError(TimeoutError):
    """The call has not come back within its bound."""

    def __init__(self, message: str, thread: threading.Thread) -> None:
        super().__init__(message)
        self.thread = thread
        """Still inside the call."""


class _Outcome(Generic[Answer]):
    """What the call gave or raised, handed from its thread to the one that waits."""

    def __init__(self) -> None:
        self.known = threading.Event()
        self.error: BaseException | None = None
        self.value: Answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = error
        self.known.set()
        return True


class Begun(Generic[Answer]):
    """A call that runs in a thread of its own from now on, while the caller does something else. The thread ends with the call alone."""

    def __init__(self, of: str, call: Callable[[], Answer]) -> None:
        """`of` names the code that it enters."""
        self._outcome: _Outcome[Answer] = _Outcome()

        def body() -> None:
            with self._outcome:
                self._outcome.value = call()

        threading.Thread(target=body, name=f"samepath-{of}", daemon=True).start()

    @property
    def done(self) -> bool:
        """Whether it has come back."""
        return self._outcome.known.is_set()

    def settle(self) -> None:
        """Wait until it has come back, however."""
        self._outcome.known.wait()

    def result(self, wait_s: float) -> Answer:
        """What it returned, or raises what it raised. Raises TimeoutError if that is not known within `wait_s`."""
        if not self._outcome.known.wait(wait_s):
            raise TimeoutError(f"no answer for {wait_s:g} s")
        if self._outcome.error is not None:
            raise self._outcome.error
        return self._outcome.value


def nothing() -> None:
    """Look at nothing."""


def bounded(
    of: str,
    limit_s: float,
    call: Callable[[], Answer],
    look: Callable[[], None] = nothing,
    stays_until: threading.Event | None = None,
) -> Answer:
    """What `call` returns, or raises, within `limit_s`; `of` names the code that it enters.

    `look` is called about every LOOK_EVERY_S while it runs; what it raises ends the wait. The thread ends with the call, or stays until
    `stays_until` is set, where something that the call starts lives no longer than its thread.

    Raises:
        OverdueError: no answer in time.
    """
    outcome: _Outcome[Answer] = _Outcome()

    def body() -> None:
        with outcome:
            outcome.value = call()
        if stays_until is not None:
            stays_until.wait()

    thread = threading.Thread(target=body, name=f"samepath-{of}", daemon=True)
    deadline = time.monotonic() + limit_s
    thread.start()
    try:
        while not outcome.known.wait(max(0.0, min(LOOK_EVERY_S, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                raise OverdueError(f"no answer for {limit_s:.0f} s", thread)
            look()
    finally:
        # Also where Ctrl-C or `look` ended the wait.
        if not outcome.known.is_set():
            _overdue.append(thread)
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


def overdue(of: str = "") -> list[threading.Thread]:
    """Threads that nobody waits for any more and that are still inside `of` (inside anything by default)."""
    _overdue[:] = [thread for thread in _overdue if thread.is_alive()]
    return [thread for thread in _overdue if thread.name.startswith(f"samepath-{of}")]
