"""The ranks beside the driver's own under `runtime: inline`: child processes that end with it."""

import contextlib
import os
import pickle
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

from samepath.model.placement import DeviceName
from samepath.rl.learner.lost import GO_ON, LearnerLostError
from samepath.rl.learner.rank_host import RankOf
from samepath.rl.learner.ranks import Meeting, Ranks, joined, opened
from samepath.rl.machine import child_environment, gpu_alone, import_path, keep_to_loopback
from samepath.rl.recipe.cluster import LOOPBACK
from samepath.rl.recipe.learner import RankSettings
from samepath.rollout.bounded_call import OverdueError, bounded
from samepath.rollout.pool.child_process import END_WAIT_S, ChildProcess
from samepath.rollout.pool.process_calls import Answer, Call

RANK = "learner rank"
"""Whose code the threads are in (`samepath.rollout.bounded_call.overdue`)."""


class _Child(ChildProcess):
    """One rank; it ends with this process, whatever ends that."""

    def __init__(self, rank: int, environment: Mapping[str, str]) -> None:
        super().__init__("samepath.rl.learner.rank_process", environment, str(os.getpid()))
        self.rank = rank
        self.asked: deque[str] = deque()
        """Calls of it alone that it has not answered."""
        self.answers: list[Any] = []
        """What such calls gave, until it is asked for."""
        self.heard_s = 0.0
        """When it was last asked or heard while any was open (`time.monotonic`)."""

    def send(self, call: bytes) -> None:
        """Hand over a pickled call. Raises OSError if the child is gone."""
        self.channel.send_bytes(call)

    def receive(self) -> Answer:
        """Its answer to the call sent last. Raises EOFError or OSError if it is gone."""
        answer: Answer = self.channel.recv()
        return answer

    def ending(self, wait_s: float) -> str:
        """How it ended and what it printed, or "" if it is there after `wait_s`."""
        try:
            code = self.process.wait(timeout=wait_s)
        except subprocess.TimeoutExpired:
            return ""
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return f"learner rank {self.rank} (process {self.process.pid}) ended with {how}{self.output()}"


