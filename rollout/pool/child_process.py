"""A child process that answers pickled calls over a socket, in a session of its own, so that Ctrl-C reaches the driver alone."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.connection import Connection

END_WAIT_S = 10.0
"""Longest wait for a child to go that was killed, or that has ended."""
MAX_OUTPUT_CHARS = 2000
"""How much of the end of a child's output goes into an error message."""


class ChildProcess:
    """The module's `__main__`, with the number of its end of the socket as its first argument; `channel` is ours."""

    def __init__(self, module: str, environment: Mapping[str, str], *arguments: str) -> None:
        ours, theirs = socket.socketpair()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the child)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-X", "faulthandler", "-m", module, str(theirs.fileno()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=dict(environment),
            )
        self._socket = ours.dup()
        self.channel = Connection(ours.detach())

    def output(self) -> str:
        """The end of what it printed, for an error message."""
        self._output.seek(0)
        text = self._output.read().decode(errors="replace").strip()[-MAX_OUTPUT_CHARS:]
        return f"; it printed: {text}" if text else ""

    def end(self) -> None:
        """Kill it and what it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=END_WAIT_S)
        with contextlib.suppress(OSError):
            # Wakes a call that is still in the channel.
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.channel.close()
        self._output.close()
