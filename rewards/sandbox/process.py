"""One killable child process that scores requests, as the parent sees it."""

import logging
import os
import pickle
import secrets
import selectors
import signal
import socket
import time
from pathlib import Path

from samepath.rewards.sandbox.environment import MissingVariableError, child_environment
from samepath.rewards.sandbox.frames import TOKEN_BYTES, FrameBuffer, packed
from samepath.rewards.sandbox.isolation import Mode
from samepath.rewards.sandbox.reply import MAX_REPLY_BYTES, Reply, read_object, read_reply
from samepath.rewards.sandbox.supervised import SupervisedChild
from samepath.rewards.sandbox.supervisor import TOO_MANY_BYTES, TOO_MANY_PROCESSES
from samepath.rewards.settings import RewardSettings

MAX_OUTPUT_BYTES = 4000
"""How much of the end of a child's output is kept."""
KILL_WAIT_S = 10.0
"""Longest wait for a killed process to go. Only one stuck inside the kernel takes longer; it is then left behind."""

EXIT_WAIT_S = 1.0
"""Longest wait for how a child ended that has closed its socket: it is known only when all layers around it have ended too."""

logger = logging.getLogger(__name__)


class RewardStartError(RuntimeError):
    """The reward functions cannot be loaded in a child process; the message names the function and the reason."""


class RunnerClosedError(RuntimeError):
    """The runner was closed while a child was being waited for."""


class RewardProcess:
    """A child that ends with everything it started, and whose replies count only for the request that they name.

    Belongs to the thread that makes it: on Linux the child is killed when that thread ends.
    """

    def __init__(self, settings: RewardSettings, mode: Mode, wake: socket.socket) -> None:
        """Start the child. `wake` turning readable makes every wait raise RunnerClosedError."""
        self._settings = settings
        try:
            environment = child_environment(settings.environment, settings.pass_environment)
        except MissingVariableError as error:
            raise RewardStartError(str(error)) from error
        self._channel, theirs = socket.socketpair()
        try:
            self._child = SupervisedChild(theirs.fileno(), environment, settings, mode)
        except OSError as error:
            self._channel.close()
            raise RewardStartError(f"no process for reward functions can be started: {error}") from error
        finally:
            theirs.close()
        assert self._child.process.stdout is not None
        self._output = self._child.process.stdout
        self._tail = b""
        self._received = FrameBuffer(MAX_REPLY_BYTES)
        self._token = self._previous_token = b""
        self._hung_up = False
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
            "search_path": str(Path(self._settings.search_path).absolute()),
            "memory_bytes": self._settings.memory_bytes,
            "disk_bytes": self._settings.disk_bytes,
            "parts": parts,
        }
        deadline = time.monotonic() + self._settings.start_timeout_s
        loading = parts[0][0]
        try:
            self.send(pickle.dumps(orders), deadline)
            while "ready" not in (message := read_object(self._receive(deadline))):
                if "failed" in message:
                    raise RewardStartError(self._complaint(loading, message["failed"]))
                loading = message["loading"] if message.get("loading") in self._settings.parts else loading
        except TimeoutError as error:
            reason = f"no result of the import within {self._settings.start_timeout_s} s (reward.start_timeout_s)"
            raise RewardStartError(self._complaint(loading, reason)) from error
        except (EOFError, ValueError) as error:
            raise RewardStartError(
                self._complaint(loading, f"its process ended during the import: {self.end()}")
            ) from error

    def send(self, payload: bytes, deadline: float) -> None:
        """Send one frame under a new token. Raises TimeoutError after `deadline` (monotonic seconds), EOFError if the child has ended."""
        # Not to be guessed before the request arrives: what was said earlier, or elsewhere, is no reply to it.
        self._previous_token, self._token = self._token, secrets.token_bytes(TOKEN_BYTES)
        left = memoryview(packed(self._token, payload))
        while left:
            try:
                left = left[self._channel.send(left) :]
            except BlockingIOError:
                self._selector.modify(self._channel, selectors.EVENT_WRITE, "channel")
                self._wait(deadline)
                self._selector.modify(self._channel, selectors.EVENT_READ, "channel")
            except (BrokenPipeError, ConnectionResetError) as error:
                self._hung_up = True
                raise EOFError from error

    def receive(self, deadline: float) -> Reply:
        """Wait for one part's reply. Raises as `send`, and ValueError if it is none to the request sent last."""
        return read_reply(self._receive(deadline))

    def _receive(self, deadline: float) -> bytes:
        while True:
            while (frame := self._received.pop()) is None:
                self._wait(deadline)
                self._received.feed(self._read_channel())
            token, payload = frame
            if token == self._token:
                return payload
            # The request before may have been answered twice; this one must not suffer from it.
            if token != self._previous_token:
                raise ValueError(f"a reply must carry the token of its request; got {payload[:200]!r} under another")

    def idle(self) -> bool:
        """True if the child lives and has said nothing since its last reply."""
        if self._received.waiting():
            return False
        try:
            self._channel.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        return False

    def end(self) -> str:
        """Kill the child and all that it started, free everything, and say how the child ended.

        May be called again; then it only repeats what it said.
        """
        if not self._output.closed:
            if not self._child.end(KILL_WAIT_S, EXIT_WAIT_S if self._hung_up else 0.0):
                logger.warning("a reward process or its folder does not go although it was ended; left behind")
            self._read_output()
            self._selector.close()
            self._channel.close()
            self._output.close()
        return f"{self._ending()}{self.output()}"

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
        except ConnectionResetError:
            data = b""
        if not data:
            self._hung_up = True
            raise EOFError
        return data

    def _read_output(self) -> bool:
        """Keep the end of what is waiting in the output pipe; False once every writer has closed it."""
        data = self._output.read(1 << 16)
        if data:
            self._tail = (self._tail + data)[-MAX_OUTPUT_BYTES:]
        return data != b""

    def _ending(self) -> str:
        returncode = self._child.ending()
        if returncode is None:
            return "it does not end"
        if returncode == TOO_MANY_PROCESSES:
            return f"more than {self._settings.max_processes} processes at once (reward.max_processes)"
        if returncode == TOO_MANY_BYTES:
            return f"more than {self._settings.disk_bytes} bytes in its folder (reward.disk_bytes)"
        if returncode >= 0:
            return f"exit code {returncode}"
        try:
            return f"signal {signal.Signals(-returncode).name}"
        except ValueError:
            return f"signal {-returncode}"

    def _complaint(self, part: str, reason: str) -> str:
        return f"reward function {self._settings.parts[part].function!r} (part {part!r}) cannot be loaded: {reason}"
