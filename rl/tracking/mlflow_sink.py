"""A run in MLflow: events go to a queue whose one background thread does all the talking, so that training never waits.

Imports mlflow: only `samepath.rl.tracking.tracker` imports this file, late and after it has set `MLFLOW_VARIABLES`.
"""

import json
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from samepath.rl.diagnostics.meanings import metric_note
from samepath.rl.recipe.tracking import TrackingSettings
from samepath.rl.tracking.alert import Alert
from samepath.rl.tracking.events import Event, QueueFile
from samepath.rl.tracking.jsonl import plain
from samepath.rl.tracking.mlflow_store import MlflowStore
from samepath.rl.tracking.mlflow_traces import shortened
from samepath.rl.tracking.mlflow_ui import links
from samepath.rl.tracking.names import MAX_NAME_CHARS, NameBook, clean_text
from samepath.rl.tracking.outage import Outage, never
from samepath.rl.tracking.queue import EventQueue, QueueCounts
from samepath.rl.tracking.sink import RunStart, RunStatus, Sink
from samepath.rl.tracking.tracked_rollout import TrackedRollout, choose_rollouts

logger = logging.getLogger("samepath.tracking")

MAX_PARAM_CHARS = 6000
"""Longest parameter value that MLflow takes."""
MAX_TAG_CHARS = 1000
"""Longest text of an alert in a tag; MLflow takes 5000."""
NOTE_CHARS = 5000
"""Longest note of a run: what MLflow takes as a tag."""
QUEUE_FILE_NAME = "tracking-queue.jsonl"


class MlflowSink(Sink):
    """Hands everything to a queue whose thread talks to MLflow."""

    def __init__(self, settings: TrackingSettings, run_dir: Path, uri: str, away: Callable[[], bool] = never) -> None:
        """Start the thread; the store is not touched before `start`, nor while it is `away`."""
        self._settings = settings
        self._uri = uri
        file = QueueFile(run_dir / QUEUE_FILE_NAME, settings.max_queue_file_mib * 2**20)
        self._names = {"params": NameBook(), "metrics": NameBook(), "tags": NameBook()}
        self._num_changed = 0
        # What an earlier attempt could not send goes first, under that attempt's run.
        self._store = MlflowStore(uri, file.read_state() if file.num_events else None)
        self._queue = EventQueue(
            Outage(self._store, away), file, max_events=settings.max_queued_events, store_name=f"MLflow at {uri}"
        )

    def start(self, run: RunStart) -> str:
        """Begin a run; waits for the store up to `start_timeout_s`, then goes on without it under an id of its own."""
        run_key = run.run_id if run.run_id.startswith("local-") else f"local-{uuid.uuid4().hex}"
        attempt_key = uuid.uuid4().hex[:12]
        payload = {
            "run_name": run.run_name[:MAX_NAME_CHARS],
            "run_key": run_key,
            "attempt_key": attempt_key,
            "experiment": self._settings.experiment,
            "resume_run_id": run.run_id,
            "params": flatten_recipe(run.recipe, self._names["params"]),
            "recipe_yaml": run.recipe_yaml,
            "environment": plain(run.environment),
            "tags": _run_tags(run.environment),
        }
        self._put("start", payload)
        self._put_changed_names()
        if not self._queue.first_handled.wait(self._settings.start_timeout_s):
            logger.warning("MLflow at %s takes long to answer; training starts, and its events wait", self._uri)
        state = self._store.state()
        return str(state["run_id"]) if state["attempt_key"] == attempt_key else run.run_id or run_key

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue one batch of metrics."""
        named = {self._names["metrics"].clean(name): float(value) for name, value in metrics.items()}
        self._put("metrics", {"step": step, "metrics": plain(named)})
        self._put_changed_names()

    def log_rollouts(self, step: int, rollouts: Sequence[TrackedRollout]) -> None:
        """Queue the chosen rollouts of the step, with their text cut and without token-level values."""
        chosen = choose_rollouts(rollouts, self._settings.traced_rollouts_per_step)
        if chosen:
            records = [plain(shortened(one, self._settings.max_text_chars)) for one in chosen]
            self._put("rollouts", {"step": step, "records": records})

    def log_alerts(self, alerts: Sequence[Alert], holding: Mapping[str, int]) -> None:
        """Tags of the run: `alerts` names the rules that hold now, `alert.<rule>` has the sentence of each that was ever said."""
        now = ", ".join(f"{rule} since step {step}" for rule, step in holding.items())
        tags = {"alerts": now or "none"}
        for alert in alerts:
            key = f"alert.{alert.rule}" + (f".{alert.about}" if alert.about else "")
            tags[self._names["tags"].clean(key)] = f"step {alert.step}: {alert.line()}"[:MAX_TAG_CHARS]
        self._put("tags", {"tags": tags})

    def log_artifact(self, path: Path) -> None:
        """Queue a file; it is read when it is sent, so it must stay as it is."""
        self._put("artifact", {"path": str(path.resolve())})

    def log_checkpoint(self, step: int, path: Path) -> None:
        """Note the newest checkpoint as tags of the run."""
        self._put("checkpoint", {"step": step, "path": str(path.resolve())})

    def log_best(self, step: int, path: Path, accuracy: float) -> None:
        """Note it as tags of the run."""
        self._put(
            "tags",
            {"tags": {"best.step": str(step), "best.path": str(path.resolve()), "best.accuracy": f"{accuracy:.6g}"}},
        )

    def links(self) -> dict[str, str]:
        """Return links to the run's pages; empty while the store has not answered."""
        return links(self._uri, self._store.experiment_id, self._store.run_id) if self._store.run_id else {}

    @property
    def counts(self) -> QueueCounts:
        """What became of the events so far."""
        return self._queue.counts

    def finish(self, status: RunStatus) -> None:
        """Mark the run's end and send what is left, for at most `close_timeout_s`; the rest stays in the queue file."""
        self._queue.close(self._settings.close_timeout_s, _event("finish", {"status": status}))

    def _put(self, kind: str, payload: Mapping[str, Any]) -> None:
        # A path stays as it is: it has to be found on disk.
        self._queue.put(_event(kind, payload if kind == "artifact" else clean_text(payload)))

    def _put_changed_names(self) -> None:
        """Queue the original texts of all names that had to be changed, once there are new ones."""
        changed = {kind: names for kind, book in self._names.items() if (names := book.changed())}
        if (num_changed := sum(map(len, changed.values()))) > self._num_changed:
            self._num_changed = num_changed
            self._put("names", changed)


