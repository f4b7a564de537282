"""Signals end a run between two steps, and never half way through an update."""

import signal
import threading

import pytest

from samepath.rl.interruption import Interruption

NUMBERS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", NUMBERS)
def test_signal_outside_an_update_is_raised_at_once(number: signal.Signals) -> None:
    interruption = Interruption()
    with interruption.caught(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert not interruption.held


@pytest.mark.parametrize("number", NUMBERS)
def test_signal_in_an_update_waits_for_its_end(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    interruption = Interruption()
    with interruption.caught():
        interruption.hold()
        signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            interruption.release()
    assert not interruption.held, "a checkpoint may be written"
    assert "interrupt again" in capfd.readouterr().err


def test_second_signal_in_an_update_is_raised_and_leaves_it_held() -> None:
    interruption = Interruption()
    with interruption.caught():
        interruption.hold()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert interruption.held, "no checkpoint may be written"


def test_release_without_a_signal_goes_on() -> None:
    interruption = Interruption()
    interruption.hold()
    interruption.release()


def test_caught_gives_handlers_back_and_leaves_other_threads_alone() -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    with Interruption().caught():
        assert [signal.getsignal(number) for number in NUMBERS] != before
    assert [signal.getsignal(number) for number in NUMBERS] == before
    seen = []

    def elsewhere() -> None:
        with Interruption().caught():
            seen.append([signal.getsignal(number) for number in NUMBERS])

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]
