"""What is kept of a run: metrics and every rollout in JSON lines beside it, and in MLflow where the recipe asks for it."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from samepath.rl.machine import set_missing_variables
from samepath.rl.recipe.tracking import TrackingSettings
from samepath.rl.tracking.alert import Alert
from samepath.rl.tracking.events import QueueFile, StoreUnavailableError
from samepath.rl.tracking.jsonl import JsonlSink
from samepath.rl.tracking.outage import never
from samepath.rl.tracking.queue import RESEND_TIMEOUT_S, QueueCounts, resend
from samepath.rl.tracking.sink import RunStart, RunStatus, Sink
from samepath.rl.tracking.thinned import Thinned
from samepath.rl.tracking.tracked_rollout import TrackedRollout
from samepath.rollout.bounded_call import OverdueError, bounded

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


class Tracker:
    """Hands everything to each of its sinks, in their order; without sinks nothing is kept."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        """The last sink gives a new run its id."""
        self._sinks = tuple(sinks)
        self._finished = False

    def start(self, run: RunStart) -> str:
        """Start the last sink first, and the others under the id that it gives; returns the run's id."""
        for sink in reversed(self._sinks):
            run = replace(run, run_id=sink.start(run))
        return run.run_id

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep numbers of one step."""
        for sink in self._sinks:
            sink.log_metrics(step, metrics)

    def log_rollouts(self, step: int, rollouts: Sequence[TrackedRollout]) -> None:
        """Keep the rollouts of one step."""
        for sink in self._sinks:
            sink.log_rollouts(step, rollouts)

    def log_alerts(self, alerts: Sequence[Alert], holding: Mapping[str, int]) -> None:
        """Keep what began, ended or was noted; `holding` are the rules that hold now, with their first steps."""
        for sink in self._sinks:
            sink.log_alerts(alerts, holding)

    def log_artifact(self, path: Path) -> None:
        """Keep a file with the run."""
        for sink in self._sinks:
            sink.log_artifact(path)

    def log_checkpoint(self, step: int, path: Path) -> None:
        """Note where the checkpoint of a step lies."""
        for sink in self._sinks:
            sink.log_checkpoint(step, path)

    def log_best(self, step: int, path: Path, accuracy: float) -> None:
        """Note which checkpoint has the best held-out accuracy so far."""
        for sink in self._sinks:
            sink.log_best(step, path, accuracy)

    def links(self) -> dict[str, str]:
        """Return the pages of all sinks, by name."""
        return {name: link for sink in self._sinks for name, link in sink.links().items()}

    def finish(self, status: RunStatus) -> None:
        """End the run and send what is left, in bounded time. A second call does nothing."""
        if not self._finished:
            self._finished = True
            for sink in self._sinks:
                sink.finish(status)


def build_tracker(settings: TrackingSettings, run_dir: Path, away: Callable[[], bool] = never) -> Tracker:
    """Return the tracker of one run; `run_dir` is its folder, and the folder above it holds all runs. MLflow is not asked while it is `away`.

    Raises:
        RuntimeError: the recipe asks for MLflow, which is not installed.
    """
    sinks: list[Sink] = [JsonlSink(run_dir)]
    if settings.kind == "mlflow":
        _prepare_mlflow()
        # Late: mlflow is optional, takes seconds to import, and reads its variables while it is imported.
        from samepath.rl.tracking.mlflow_sink import MlflowSink

        mlflow = MlflowSink(settings, run_dir, store_uri(settings.uri, run_dir.parent), away)
        sinks.append(Thinned(mlflow, settings.log_every))
    return Tracker(sinks)


def store_uri(uri: str, runs_dir: Path) -> str:
    """Return `uri` with a relative SQLite path put into the folder of all runs.

    Example:
        store_uri("sqlite:///mlflow.db", Path("/data/runs")) == "sqlite:////data/runs/mlflow.db"
    """
    prefix = "sqlite:///"
    if not uri.startswith(prefix) or uri.startswith("sqlite:////"):
        return uri
    return prefix + str(runs_dir.resolve() / uri.removeprefix(prefix))


def resend_to_mlflow(queue_file: Path, uri: str) -> QueueCounts:
    """Send a run's `tracking-queue.jsonl`, if there is one, to the MLflow store at `uri`; what was sent leaves the file.

    Raises:
        ValueError: it is no queue file.
        RuntimeError: MLflow is not installed.
    """
    _prepare_mlflow()
    if not queue_file.is_file():
        return QueueCounts(sent=0, dropped=0, refused=0, waiting=0)
    # Late for the same reasons as above.
    from samepath.rl.tracking.mlflow_store import MlflowStore

    file = QueueFile(queue_file, limit_bytes=2**62)
    return resend(file, MlflowStore(uri, file.read_state()), store_name=f"MLflow at {uri}")


def end_in_mlflow(uri: str, experiment: str, run_id: str, finished: bool, ended_ms: int) -> tuple[str, str]:
    """Give a run that nobody works on its end in the MLflow store at `uri`; its status before and after, both "" if it is not there.

    Raises StoreUnavailableError, and RuntimeError without MLflow.
    """
    _prepare_mlflow()
    # Late for the same reasons as above.
    from samepath.rl.tracking.mlflow_store import MlflowStore

    store = MlflowStore(uri)
    try:
        return bounded(
            "tracking-store", RESEND_TIMEOUT_S, lambda: store.end_run(experiment, run_id, finished, ended_ms)
        )
    except OverdueError as error:
        raise StoreUnavailableError(f"waited {RESEND_TIMEOUT_S:.0f} s for it") from error


def _prepare_mlflow() -> None:
    if importlib.util.find_spec("mlflow") is None:
        raise RuntimeError(
            "tracking.kind=mlflow needs the package mlflow, which is not installed. "
            "Run `pip install samepath[mlflow]`, or set tracking.kind=jsonl to keep JSON lines only."
        )
    set_missing_variables(MLFLOW_VARIABLES)
