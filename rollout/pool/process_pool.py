"""The pool of one worker in a child process: `runtime: inline` for engines that change the process they live in."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samepath.rollout.bounded_call import OverdueError, bounded
from samepath.rollout.engine_errors import RolloutPoolError
from samepath.rollout.engine_settings import EngineSettings
from samepath.rollout.environments.request import Request
from samepath.rollout.pool.pool import IdleClock, PolledPool, Weights
from samepath.rollout.pool.process_calls import Answer, Call
from samepath.rollout.pool.settings import OnNewWeights, RolloutSettings
from samepath.rollout.types import Group

END_WAIT_S = 10.0
"""Longest wait for a killed child to go."""
MAX_OUTPUT_CHARS = 2000
"""How much of the end of a child's output goes into an error message."""


class WorkerLostError(RuntimeError):
    """The child ended or gave no answer in time."""


class _Child:
    """One worker process in a session of its own, so that Ctrl-C reaches the driver alone."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the child)
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-X",
                    "faulthandler",
                    "-m",
                    "samepath.rollout.pool.process_worker",
                    str(theirs.fileno()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=dict(environment),
            )
        self._socket = ours.dup()
        self._channel = Connection(ours.detach())

    def call(self, method: str, *arguments: Any, timeout_s: float) -> Any:
        """The method's result. Raises WorkerLostError if there is none, RolloutPoolError with the worker's own exception."""

        def exchange() -> Answer:
            # Either may hang: a child that is stopped reads no weights, and may have written half of an answer.
            self._channel.send(Call(method=method, arguments=arguments))
            answer: Answer = self._channel.recv()
            return answer

        try:
            answer = bounded("worker", timeout_s, exchange)
        except OverdueError as error:
            raise WorkerLostError(f"gave no answer to {method} for {timeout_s:.0f} s") from error
        except (EOFError, ConnectionError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=END_WAIT_S)
            raise WorkerLostError(
                f"ended during {method} (exit status {self._process.poll()}){self.output()}"
            ) from error
        if answer.failure:
            raise RolloutPoolError(
                f"the rollout worker stopped in {method}: {answer.failure}\n{answer.details['traceback']}"
            )
        return answer.value

    def output(self) -> str:
        """The end of what the child printed, for an error message."""
        self._output.seek(0)
        text = self._output.read().decode(errors="replace").strip()[-MAX_OUTPUT_CHARS:]
        return f"; it printed: {text}" if text else ""

    def end(self) -> None:
        """Kill the child and what it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=END_WAIT_S)
        with contextlib.suppress(OSError):
            # Wakes a call that is still in the channel.
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._channel.close()
        self._output.close()


class ProcessPool(PolledPool):
    """One rollout worker beside this process; a dead or silent one is replaced and its groups run again."""

    def __init__(
        self, model_folder: Path, engine: EngineSettings, settings: RolloutSettings, environment: Mapping[str, str]
    ) -> None:
        """Start the worker in exactly `environment`. Raises RolloutPoolError with the reason if it does not start."""
        super().__init__()
        self._fresh: list[Request] = []
        self._pending: dict[str, Request] = {}
        self._clock = IdleClock()
        self._start_arguments = (model_folder.resolve(), engine, settings.threads)
        self._settings, self._environment = settings, environment
        self._weights: tuple[Mapping[str, NDArray[np.float32]], int] | None = None
        self._replaced = 0
        self._child = self._start()

    def process_ids(self) -> list[int]:
        """Operating-system process of the worker, for people and fault tests."""
        return [self._call("process_id")]

    def submit(self, requests: Sequence[Request]) -> None:
        """See `RolloutPool.submit`; they are worked on while somebody polls."""
        self._fresh += requests
        self._pending |= {request.group_id: request for request in requests}

    def _poll(self, wait_s: float) -> list[Group]:
        fresh, self._fresh = self._fresh, []
        self._clock.set(idle=False)
        try:
            groups: list[Group] = self._child.call("work", fresh, wait_s, timeout_s=self._settings.stall_timeout_s)
        except WorkerLostError as error:
            self._replace(str(error))
            return []
        finally:
            self._clock.set(idle=True)
        for group in groups:
            del self._pending[group.group_id]
        return groups

    def load_weights(self, tensors: Weights, version: int) -> None:
        """Hand the weights to the worker, and a copy to whatever replaces it: the learner changes its own in place."""
        self.offer_weights(tensors, version, "continue")

    def offer_weights(self, tensors: Weights, version: int, on_new_weights: OnNewWeights) -> None:
        """See `RolloutPool.offer_weights`."""
        self._weights = ({name: np.array(array, np.float32) for name, array in tensors.items()}, version)
        if self._fresh:
            # What was submitted before is sampled with the weights before.
            self._others += self._poll(0.0)
        try:
            self._child.call("load_weights", *self._weights, on_new_weights, timeout_s=self._settings.stall_timeout_s)
        except WorkerLostError as error:
            self._replace(str(error))

    def idle_s(self) -> float:
        """See `RolloutPool.idle_s`: whenever nobody polls."""
        return self._clock.seconds

    def statistics(self) -> dict[str, float]:
        """The worker's totals since it was started; of one that does not answer, `replaced_workers` alone."""
        totals: dict[str, float] = {}
        with contextlib.suppress(WorkerLostError):
            totals = self._call("statistics")
        return {**totals, "replaced_workers": float(self._replaced)}

    def close(self) -> None:
        """End the worker."""
        self._child.end()

    def _call(self, method: str) -> Any:
        return self._child.call(method, timeout_s=self._settings.stall_timeout_s)

    def _start(self) -> _Child:
        child, limit_s = _Child(self._environment), self._settings.start_timeout_s
        deadline = time.monotonic() + limit_s
        with contextlib.ExitStack() as failed:
            failed.callback(child.end)
            try:
                child.call("start", *self._start_arguments, timeout_s=limit_s)
                if self._weights is not None:
                    child.call("load_weights", *self._weights, timeout_s=max(1.0, deadline - time.monotonic()))
            except WorkerLostError as error:
                raise RolloutPoolError(
                    f"the rollout worker must load {self._start_arguments[0]} within rollout.start_timeout_s={limit_s:.0f} s; it {error}"
                ) from error
            failed.pop_all()
        return child

    def _replace(self, reason: str) -> None:
        """Start a fresh worker with the current weights; what was not finished runs again."""
        self._child.end()
        self._fresh = list(self._pending.values())
        self._replaced += 1
        if self._replaced > self._settings.max_replacements:
            raise RolloutPoolError(
                f"the rollout worker may be replaced rollout.max_replacements={self._settings.max_replacements} times; the last one {reason}"
            )
        self._child = self._start()
