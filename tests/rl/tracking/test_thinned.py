"""Which steps a thinned sink hears of: every n-th, every evaluation, and the last."""

from pathlib import Path

from samepath.rl.tracking.thinned import Thinned
from tests.rl.tracking.test_tracker import ALERT, RUN, Spy


def steps_heard(book: list[tuple[object, ...]], kind: str) -> list[object]:
    return [entry[2] for entry in book if entry[1] == kind]


def test_thinned_passes_every_nth_step_each_evaluation_and_the_last_once() -> None:
    book: list[tuple[object, ...]] = []
    sink = Thinned(Spy("a", book), 3)
    for step in range(1, 9):
        sink.log_metrics(step, {"reward/mean": step / 10, **({"eval/accuracy": 1.0} if step == 4 else {})})
        sink.log_rollouts(step, [])
    assert steps_heard(book, "metrics") == [3, 4, 6]
    assert steps_heard(book, "rollouts") == [3, 6]
    # The evaluation at the end is of step 8 too, whose own numbers still wait.
    sink.log_metrics(8, {"evaluation/hard/accuracy": 0.5})
    sink.finish("FINISHED")
    assert [entry[2:] for entry in book[-3:-1]] == [
        (8, {"evaluation/hard/accuracy": 0.5}),
        (8, {"reward/mean": 0.8}),
    ]
    assert book[-1][1:] == ("finish", "FINISHED")


def test_thinned_sends_nothing_twice_and_with_1_leaves_nothing_out() -> None:
    for every, wanted in ((1, [1, 2, 3, 4]), (2, [2, 4]), (4, [4])):
        book: list[tuple[object, ...]] = []
        sink = Thinned(Spy("a", book), every)
        for step in range(1, 5):
            sink.log_metrics(step, {"reward/mean": 0.0})
        sink.finish("KILLED")
        assert steps_heard(book, "metrics") == wanted


def test_thinned_holds_all_numbers_of_the_last_step() -> None:
    book: list[tuple[object, ...]] = []
    sink = Thinned(Spy("a", book), 4)
    sink.log_metrics(5, {"reward/mean": 0.5})
    sink.log_metrics(5, {"faults/injected": 1.0})
    sink.finish("FINISHED")
    assert book[0][2:] == (5, {"reward/mean": 0.5, "faults/injected": 1.0})


def test_thinned_hands_on_everything_else() -> None:
    book: list[tuple[object, ...]] = []
    sink = Thinned(Spy("a", book, "own"), 7)
    assert sink.start(RUN) == "own"
    sink.log_alerts([ALERT], {"gap": 3})
    sink.log_artifact(Path("x.png"))
    sink.log_checkpoint(5, Path("step-5"))
    sink.log_best(5, Path("step-5"), 0.5)
    assert [entry[1] for entry in book] == ["start", "alerts", "artifact", "checkpoint", "best"]
    assert sink.links() == {"a": "http://a"}
