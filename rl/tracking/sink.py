"""One place where a run is kept, and what it is told when a run starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from samepath.rl.tracking.alert import Alert
from samepath.rl.tracking.tracked_rollout import TrackedRollout

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    """A run as it begins, or goes on.

    Example:
        RunStart(run_name="quickstart", recipe={"rl": {"steps": 60}}, recipe_yaml="rl:\\n  steps: 60\\n",
                 environment={"python": "3.11.9"})
    """

    run_name: str
    """Name of the run's folder."""
    recipe: Mapping[str, Any]
    """Every setting, JSON-able."""
    recipe_yaml: str
    """The same as text."""
    environment: Mapping[str, Any]
    """Machine and versions, JSON-able."""
    run_id: str = ""
    """The run to go on with; empty for a new one."""


class Sink:
    """Keeps a run in one place. What a sink does not override it does not keep.

    Only `start` and `finish` may wait, and none raises because its store fails; a full disk under the run's folder may be raised (OSError).
    """

    def start(self, run: RunStart) -> str:
        """Begin the run, or go on with it; returns the run's id, to be kept in checkpoints."""
        return run.run_id

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep numbers of one step; names are grouped by their first part (`reward/mean`), NaN is allowed."""

    def log_rollouts(self, step: int, rollouts: Sequence[TrackedRollout]) -> None:
        """Keep the rollouts of one step."""

    def log_alerts(self, alerts: Sequence[Alert], holding: Mapping[str, int]) -> None:
        """Keep what began, ended or was noted; `holding` are the rules that hold now, with their first steps."""

    def log_artifact(self, path: Path) -> None:
        """Keep a file with the run."""

    def log_checkpoint(self, step: int, path: Path) -> None:
        """Note where the checkpoint of a step lies; its content is not copied."""

    def log_best(self, step: int, path: Path, accuracy: float) -> None:
        """Note which checkpoint has the best held-out accuracy so far."""

    def links(self) -> dict[str, str]:
        """Return addresses of pages that show this run, by name; empty where there are none (yet)."""
        return {}

    def finish(self, status: RunStatus) -> None:
        """End the run and send what is left, in bounded time."""
