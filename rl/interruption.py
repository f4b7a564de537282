"""Ctrl-C and SIGTERM, which end a run between two steps: never while the weights are half way from one to the next."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

MESSAGE = b"\ninterrupted: this step's update is finished first; interrupt again to end at once, without a checkpoint\n"


class Interruption:
    """Turns signals into KeyboardInterrupt; while `held`, the first one waits for `release`.

    Example:
        with interruption.caught():
            sample()                # an interrupt is raised here,
            interruption.hold()
            update()                # waits here,
            interruption.release()  # and is raised here
    """

    def __init__(self) -> None:
        self.held = False
        """True while an interrupt waits, because a checkpoint would hold neither this step nor the last."""
        self._asked = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Handle both signals for the time of the run. Only a main thread may; in others nothing changes.

        To be entered after a cluster has started, because Ray installs a handler of its own.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def hold(self) -> None:
        """Let an interrupt wait from here on."""
        self.held = True

    def release(self) -> None:
        """Raise the KeyboardInterrupt that waited, and let none wait any more."""
        self.held = False
        if self._asked:
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.held and not self._asked:
            self._asked = True
            # Not through `sys.stderr`, whose buffer the interrupted code may be writing to.
            os.write(2, MESSAGE)
            return
        raise KeyboardInterrupt
