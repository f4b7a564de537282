"""One killable child process that scores requests, as the parent sees it."""

import contextlib
import json
import logging
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samepath.rewards.sandbox.frames import FrameBuffer, packed
from samepath.rewards.settings import RewardSettings

MAX_REPLY_BYTES = 1 << 20
"""Longest reply that is believed; a child that announces more no longer speaks the protocol."""
MAX_OUTPUT_BYTES = 4000
"""How much of the end of a child's output is kept."""
KILL_WAIT_S = 10.0
"""Longest wait for a killed process to go. Only one stuck inside the kernel takes longer; it is then left behind."""

logger = logging.getLogger(__name__)


class RewardStartError(RuntimeError):
    """The reward functions cannot be loaded in a child process; the message names the function and the reason."""


class RunnerClosedError(RuntimeError):
    """The runner was closed while a child was being waited for."""


class RewardProcess:
    """A child in a session of its own, so that killing its group ends its own children too (unless they leave the group).

    Belongs to the thread that makes it: on Linux the child is killed when that thread ends.
    """

    def __init__(self, settings: RewardSettings, wake: socket.socket) -> None:
        """Start the child. `wake` turning readable makes every wait raise RunnerClosedError."""
        self._settings = settings
        self._channel, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-X",
                    "faulthandler",
                    "-m",
                    "samepath.rewards.sandbox.worker",
                    str(theirs.fileno()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except OSError as error:
            self._channel.close()
            raise RewardStartError(f"no process for reward functions can be started: {error}") from error
        finally:
            theirs.close()
        assert self._process.stdout is not None
        self._output = self._process.stdout
        self._tail = b""
        self._received = FrameBuffer(MAX_REPLY_BYTES)
        self._channel.setblocking(False)
        os.set_blocking(self._output.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._channel, selectors.EVENT_READ, "channel")
        self._selector.register(self._output, selectors.EVENT_READ, "output")
        self._selector.register(wake, selectors.EVENT_READ, "wake")

    def load(self) -> None:
        """Make the child import the reward functions and wait until it has.

        Raises RewardStartError (wrong path, failing or hanging import) and RunnerClosedError.
        """
        parts = [(name, part.function, part.options) for name, part in self._settings.parts.items()]
        orders = {
            "parent_pid": os.getpid(),
            "search_path": str(Path(self._settings.search_path).absolute()),
            "memory_bytes": self._settings.memory_bytes,
            "parts": parts,
        }
        deadline = time.monotonic() + self._settings.start_timeout_s
        loading = parts[0][0]
        try:
            self.send(pickle.dumps(orders), deadline)
            while "ready" not in (message := self.receive(deadline)):
                if "failed" in message:
                    raise RewardStartError(self._complaint(loading, message["failed"]))
                loading = message["loading"]
        except TimeoutError as error:
            reason = f"no result of the import within {self._settings.start_timeout_s} s (reward.start_timeout_s)"
            raise RewardStartError(self._complaint(loading, reason)) from error
        except (EOFError, ValueError) as error:
            raise RewardStartError(
                self._complaint(loading, f"its process ended during the import: {self.end()}")
            ) from error

    def send(self, payload: bytes, deadline: float) -> None:
        """Send one frame. Raises TimeoutError after `deadline` (monotonic seconds), EOFError if the child has ended."""
        left = memoryview(packed(payload))
        while left:
            try:
                left = left[self._channel.send(left) :]
            except BlockingIOError:
                self._selector.modify(self._channel, selectors.EVENT_WRITE, "channel")
                self._wait(deadline)
                self._selector.modify(self._channel, selectors.EVENT_READ, "channel")
            except (BrokenPipeError, ConnectionResetError) as error:
                raise EOFError from error

    def receive(self, deadline: float) -> Mapping[str, Any]:
        """Wait for one reply. Raises as `send`, and ValueError if it is no JSON object."""
        while (payload := self._received.pop()) is None:
            self._wait(deadline)
            self._received.feed(self._read_channel())
        message = json.loads(payload)
        if not isinstance(message, dict):
            raise ValueError(f"a reply must be a JSON object; got {payload[:200]!r}")
        return message

    def idle(self) -> bool:
        """True if the child lives and has said nothing since its last reply."""
        try:
            self._channel.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        return False

    def end(self) -> str:
        """Kill the child and its group if they still run, free everything, and say how the child ended.

        May be called again; then it only repeats what it said.
        """
        if not self._output.closed:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                # Not yet waited for, so the id still belongs to this child even if it is dead.
                os.killpg(self._process.pid, signal.SIGKILL)
            try:
                self._process.wait(timeout=KILL_WAIT_S)
            except subprocess.TimeoutExpired:
                logger.warning("reward process %d does not go although it was killed; left behind", self._process.pid)
            self._read_output()
            self._selector.close()
            self._channel.close()
            self._output.close()
        return f"{_ending(self._process.returncode)}{self.output()}"

    def output(self) -> str:
        """The end of what the child printed, ready to be appended to a message."""
        text = self._tail.decode(errors="replace").strip()
        return f"; it printed: {text}" if text else ""

    def _wait(self, deadline: float) -> None:
        while True:
            ready = {key.data for key, _ in self._selector.select(max(0.0, deadline - time.monotonic()))}
            if "wake" in ready:
                raise RunnerClosedError
            if "output" in ready and not self._read_output():
                self._selector.unregister(self._output)
            if "channel" in ready:
                return
            if time.monotonic() >= deadline:
                raise TimeoutError

    def _read_channel(self) -> bytes:
        try:
            data = self._channel.recv(1 << 16)
        except BlockingIOError:
            return b""
        except ConnectionResetError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        return data

    def _read_output(self) -> bool:
        """Keep the end of what is waiting in the output pipe; False once every writer has closed it."""
        data = self._output.read(1 << 16)
        if data:
            self._tail = (self._tail + data)[-MAX_OUTPUT_BYTES:]
        return data != b""

    def _complaint(self, part: str, reason: str) -> str:
        return f"reward function {self._settings.parts[part].function!r} (part {part!r}) cannot be loaded: {reason}"


def _ending(returncode: int | None) -> str:
    if returncode is None:
        return "it does not end"
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return f"signal {signal.Signals(-returncode).name}"
    except ValueError:
        return f"signal {-returncode}"
