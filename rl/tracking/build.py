"""What is kept of a run: metrics and every rollout in JSON lines beside it, and in MLflow where the recipe asks for it."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from samepath.rl.machine import set_missing_variables
from samepath.rl.tracking.jsonl import JsonlTracker
from samepath.rl.tracking.queue import QueueCounts
from samepath.rl.tracking.rollout_record import RolloutRecord

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

MLFLOW_VARIABLES = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # The queue has a retry of its own that never blocks training; MLflow's own takes minutes before it gives up.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ASYNC_TRACE_LOGGING_RETRY_TIMEOUT": "10",
}
"""Must stand in the environment before mlflow is imported; what the user has set stays."""


class TrackingSettings(BaseModel):
    """Where metrics and rollouts go. The JSON lines in the run's folder are always written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["mlflow", "jsonl"] = Field(
        default="mlflow",
        description="`mlflow`: JSON lines and MLflow. `jsonl`: JSON lines only; MLflow is not imported.",
    )
    uri: str = Field(
        default="sqlite:///mlflow.db",
        description="MLflow store. A relative sqlite path lies in the folder of all runs. Or http(s)://host:port of a server.",
    )
    experiment: str = Field(default="samepath", min_length=1, max_length=250, description="MLflow experiment's name.")
    traced_rollouts_per_step: int = Field(
        default=8,
        ge=0,
        le=512,
        description="Rollouts of each step that become MLflow traces; a trace costs some 40 ms.",
    )
    max_text_chars: int = Field(
        default=8000,
        ge=100,
        le=1_000_000,
        description="Prompt and response are cut to this many characters in a trace.",
    )
    max_queued_events: int = Field(
        default=1000,
        ge=10,
        le=100_000,
        description="Events that wait in memory; above it they are dropped and counted.",
    )
    max_queue_file_mib: int = Field(
        default=256, ge=1, le=65536, description="Size of the file for events while the store does not answer, MiB."
    )
    start_timeout_s: float = Field(
        default=20.0,
        gt=0,
        le=600,
        description="Longest wait for the store when a run starts, seconds; then it goes on without.",
    )
    close_timeout_s: float = Field(
        default=20.0, gt=0, le=600, description="Longest wait at the end for what is still to be sent, seconds."
    )

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, uri: str) -> str:
        parts = urlsplit(uri)
        if not (uri.startswith("sqlite:///") or (parts.scheme in ("http", "https") and parts.hostname)):
            raise ValueError(
                f"tracking.uri must begin with sqlite:/// or be http(s)://host:port; got {uri!r}. "
                "MLflow no longer takes a plain folder: use sqlite:///mlflow.db, or start a server and give its address."
            )
        if parts.password or (parts.username and parts.scheme != "sqlite"):
            raise ValueError(
                "tracking.uri must not hold a user name or password, because recipes are logged. "
                "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead."
            )
        return uri


class Tracker(Protocol):
    """Keeps a run. No method but `start` and `finish` waits, and none raises because a store fails."""

    def start(
        self,
        *,
        run_name: str,
        recipe: Mapping[str, Any],
        recipe_yaml: str,
        environment: Mapping[str, Any],
        resume_run_id: str = "",
    ) -> str:
        """Begin a run, or go on with `resume_run_id`; returns the run's id, to be kept in checkpoints."""

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep numbers of one step; names are grouped by their first part (`reward/mean`), NaN is allowed."""

    def log_rollouts(self, step: int, records: Sequence[RolloutRecord]) -> None:
        """Keep the rollouts of one step."""

    def log_artifact(self, path: Path) -> None:
        """Keep a file with the run."""

    def log_checkpoint(self, step: int, path: Path) -> None:
        """Note where the checkpoint of a step lies; its content is not copied."""

    def links(self) -> dict[str, str]:
        """Return addresses of pages that show this run, by name; empty where there are none (yet)."""

    def finish(self, status: RunStatus) -> None:
        """End the run and send what is left, in bounded time. A second call does nothing."""


class PairTracker:
    """Two trackers as one; the second one's run id and links are the run's."""

    def __init__(self, first: Tracker, second: Tracker) -> None:
        """Both get every call, `first` before `second`."""
        self._first = first
        self._second = second

    def start(
        self,
        *,
        run_name: str,
        recipe: Mapping[str, Any],
        recipe_yaml: str,
        environment: Mapping[str, Any],
        resume_run_id: str = "",
    ) -> str:
        """Start both under the second one's run id."""
        run_id = self._second.start(
            run_name=run_name,
            recipe=recipe,
            recipe_yaml=recipe_yaml,
            environment=environment,
            resume_run_id=resume_run_id,
        )
        return self._first.start(
            run_name=run_name, recipe=recipe, recipe_yaml=recipe_yaml, environment=environment, resume_run_id=run_id
        )

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log to both."""
        self._first.log_metrics(step, metrics)
        self._second.log_metrics(step, metrics)

    def log_rollouts(self, step: int, records: Sequence[RolloutRecord]) -> None:
        """Log to both."""
        self._first.log_rollouts(step, records)
        self._second.log_rollouts(step, records)

    def log_artifact(self, path: Path) -> None:
        """Log to both."""
        self._first.log_artifact(path)
        self._second.log_artifact(path)

    def log_checkpoint(self, step: int, path: Path) -> None:
        """Log to both."""
        self._first.log_checkpoint(step, path)
        self._second.log_checkpoint(step, path)

    def links(self) -> dict[str, str]:
        """Return the second one's links."""
        return self._second.links()

    def finish(self, status: RunStatus) -> None:
        """Finish both."""
        self._first.finish(status)
        self._second.finish(status)


def store_uri(uri: str, runs_dir: Path) -> str:
    """Return `uri` with a relative SQLite path put into the folder of all runs.

    Example:
        store_uri("sqlite:///mlflow.db", Path("/data/runs")) == "sqlite:////data/runs/mlflow.db"
    """
    prefix = "sqlite:///"
    if not uri.startswith(prefix) or uri.startswith("sqlite:////"):
        return uri
    return prefix + str(runs_dir.resolve() / uri.removeprefix(prefix))


def build_tracker(settings: TrackingSettings, run_dir: Path) -> Tracker:
    """Return the tracker of one run; `run_dir` is its folder, and the folder above it holds all runs.

    Raises:
        RuntimeError: the recipe asks for MLflow, which is not installed.
    """
    jsonl = JsonlTracker(run_dir)
    if settings.kind == "jsonl":
        return jsonl
    _prepare_mlflow()
    # Late: mlflow is optional, takes seconds to import, and reads its variables while it is imported.
    from samepath.rl.tracking.mlflow import MlflowTracker

    return PairTracker(jsonl, MlflowTracker(settings, run_dir, store_uri(settings.uri, run_dir.parent)))


def replay_tracking(queue_file: Path, uri: str) -> QueueCounts:
    """Send a run's `tracking-queue.jsonl` to the MLflow store at `uri`; what was sent leaves the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no queue file.
        RuntimeError: MLflow is not installed.
    """
    _prepare_mlflow()
    # Late for the same reasons as above.
    from samepath.rl.tracking.mlflow import replay_queue

    return replay_queue(queue_file, uri)


def _prepare_mlflow() -> None:
    if importlib.util.find_spec("mlflow") is None:
        raise RuntimeError(
            "tracking.kind=mlflow needs the package mlflow, which is not installed. "
            "Run `pip install samepath[mlflow]`, or set tracking.kind=jsonl to keep JSON lines only."
        )
    set_missing_variables(MLFLOW_VARIABLES)
