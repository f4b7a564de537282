"""JSON lines beside a run: every metric and every rollout, readable without any service."""

import errno
import json
import logging
import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from samepath.model.durable_file import append_lines, replace_file
from samepath.rl.tracking.alert import Alert
from samepath.rl.tracking.names import NameBook
from samepath.rl.tracking.sink import RunStart, RunStatus, Sink
from samepath.rl.tracking.tracked_rollout import TrackedCall, TrackedRollout, TrackedRoutes, TrackedSegment, TrackedTool

logger = logging.getLogger("samepath.tracking")


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""How the system says that a disk, or a share of it, is full."""


class JsonlSink(Sink):
    """Writes `metrics.jsonl`, `alerts.jsonl`, `rollouts/step-00012.jsonl` and `tracking.json` into the run's folder.

    What cannot be written is left out, with one warning, but for a disk that is full: that ends the run (OSError), which would lose its next
    checkpoint too.
    """

    def __init__(self, run_dir: Path) -> None:
        """Name the run's folder; it is made by `start`."""
        self._run_dir = run_dir
        self._steps_written: set[int] = set()
        self._warned = False
        self._attempts: list[dict[str, Any]] = []
        self._run_id = ""
        self._names = NameBook()

    def start(self, run: RunStart) -> str:
        """Begin an attempt; earlier attempts stay listed in `tracking.json`."""
        book = self._run_dir / "tracking.json"
        if book.is_file():
            self._attempts = self._earlier_attempts(book)
        self._run_id = run.run_id or f"local-{uuid.uuid4().hex}"
        self._attempts.append(
            {"started": _now(), "finished": "", "status": "RUNNING", "environment": plain(run.environment)}
        )
        self._write_book()
        self._write(self._run_dir / f"recipe-attempt-{len(self._attempts)}.yaml", run.recipe_yaml, replace_file)
        return self._run_id

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line; a step that is done again after a resume gets a second line, and the last one counts."""
        named = {self._names.clean(name): float(value) for name, value in metrics.items()}
        entry = {"step": step, "time": _now(), "metrics": plain(named)}
        self._write(self._run_dir / "metrics.jsonl", json.dumps(entry, allow_nan=False) + "\n", append_lines)

    def log_rollouts(self, step: int, rollouts: Sequence[TrackedRollout]) -> None:
        """Write all rollouts of a step to its own file, replacing what an earlier attempt wrote for that step."""
        lines = "".join(json.dumps(plain(rollout), ensure_ascii=False) + "\n" for rollout in rollouts)
        path = self._run_dir / "rollouts" / f"step-{step:05d}.jsonl"
        self._write(path, lines, append_lines if step in self._steps_written else replace_file)
        self._steps_written.add(step)

    def log_alerts(self, alerts: Sequence[Alert], holding: Mapping[str, int]) -> None:
        """Append a line for each to `alerts.jsonl`."""
        lines = [json.dumps({"time": _now(), **alert.plain()}, ensure_ascii=False) + "\n" for alert in alerts]
        self._write(self._run_dir / "alerts.jsonl", "".join(lines), append_lines)

    def log_checkpoint(self, step: int, path: Path) -> None:
        """Note the checkpoint in `tracking.json`."""
        if self._attempts:
            self._attempts[-1]["checkpoint"] = {"step": step, "path": str(path)}
            self._write_book()

    def log_best(self, step: int, path: Path, accuracy: float) -> None:
        """Note it beside the newest checkpoint."""
        if self._attempts:
            self._attempts[-1]["best_checkpoint"] = {"step": step, "path": str(path), "accuracy": accuracy}
            self._write_book()

    def finish(self, status: RunStatus) -> None:
        """Note how the attempt ended, where the disk takes it."""
        if self._attempts:
            self._attempts[-1].update(finished=_now(), status=status)
            try:
                self._write_book()
            except OSError as error:
                logger.warning("how the run ended is not noted: %s", error)

    def _write_book(self) -> None:
        book = {"run_id": self._run_id, "attempts": self._attempts}
        self._write(self._run_dir / "tracking.json", json.dumps(book, indent=2, allow_nan=False) + "\n", replace_file)

    def _earlier_attempts(self, book: Path) -> list[dict[str, Any]]:
        """Attempts before this one; a file that does not list them, which a run never leaves, is set aside."""
        try:
            attempts: list[dict[str, Any]] = json.loads(book.read_text(encoding="utf-8"))["attempts"]
        except (ValueError, KeyError, TypeError) as error:
            aside = book.with_suffix(".broken")
            book.replace(aside)
            logger.warning("%s does not list the run's attempts (%s); it is now %s", book, error, aside)
            return []
        return attempts

    def _write(self, path: Path, text: str, put: Callable[[Path, str], None]) -> None:
        try:
            put(path, text)
        except OSError as error:
            if error.errno in FULL:
                raise
            if not self._warned:
                logger.warning("cannot write %s, and go on without: %s", path, error)
            self._warned = True


def plain(value: Any) -> Any:
    """Return `value` as strict JSON data: NaN and infinities become "nan", "inf", "-inf", which `float` reads back; a dataclass its fields."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if value is None or isinstance(value, (str, int, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        # Most of what is written are the tokens of rollouts and a number of each.
        return [
            item if type(item) is str or (type(item) is float and math.isfinite(item)) else plain(item)
            for item in value
        ]
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return str(value)


