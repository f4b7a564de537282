"""A sink that hears of every n-th step only, for stores where each step costs something."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from samepath.rl.tracking.alert import Alert
from samepath.rl.tracking.sink import RunStart, RunStatus, Sink
from samepath.rl.tracking.tracked_rollout import TrackedRollout

MEASURED = ("eval/", "evaluation/")
"""Beginnings of names that are always passed on: an evaluation is rare and costly."""


class Thinned(Sink):
    """Hands a sink the numbers and rollouts of every n-th step, of the last one, and every evaluation; everything else as it comes.

    What is passed on are the step's own numbers, no means over the steps between.
    """

    def __init__(self, sink: Sink, every: int) -> None:
        """`every` is at least 1, which leaves nothing out."""
        self._sink = sink
        self._every = every
        self._held: dict[int, dict[str, float]] = {}

    def start(self, run: RunStart) -> str:
        """Begin the run there; returns its id."""
        return self._sink.start(run)

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Pass on, or keep as those of the step that may be the last."""
        if step % self._every == 0 or any(name.startswith(MEASURED) for name in metrics):
            self._sink.log_metrics(step, metrics)
            self._held = {known: held for known, held in self._held.items() if known == step}
        else:
            self._held = {step: {**self._held.get(step, {}), **metrics}}

    def log_rollouts(self, step: int, rollouts: Sequence[TrackedRollout]) -> None:
        """Pass on those of every n-th step."""
        if step % self._every == 0:
            self._sink.log_rollouts(step, rollouts)

    def log_alerts(self, alerts: Sequence[Alert], holding: Mapping[str, int]) -> None:
        """Pass on."""
        self._sink.log_alerts(alerts, holding)

    def log_artifact(self, path: Path) -> None:
        """Pass on."""
        self._sink.log_artifact(path)

    def log_checkpoint(self, step: int, path: Path) -> None:
        """Pass on."""
        self._sink.log_checkpoint(step, path)

    def log_best(self, step: int, path: Path, accuracy: float) -> None:
        """Pass on."""
        self._sink.log_best(step, path, accuracy)

    def links(self) -> dict[str, str]:
        """The sink's pages."""
        return self._sink.links()

    def finish(self, status: RunStatus) -> None:
        """Pass on the last step's numbers, then the end."""
        for step, metrics in self._held.items():
            self._sink.log_metrics(step, metrics)
        self._held = {}
        self._sink.finish(status)