class RankChildren:
    """Ranks 1 and above of what trains in this process, which is rank 0 itself."""

    def __init__(
        self, settings: RankSettings, device: DeviceName, recipe_dir: Path, make: Callable[[], RankOf[Any]]
    ) -> None:
        """Start them and meet them; each calls `make`, which crosses to it. Raises LearnerLostError if they do not all come in time."""
        self._timeout_s = settings.update_timeout_s
        keep_to_loopback()
        meeting, self._store = opened(LOOPBACK, settings.ranks, self._timeout_s)
        self._children = [_Child(rank, _environment(device, recipe_dir, rank)) for rank in range(1, settings.ranks)]
        with contextlib.ExitStack() as failed:
            failed.callback(self.close)
            for child in self._children:
                self._send([child], "start", (make, child.rank, meeting))
            self.ranks = self._met(meeting, device)
            failed.pop_all()

    def _met(self, meeting: Meeting, device: str) -> Ranks:
        """Rank 0, once all have come."""

        def look() -> None:
            for child in self._children:
                if ending := child.ending(0.0):
                    raise LearnerLostError(f"{ending}, while the ranks met. {GO_ON}")

        return bounded(RANK, 2 * self._timeout_s, lambda: joined(meeting, 0, device, self._store), look)

    @property
    def count(self) -> int:
        """How many they are."""
        return len(self._children)

    @contextlib.contextmanager
    def beside(self, method: str, *arguments: Any) -> Iterator[None]:
        """All of them make a call while this process does. Raises LearnerLostError, which says what has become of one that is lost."""
        self.begin(method, *arguments)
        try:
            yield
        except LearnerLostError as error:
            raise self.why(error, method) from error
        self.end(method)

    def begin(self, method: str, *arguments: Any) -> None:
        """Let all of them make a call, which rank 0 makes beside them. Raises LearnerLostError."""
        for child in self._children:
            while child.asked:
                self._hear(child)
        self._send(self._children, method, arguments)

    def ask(self, rank: int, method: str, *arguments: Any) -> None:
        """Let one rank make a call behind those that it was asked for before; see `heard`. Raises LearnerLostError."""
        child = self._children[rank - 1]
        self._send([child], method, arguments)
        if not child.asked:
            child.heard_s = time.monotonic()
        child.asked.append(method)

    def heard(self, wait_s: float) -> list[tuple[int, Any]]:
        """(rank, what it gave) of calls of one rank that were answered, each rank's in order; without any, waits for one.

        Raises LearnerLostError.
        """
        asked = {child.channel: child for child in self._children if child.asked}
        if any(child.answers for child in self._children):
            wait_s = 0.0
        for channel in wait(list(asked), wait_s):
            self._hear(asked[cast(Connection, channel)])
        for child in asked.values():
            if child.asked and time.monotonic() - child.heard_s > self._timeout_s:
                raise self._late(child, child.asked[0], self._timeout_s)
        found = [(child.rank, answer) for child in self._children for answer in child.answers]
        for child in self._children:
            child.answers = []
        return found

    def _hear(self, child: _Child) -> None:
        child.answers.append(self._answer(child, child.asked[0]))
        child.asked.popleft()
        child.heard_s = time.monotonic()

    def end(self, method: str) -> list[Any]:
        """What the call that was begun gave each of them. Raises LearnerLostError, with the reason of one that failed."""
        return [self._answer(child, method) for child in self._children]

    def why(self, error: LearnerLostError, method: str) -> LearnerLostError:
        """The error with what has become of the others: rank 0 itself only knows that they are away."""
        for child in self._children:
            try:
                self._answer(child, method, END_WAIT_S)
            except LearnerLostError as reason:
                return reason
        return error

    def close(self) -> None:
        """End them."""
        for child in self._children:
            child.end()

    def _send(self, children: Sequence[_Child], method: str, arguments: tuple[Any, ...]) -> None:
        call = pickle.dumps(Call(method=method, arguments=arguments))
        for child in children:
            try:
                # A child that is stopped reads nothing, and a call may be larger than the socket's buffer.
                bounded(RANK, self._timeout_s, partial(child.send, call))
            except OverdueError as error:
                raise self._late(child, method, self._timeout_s) from error
            except OSError as error:
                raise self._gone(child, method) from error

    def _answer(self, child: _Child, method: str, limit_s: float | None = None) -> Any:
        limit_s = self._timeout_s if limit_s is None else limit_s
        try:
            answer = bounded(RANK, limit_s, child.receive)
        except OverdueError as error:
            raise self._late(child, method, limit_s) from error
        except (EOFError, OSError) as error:
            raise self._gone(child, method) from error
        if answer.failure:
            raise LearnerLostError(
                f"learner rank {child.rank} failed in {method}: {answer.failure}\n{answer.details['traceback']}"
            )
        return answer.value

    def _gone(self, child: _Child, method: str) -> LearnerLostError:
        ending = (
            child.ending(END_WAIT_S) or f"learner rank {child.rank} (process {child.process.pid}) closed its channel"
        )
        return LearnerLostError(f"{ending}, during {method}. {GO_ON}")

    def _late(self, child: _Child, method: str, limit_s: float) -> LearnerLostError:
        return LearnerLostError(
            f"learner rank {child.rank} (process {child.process.pid}) gave no answer to {method} for {limit_s:.0f} s. Raise "
            f"learner.update_timeout_s, or look whether it is stopped. {GO_ON}"
        )


def _environment(device: DeviceName, recipe_dir: Path, rank: int) -> dict[str, str]:
    """Variables of a child: as the driver's, one thread, and a GPU of its own."""
    own = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    environment = child_environment({**import_path(recipe_dir), **own})
    if device == "cuda":
        environment |= gpu_alone(rank)
    return environment