def read_metrics(path: Path) -> dict[int, dict[str, float]]:
    """Return the metrics of each step, in order of steps; of a step that was done twice the later values count.

    A last line cut short by a killed process is left out.
    """
    by_step: dict[int, dict[str, float]] = {}
    for entry in _entries(path):
        values = {name: float(value) for name, value in entry["metrics"].items()}
        by_step.setdefault(int(entry["step"]), {}).update(values)
    return dict(sorted(by_step.items()))


def read_rollouts(path: Path) -> list[TrackedRollout]:
    """Return the rollouts of one step's file; a line cut short by a killed process is left out."""
    return [rollout_from_plain(entry) for entry in _entries(path)]


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """Every line's object; what is none was torn by a killed process, and is counted in a warning."""
    torn = 0
    # Bytes: a text would also be cut at characters such as U+2028, and cannot be decoded where a kill cut inside a character.
    with path.open("rb") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            if isinstance(entry, dict):
                yield entry
            else:
                torn += 1
    if torn:
        logger.warning("%s: %d torn lines are left out", path, torn)


def rollout_from_plain(entry: Mapping[str, Any]) -> TrackedRollout:
    """Turn the plain data of one rollout back into a rollout; unknown keys of a newer version are left out."""
    values = _known(TrackedRollout, entry)
    for name in ("reward", "advantage", "kl", "off_policy", "route_flips", "generate_s"):
        if name in values:
            values[name] = float(values[name])
    if "reward_parts" in values:
        values["reward_parts"] = {name: float(value) for name, value in values["reward_parts"].items()}
    for name in ("sampler_logprobs", "kl_tokens", "log_ratios", "entropies"):
        values[name] = tuple(float(value) for value in values.get(name, ()))
    for name in ("tokens", "segment_tokens", "messages", "problems", "support_sizes"):
        values[name] = tuple(values.get(name, ()))
    values["tool_calls"] = tuple(TrackedTool(**_known(TrackedTool, record)) for record in values.get("tool_calls", ()))
    values["weight_versions"] = tuple(map(tuple, values.get("weight_versions", ())))
    values["routes"] = _routes_from_plain(values.get("routes"))
    values["segments"] = tuple(map(_segment_from_plain, values.get("segments", ())))
    return TrackedRollout(**values)


def _segment_from_plain(entry: Mapping[str, Any]) -> TrackedSegment:
    calls = tuple(TrackedCall(**_known(TrackedCall, span)) for span in entry["calls"])
    return TrackedSegment(**{**_known(TrackedSegment, entry), "tokens": tuple(entry["tokens"]), "calls": calls})


def _routes_from_plain(entry: Mapping[str, Any] | None) -> TrackedRoutes | None:
    if entry is None:
        return None
    rows = {"layers": tuple(entry["layers"]), "live": tuple(map(tuple, entry["live"]))}
    return TrackedRoutes(**{**_known(TrackedRoutes, entry), **rows})


def _known(kind: type, entry: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in entry.items() if name in names}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