def flatten_recipe(recipe: Mapping[str, Any], names: NameBook) -> dict[str, str]:
    """Return the recipe as MLflow parameters: dotted names, values as text of at most 6000 characters.

    Example:
        flatten_recipe({"rl": {"group_size": 8}, "rewards": [{"weight": 1.0}]}, NameBook())
        == {"rl.group_size": "8", "rewards.0.weight": "1.0"}
    """
    flat: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for path, value in _leaves(plain(recipe), ""):
        text = value if isinstance(value, str) else json.dumps(value)
        seen[path] += 1
        # A key with a dot in it may spell the path of another setting.
        name = names.clean(path if seen[path] == 1 else f"{path} ({seen[path]})")
        flat[name] = text[:MAX_PARAM_CHARS]
    return flat


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    children: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        children = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        children = [(str(index), item) for index, item in enumerate(value)]
    if not children:
        yield path or "recipe", value
    for name, child in children:
        yield from _leaves(child, f"{path}.{name}" if path else name)


def _run_tags(environment: Mapping[str, Any]) -> dict[str, str]:
    git = environment.get("git", {})
    tags = {
        "mlflow.source.name": "samepath",
        "mlflow.source.type": "LOCAL",
        "mlflow.note.content": metric_note(NOTE_CHARS),
    }
    if isinstance(git, Mapping) and git.get("commit"):
        tags |= {"mlflow.source.git.commit": str(git["commit"]), "git.dirty": str(git.get("dirty", False)).lower()}
    return tags


def _event(kind: str, payload: Mapping[str, Any]) -> Event:
    return Event(kind=kind, time_ms=int(1000 * time.time()), payload=payload)
