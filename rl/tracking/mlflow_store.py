"""MLflow as a tracking store: what each event becomes there.

Imports mlflow: only `samepath.rl.tracking.mlflow_sink` and `.tracker` import this file. Its calls block, so they belong into the queue's thread.
"""

import contextlib
import fcntl
import functools
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, Metric, Param, Run, RunTag, Span
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient

from samepath.rl.diagnostics.meanings import metric_tables
from samepath.rl.tracking.events import Event, EventRefusedError, StoreUnavailableError
from samepath.rl.tracking.jsonl import rollout_from_plain
from samepath.rl.tracking.mlflow_parts import AWAY, Parts, batches, first_line
from samepath.rl.tracking.mlflow_traces import TraceTarget, build_trace
from samepath.rl.tracking.names import clean_file_name

logger = logging.getLogger("samepath.tracking")

METRICS_PER_CALL = 1000
LOCK_LIMIT_S = 60.0
"""Longest wait for another process to make the tables of the store."""
LOCK_POLL_S = 0.1
RUN_KEY_TAG = "samepath.run_key"
"""Tag with the id that a run has even while its store cannot be reached."""


class MlflowStore:
    """Sends events to one MLflow store. Sending an event twice changes nothing."""

    def __init__(self, uri: str, state: Mapping[str, Any] | None = None) -> None:
        """Reach for nothing yet; `state` goes on where an earlier one stopped."""
        self.uri = uri
        fresh = {"experiment_id": "", "run_id": "", "run_name": "", "attempt": 0, "attempt_key": ""}
        self._state: dict[str, Any] = {**fresh, **(state or {})}
        self._client: MlflowClient | None = None
        self._tracing: TracingClient | None = None
        self._parts = Parts()

    def state(self) -> dict[str, Any]:
        """Return experiment, run and attempt, for the queue file."""
        return dict(self._state)

    @property
    def run_id(self) -> str:
        """MLflow's id of the run; empty until the store has answered."""
        return str(self._state["run_id"])

    @property
    def experiment_id(self) -> str:
        """MLflow's id of the experiment; empty until the store has answered."""
        return str(self._state["experiment_id"])

    def send(self, event: Event) -> None:
        """Send one event.

        Raises:
            StoreUnavailableError: no answer, or an error that may pass.
            EventRefusedError: the store considers the event, or a part of it, invalid; the other parts were sent.
        """
        handlers = {
            "start": self._start,
            "names": self._names,
            "metrics": self._metrics,
            "rollouts": self._rollouts,
            "artifact": self._artifact,
            "checkpoint": self._checkpoint,
            "tags": lambda event: self._log_tags(event.payload["tags"]),
            "finish": self._finish,
        }
        if event.kind not in handlers:
            raise EventRefusedError(f"an event's kind is one of {', '.join(handlers)}; got {event.kind!r}")
        if event.kind != "start" and not self.run_id:
            raise EventRefusedError("the run was never started in this store")
        self._parts = Parts()
        try:
            self._connect()
            self._parts.send(event.kind, lambda: handlers[event.kind](event))
        except MlflowException as error:
            raise StoreUnavailableError(first_line(error)) from error
        except AWAY as error:
            raise StoreUnavailableError(first_line(error)) from error
        self._parts.raise_refused()

    def end_run(self, experiment: str, run_id: str, finished: bool, ended_ms: int) -> tuple[str, str]:
        """Give a run that nobody works on its end: FINISHED, or KILLED if it is not known to have failed.

        Returns its status before and after, both "" if the store has no such run. Raises StoreUnavailableError.
        """
        try:
            self._connect()
            run = self._ended_run(experiment, run_id)
            if run is None or run.info.lifecycle_stage != LifecycleStage.ACTIVE:
                return "", ""
            before = str(run.info.status)
            after = "FINISHED" if finished else before if before in ("KILLED", "FAILED") else "KILLED"
            if after != before:
                self._connected.set_terminated(run.info.run_id, status=after, end_time=ended_ms)
        except (MlflowException, *AWAY) as error:
            raise StoreUnavailableError(first_line(error)) from error
        return before, after

    def _ended_run(self, experiment: str, run_id: str) -> Run | None:
        """A run by its id, or by the key that it got while the store was out of reach."""
        if run_id.startswith("local-"):
            found = self._connected.get_experiment_by_name(experiment)
            return None if found is None else self._find_run(found.experiment_id, run_id, "")
        try:
            return self._connected.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        return None

    @property
    def _connected(self) -> MlflowClient:
        assert self._client is not None  # `send` connects first
        return self._client

    def _connect(self) -> None:
        if self._client is None:
            # MLflow's migrations print a line for each step while a database is made.
            logging.getLogger("alembic").setLevel(logging.WARNING)
            with _alone(self.uri):
                self._client = MlflowClient(tracking_uri=self.uri)
                self._tracing = TracingClient(self.uri)

    def _start(self, event: Event) -> None:
        payload = event.payload
        experiment = self._find_experiment(payload["experiment"])
        run = self._find_run(experiment.experiment_id, payload["run_key"], payload["resume_run_id"])
        if run is None:
            tags = {RUN_KEY_TAG: payload["run_key"], **payload["tags"]}
            run = self._connected.create_run(
                experiment.experiment_id, start_time=event.time_ms, tags=tags, run_name=payload["run_name"]
            )
        attempts = {tag: value for tag, value in run.data.tags.items() if tag.startswith("samepath.attempt.")}
        own_tag = f"samepath.attempt.{payload['attempt_key']}"
        attempt = int(attempts.get(own_tag, len(attempts) + 1))
        run_id = run.info.run_id
        # Known before its details are sent: whatever is refused of them, the run's later events have their run.
        self._state.update(
            experiment_id=experiment.experiment_id,
            run_id=run_id,
            run_name=payload["run_name"],
            attempt=attempt,
            attempt_key=payload["attempt_key"],
        )
        self._connected.update_run(run_id, status="RUNNING")
        tags = {own_tag: str(attempt), "attempt": str(attempt), **payload["tags"]}
        if changed := self._log_params(run, payload["params"]):
            tags[f"recipe_changed.attempt_{attempt}"] = changed
        self._log_tags(tags)
        self._log_text(payload["recipe_yaml"], "recipe", ".yaml")
        self._log_text(json.dumps(payload["environment"], indent=2), "environment", ".json")
        self._log_text(metric_tables(), "metrics", ".md")

    def _names(self, event: Event) -> None:
        self._log_text(json.dumps(event.payload, indent=2, ensure_ascii=False), "original-names", ".json")

    def _log_text(self, text: str, name: str, ending: str) -> None:
        attempt = self._state["attempt"]
        name += ending if attempt == 1 else f"-attempt-{attempt}{ending}"
        self._parts.send(name, lambda: self._connected.log_text(self.run_id, text, name))

    def _log_tags(self, tags: Mapping[str, str]) -> None:
        self._parts.send_all(
            [RunTag(key, value) for key, value in tags.items()],
            lambda some: self._connected.log_batch(self.run_id, tags=some),
        )

    def _find_experiment(self, name: str) -> Experiment:
        found = self._connected.get_experiment_by_name(name)
        number = 1
        while found is not None and found.lifecycle_stage != LifecycleStage.ACTIVE:
            # MLflow keeps the name of a deleted experiment and takes no run there.
            number += 1
            found = self._connected.get_experiment_by_name(f"{name} ({number})")
        name = name if number == 1 else f"{name} ({number})"
        if found is not None:
            return found
        # Without a place of its own MLflow puts artifacts of an SQLite store into the working directory.
        location = None
        if self.uri.startswith("sqlite:///"):
            location = Path(self.uri.removeprefix("sqlite:///")).parent.joinpath("mlartifacts").resolve().as_uri()
        try:
            self._connected.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            # Another process was faster.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return self._connected.get_experiment_by_name(name)

    def _find_run(self, experiment_id: str, run_key: str, resume_run_id: str) -> Run | None:
        """Return the run to go on with: by its id, or by the key it got while the store was out of reach."""
        if resume_run_id and not resume_run_id.startswith("local-"):
            try:
                found = self._connected.get_run(resume_run_id)
                if found.info.lifecycle_stage == LifecycleStage.ACTIVE:
                    return found
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            logger.warning("run %s is not in %s; a new run is made there", resume_run_id, self.uri)
        same = self._connected.search_runs([experiment_id], f"tags.`{RUN_KEY_TAG}` = '{run_key}'", max_results=1)
        return same[0] if same else None

    def _log_params(self, run: Run, params: Mapping[str, str]) -> str:
        """Log what is not there yet; return a description of what is there with another value (MLflow cannot change it)."""
        present = run.data.params
        new = [Param(key, value) for key, value in params.items() if key not in present]
        for some in batches(new):
            self._parts.send_all(some, lambda part: self._connected.log_batch(run.info.run_id, params=part))
        changed = [
            f"{key}: {present[key]} → {value}" for key, value in params.items() if present.get(key, value) != value
        ]
        return "\n".join(changed)[:4000]

    def _metrics(self, event: Event) -> None:
        step = event.payload["step"]
        metrics = [Metric(name, float(value), event.time_ms, step) for name, value in event.payload["metrics"].items()]
        for first in range(0, len(metrics), METRICS_PER_CALL):
            self._parts.send_all(
                metrics[first : first + METRICS_PER_CALL],
                lambda some: self._connected.log_batch(self.run_id, metrics=some),
            )

    def _rollouts(self, event: Event) -> None:
        rollouts = [rollout_from_plain(entry) for entry in event.payload["records"]]
        target = TraceTarget(
            experiment_id=self.experiment_id,
            run_id=self.run_id,
            run_name=self._state["run_name"],
            attempt=self._state["attempt"],
        )
        assert self._tracing is not None  # `send` connects first
        tracing = self._tracing
        traces = [build_trace(rollout, target, event.time_ms) for rollout in rollouts]
        taken: list[Span] = []
        for head, spans in traces:
            before = self._parts.num_refused
            self._parts.send(f"rollout {head.tags['mlflow.traceName']}", functools.partial(tracing.start_trace, head))
            taken += spans if self._parts.num_refused == before else []
        self._parts.send_all(taken, lambda some: tracing.log_spans(self.experiment_id, list(some)))

    def _artifact(self, event: Event) -> None:
        path = Path(event.payload["path"])
        if not path.exists():
            raise EventRefusedError(f"the file to keep is gone: {path}")
        name = clean_file_name(path.name)
        if path.is_dir():
            self._connected.log_artifacts(self.run_id, str(path), name)
        elif name == path.name:
            self._connected.log_artifact(self.run_id, str(path))
        else:
            with tempfile.TemporaryDirectory() as folder:
                shutil.copyfile(path, Path(folder, name))
                self._connected.log_artifact(self.run_id, str(Path(folder, name)))

    def _checkpoint(self, event: Event) -> None:
        self._log_tags({"checkpoint.step": str(event.payload["step"]), "checkpoint.path": str(event.payload["path"])})

    def _finish(self, event: Event) -> None:
        self._connected.set_terminated(self.run_id, status=event.payload["status"], end_time=event.time_ms)


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Let one process at a time make the tables of an SQLite store: MLflow's migrations break when two run at once."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    store = Path(uri.removeprefix("sqlite:///"))
    store.parent.mkdir(parents=True, exist_ok=True)
    with store.with_suffix(".lock").open("w", encoding="utf-8") as lock:
        deadline = time.monotonic() + LOCK_LIMIT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise StoreUnavailableError(
                        f"waited {LOCK_LIMIT_S:.0f} s for {lock.name}, which another process holds while it makes the store's tables; "
                        "end that process if it hangs"
                    ) from error
            time.sleep(LOCK_POLL_S)
        yield
