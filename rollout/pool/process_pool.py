"""The pool of one worker in a child process: `runtime: inline` with `rollout.own_process`, and for engines that change the process they live in."""

import contextlib
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samepath.model.placement import ON_CPU, Placement
from samepath.rollout.bounded_call import OverdueError, bounded
from samepath.rollout.engine_errors import RolloutPoolError
from samepath.rollout.engine_settings import EngineSettings
from samepath.rollout.environments.request import Request
from samepath.rollout.pool.child_process import END_WAIT_S, ChildProcess
from samepath.rollout.pool.pool import Handover, IdleClock, PolledPool
from samepath.rollout.pool.process_calls import Answer, Call
from samepath.rollout.pool.settings import OnNewWeights, RolloutSettings
from samepath.rollout.types import Group
from samepath.rollout.weights.bucket import buckets
from samepath.rollout.weights.mark import Header
from samepath.rollout.weights.publication import Weights, publication
from samepath.rollout.weights.shared_memory import SharedBuckets


class WorkerLostError(RuntimeError):
    """The child ended or gave no answer in time."""


class _Child(ChildProcess):
    """One worker process."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__("samepath.rollout.pool.process_worker", environment)

    def call(self, method: str, *arguments: Any, timeout_s: float) -> Any:
        """The method's result. Raises WorkerLostError if there is none, RolloutPoolError with the worker's own exception."""

        def exchange() -> Answer:
            # Either may hang: a child that is stopped reads no weights, and may have written half of an answer.
            self.channel.send(Call(method=method, arguments=arguments))
            answer: Answer = self.channel.recv()
            return answer

        try:
            answer = bounded("worker", timeout_s, exchange)
        except OverdueError as error:
            raise WorkerLostError(f"gave no answer to {method} for {timeout_s:.0f} s") from error
        except (EOFError, ConnectionError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=END_WAIT_S)
            raise WorkerLostError(
                f"ended during {method} (exit status {self.process.poll()}){self.output()}"
            ) from error
        if answer.failure:
            raise RolloutPoolError(
                f"the rollout worker stopped in {method}: {answer.failure}\n{answer.details['traceback']}"
            )
        return answer.value


class ProcessPool(PolledPool):
    """One rollout worker beside this process; a dead or silent one is replaced and its groups run again."""

    def __init__(
        self,
        model_folder: Path,
        engine: EngineSettings,
        settings: RolloutSettings,
        environment: Mapping[str, str],
        placement: Placement = ON_CPU,
    ) -> None:
        """Start the worker in exactly `environment`, which says what GPU it sees. Raises RolloutPoolError with the reason if it does not start."""
        super().__init__()
        self._fresh: list[Request] = []
        self._pending: dict[str, Request] = {}
        self._clock = IdleClock()
        self._start_arguments = (model_folder.resolve(), engine, settings.threads, placement)
        self._settings, self._environment = settings, environment
        self._shared = SharedBuckets()
        self._header: Header | None = None
        self._handover = Handover()
        self._replaced = 0
        with contextlib.ExitStack() as failed:
            failed.callback(self._shared.close)
            self._child = self._start()
            failed.pop_all()

    def process_ids(self) -> list[int]:
        """Operating-system process of the worker, for people and fault tests."""
        return [self._call("process_id")]

    def submit(self, requests: Sequence[Request]) -> None:
        """See `RolloutPool.submit`; they are worked on while somebody polls."""
        self._fresh += requests
        self._pending |= {request.group_id: request for request in requests}

    def _poll(self, wait_s: float) -> list[Group]:
        if not self._pending:
            # Who samples while it learns polls without an end, and a learner is in this process.
            time.sleep(wait_s)
            return []
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

    def load_weights(self, weights: Weights, version: int) -> None:
        """Put the weights into memory that the worker shares, and whatever replaces it."""
        self.offer_weights(weights, version, "continue")

    def offer_weights(self, weights: Weights, version: int, on_new_weights: OnNewWeights) -> None:
        """See `RolloutPool.offer_weights`."""
        given = publication(weights, version)
        assert given.tensors is not None
        self._shared.write(buckets(given.tensors.items(), given.bucket_bytes))
        self._header, load_s = given.header, 0.0
        if self._fresh:
            # What was submitted before is sampled with the weights before.
            self._others += self._poll(0.0)
        try:
            load_s = self._load(self._child, self._header, on_new_weights, self._settings.stall_timeout_s)
        except WorkerLostError as error:
            self._replace(str(error))
        self._handover = Handover(load_s=load_s, sent_bytes=self._shared.size_bytes)

    def handover(self) -> Handover:
        """See `RolloutPool.handover`."""
        return self._handover

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
        self._shared.close()

    def _load(self, child: _Child, head: Header, on_new_weights: OnNewWeights, limit_s: float) -> float:
        """Let a worker take what stands in the shared memory; returns its seconds."""
        took_s: float = child.call(
            "take_shared", head.version, on_new_weights, head, self._shared.held, timeout_s=limit_s
        )
        return took_s

    def _call(self, method: str) -> Any:
        return self._child.call(method, timeout_s=self._settings.stall_timeout_s)

    def _start(self) -> _Child:
        child, limit_s = _Child(self._environment), self._settings.start_timeout_s
        deadline = time.monotonic() + limit_s
        with contextlib.ExitStack() as failed:
            failed.callback(child.end)
            try:
                child.call("start", *self._start_arguments, timeout_s=limit_s)
                if self._header is not None:
                    self._load(child, self._header, "continue", max(1.0, deadline - time.monotonic()))
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
