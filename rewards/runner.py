"""Score answers in a pool of killable child processes: nothing a reward function does can stop, crash or fool the run."""

import logging
import math
import pickle
import queue
import socket
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from samepath.rewards.request import RewardRequest
from samepath.rewards.sandbox.isolation import Isolation, IsolationUnavailableError, chosen_isolation
from samepath.rewards.sandbox.process import KILL_WAIT_S, RewardProcess, RewardStartError, RunnerClosedError
from samepath.rewards.score import Score, Status, bounded_score
from samepath.rewards.settings import RewardSettings

START_ATTEMPTS = 2
"""How often a child that must be replaced is started before the run is told that it cannot be."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    payload: bytes
    future: "Future[Score]"


class RewardRunner:
    """A pool of child processes, each with a thread that feeds it; use as a context manager.

    Each request gets a Score, whatever happens to the process that scores it: `error` (the function raised), `timeout` (no
    result in time: its processes are killed), `memory`, `died` (the process ended), `invalid` (no finite number). The
    process is then replaced, and the next request is unaffected. Only functions that cannot be loaded raise
    (RewardStartError). Asynchronous functions run one at a time in each child: `num_workers` is the concurrency.

    Example:
        with RewardRunner(RewardSettings.model_validate("samepath.rewards.exact:number")) as runner:
            scores = runner.score([RewardRequest(prompt_text="2+2=", response_text="4", answer={"answer": "4"})])
    """

    def __init__(self, settings: RewardSettings) -> None:
        """Raises RewardStartError if the isolation that the settings name does not work here."""
        self._settings = settings
        try:
            self.isolation: Isolation = chosen_isolation(settings)
        except IsolationUnavailableError as error:
            raise RewardStartError(str(error)) from error
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._broken: RewardStartError | None = None
        # Closing the bell makes the other end readable, which wakes every thread that waits for a child.
        self._wake, self._bell = socket.socketpair()

    def check(self) -> None:
        """Load every function in one child and end it again. Raises RewardStartError, within `start_timeout_s`."""
        self._refuse_if_closed()
        self._launch().end()

    def start(self) -> None:
        """Start all children and wait until they have loaded the functions; does nothing when already started, or without any function.

        Raises RewardStartError, after closing the runner.
        """
        with self._lock:
            self._refuse_if_closed()
            if self._threads or not self._settings.parts:
                return
            if self._settings.memory_bytes and sys.platform != "linux":
                logger.warning("reward.memory_bytes has no effect on %s: only Linux can limit it", sys.platform)
            readies: list[Future[None]] = [Future() for _ in range(self._settings.num_workers)]
            self._threads = [
                threading.Thread(target=self._serve, args=(ready,), name=f"reward-{index}", daemon=True)
                for index, ready in enumerate(readies)
            ]
            for thread in self._threads:
                thread.start()
        try:
            for ready in readies:
                ready.result()
        except RewardStartError:
            self.close()
            raise

    def submit(self, request: RewardRequest) -> "Future[Score]":
        """Queue one request; scoring overlaps with whatever the caller does next. Starts the children if need be.

        Raises RuntimeError without any function. The future raises only RewardStartError, or CancelledError if the runner is closed before its turn.
        """
        if not self._settings.parts:
            raise RuntimeError("there is no reward function to score with; name one in reward.parts")
        self.start()
        future: Future[Score] = Future()
        try:
            payload = pickle.dumps(request, pickle.HIGHEST_PROTOCOL)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            future.set_result(
                _failed("error", f"the request cannot be sent to a child; `answer` must be plain data: {error}")
            )
            return future
        with self._lock:
            self._refuse_if_closed()
            if self._broken is not None:
                raise self._broken
            self._jobs.put(_Job(payload=payload, future=future))
        return future

    def score(self, requests: Sequence[RewardRequest]) -> list[Score]:
        """Score all requests in parallel; scores come in the order of the requests."""
        futures = [self.submit(request) for request in requests]
        return [future.result() for future in futures]

    def close(self) -> None:
        """Kill all children and wait for them, for a bounded time. Waiting requests are cancelled. May be called again."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for job in self._drained():
                job.future.cancel()
            self._bell.close()
            for _ in self._threads:
                self._jobs.put(None)
        deadline = time.monotonic() + 2 * KILL_WAIT_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._wake.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self, ready: "Future[None]") -> None:
        """Body of one thread: keep one child alive and score jobs until the sentinel."""
        process: RewardProcess | None = None
        job: _Job | None = None
        try:
            process = self._launch()
            ready.set_result(None)
            while (job := self._jobs.get()) is not None:
                if not job.future.set_running_or_notify_cancel():
                    continue
                if not process.idle():
                    process.end()
                    process = self._relaunched()
                score, usable = self._scored(process, job.payload)
                job.future.set_result(score)
                if not usable:
                    process.end()
                    process = self._relaunched()
        except RunnerClosedError:
            self._give_up(RewardStartError("the runner was closed"), ready, job)
        except RewardStartError as error:
            self._give_up(error, ready, job)
        finally:
            if process is not None:
                process.end()
            if not ready.done() or (job is not None and not job.future.done()):
                # Only a defect of this file leads here; whoever waits must still hear of it.
                self._give_up(RewardStartError("a scoring thread ended; see its traceback"), ready, job)

    def _scored(self, process: RewardProcess, payload: bytes) -> tuple[Score, bool]:
        """Score one request; also tell whether the child can go on."""
        settings = self._settings
        deadline = time.monotonic() + settings.timeout_s
        values: dict[str, float] = {}
        terms: list[float] = []
        current = next(iter(settings.parts))
        try:
            process.send(payload, deadline)
            for current, part in settings.parts.items():
                reply = process.receive(deadline)
                if reply.status != "ok":
                    return _failed(reply.status, f"{current}: {reply.detail}"), reply.status != "memory"
                values |= reply.values
                terms.append(part.weight * sum(reply.values.values()))
        except TimeoutError:
            return _failed("timeout", f"{current}: no result within {settings.timeout_s} s{process.output()}"), False
        except EOFError:
            return _failed("died", f"{current}: its process ended with {process.end()}"), False
        except RunnerClosedError:
            return _failed("died", f"{current}: the runner was closed before it had a result"), False
        except ValueError as error:
            return _failed("died", f"{current}: its process broke the protocol ({error!r})"), False
        return bounded_score(sum(terms), values, settings.max_abs), True

    def _launch(self) -> RewardProcess:
        if self._closed:
            raise RunnerClosedError
        process = RewardProcess(self._settings, self.isolation.mode, self._wake)
        try:
            process.load()
        except (RewardStartError, RunnerClosedError):
            process.end()
            raise
        return process

    def _relaunched(self) -> RewardProcess:
        for _ in range(START_ATTEMPTS - 1):
            try:
                return self._launch()
            except RewardStartError as error:
                logger.warning("a reward process could not be replaced, trying again: %s", error)
        return self._launch()

    def _give_up(self, error: RewardStartError, ready: "Future[None]", job: _Job | None) -> None:
        """Tell everyone who waits that no child can be had, so that nobody waits for ever."""
        if not ready.done():
            ready.set_exception(error)
        if job is not None and not job.future.done():
            job.future.set_exception(error)
        with self._lock:
            self._broken = self._broken or error
            for waiting in self._drained():
                if waiting.future.set_running_or_notify_cancel():
                    waiting.future.set_exception(error)
            if self._closed:
                for _ in self._threads:
                    self._jobs.put(None)

    def _drained(self) -> list[_Job]:
        """Take every waiting job out of the queue."""
        jobs = []
        while not self._jobs.empty():
            job = self._jobs.get_nowait()
            if job is not None:
                jobs.append(job)
        return jobs

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise RuntimeError("this reward runner is closed; make a new one")


def _failed(status: Status, detail: str) -> Score:
    return Score(total=math.nan, status=status, detail=detail)
