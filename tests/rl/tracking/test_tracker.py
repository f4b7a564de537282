"""A tracker is a list of sinks: who gets which call, in which order, and where the run's id comes from."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from samepath.rl.tracking.alert import Alert
from samepath.rl.tracking.sink import RunStart, RunStatus, Sink
from samepath.rl.tracking.tracked_rollout import TrackedRollout
from samepath.rl.tracking.tracker import Tracker

ALERT = Alert(step=3, rule="gap", event="begins", seen="a gap of 1 nat", cause="c", advice="a")
RUN = RunStart(run_name="r", recipe={}, recipe_yaml="", environment={})


class Spy(Sink):
    """Writes every call into a book that several of them share."""

    def __init__(self, name: str, book: list[tuple[object, ...]], own_id: str = "") -> None:
        self.name, self.book, self.own_id = name, book, own_id

    def start(self, run: RunStart) -> str:
        self.book.append((self.name, "start", run.run_id))
        return run.run_id or self.own_id

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self.book.append((self.name, "metrics", step, dict(metrics)))

    def log_rollouts(self, step: int, rollouts: Sequence[TrackedRollout]) -> None:
        self.book.append((self.name, "rollouts", step, len(rollouts)))

    def log_alerts(self, alerts: Sequence[Alert], holding: Mapping[str, int]) -> None:
        self.book.append((self.name, "alerts", [alert.rule for alert in alerts], dict(holding)))

    def log_artifact(self, path: Path) -> None:
        self.book.append((self.name, "artifact", path))

    def log_checkpoint(self, step: int, path: Path) -> None:
        self.book.append((self.name, "checkpoint", step, path))

    def log_best(self, step: int, path: Path, accuracy: float) -> None:
        self.book.append((self.name, "best", step, path, accuracy))

    def links(self) -> dict[str, str]:
        return {self.name: f"http://{self.name}"}

    def finish(self, status: RunStatus) -> None:
        self.book.append((self.name, "finish", status))


def test_start_new_run_has_the_id_of_the_last_sink() -> None:
    book: list[tuple[object, ...]] = []
    assert Tracker([Spy("a", book, "id-a"), Spy("b", book, "id-b")]).start(RUN) == "id-b"
    assert book == [("b", "start", ""), ("a", "start", "id-b")]


def test_start_goes_on_with_a_known_run_in_every_sink() -> None:
    book: list[tuple[object, ...]] = []
    known = RunStart(run_name="r", recipe={}, recipe_yaml="", environment={}, run_id="known")
    assert Tracker([Spy("a", book, "id-a"), Spy("b", book, "id-b")]).start(known) == "known"
    assert book == [("b", "start", "known"), ("a", "start", "known")]


def test_every_call_reaches_every_sink_in_order_and_the_end_comes_once() -> None:
    book: list[tuple[object, ...]] = []
    tracker = Tracker([Spy("a", book), Spy("b", book)])
    tracker.log_metrics(3, {"reward/mean": 0.5})
    tracker.log_rollouts(3, [])
    tracker.log_alerts([ALERT], {"gap": 3})
    tracker.log_artifact(Path("x.png"))
    tracker.log_checkpoint(3, Path("c"))
    tracker.log_best(2, Path("b"), 0.5)
    tracker.finish("KILLED")
    tracker.finish("FINISHED")
    wanted = [
        ("metrics", 3, {"reward/mean": 0.5}),
        ("rollouts", 3, 0),
        ("alerts", ["gap"], {"gap": 3}),
        ("artifact", Path("x.png")),
        ("checkpoint", 3, Path("c")),
        ("best", 2, Path("b"), 0.5),
        ("finish", "KILLED"),
    ]
    assert book == [(name, *call) for call in wanted for name in ("a", "b")]


def test_links_are_those_of_all_sinks() -> None:
    assert Tracker([Spy("a", []), Spy("b", [])]).links() == {"a": "http://a", "b": "http://b"}


def test_sink_that_overrides_nothing_keeps_nothing_and_no_sink_is_a_tracker_too() -> None:
    class Idle(Sink):
        pass

    for tracker in (Tracker([Idle()]), Tracker([])):
        assert tracker.start(RUN) == ""
        tracker.log_metrics(1, {"a": 1.0})
        tracker.log_artifact(Path("x"))
        tracker.finish("FINISHED")
        assert tracker.links() == {}
