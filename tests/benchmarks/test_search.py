"""The settings that a peer's search tries, and what it makes of their speeds."""

import pytest

from benchmarks.process import LONGEST_RUN_S, BenchError, TooSlowError
from benchmarks.search import Ledger
from benchmarks.setting import OWN_EXPERTS, TRANSFORMERS_EXPERTS, PeerSetting, settings_to_try


def test_settings_to_try_one_thread_has_no_wait_policy() -> None:
    assert settings_to_try([1], OWN_EXPERTS) == [PeerSetting()]
    assert [setting.wait_policy for setting in settings_to_try([1, 2], OWN_EXPERTS)] == [
        "unset",
        "unset",
        "active",
        "passive",
    ]


def test_settings_to_try_are_every_combination_once() -> None:
    tried = settings_to_try([1, 2], TRANSFORMERS_EXPERTS)
    assert len(tried) == len({str(setting) for setting in tried}) == 3 + 9


def test_fastest_takes_the_highest_speed_and_writes_down_all() -> None:
    speeds = {1: 5.0, 2: 9.0, 3: 7.0}
    ledger = Ledger()
    best = ledger.fastest(
        "peer", [PeerSetting(threads=count) for count in speeds], lambda one, limit_s: speeds[one.threads]
    )
    assert best == PeerSetting(threads=2)
    assert [(trial.setting.threads, trial.speed) for trial in ledger.trials] == [(1, 5.0), (2, 9.0), (3, 7.0)]


def test_fastest_equal_speeds_keep_the_first() -> None:
    settings = [PeerSetting(threads=count) for count in (1, 2)]
    assert Ledger().fastest("peer", settings, lambda one, limit_s: 1.0) == settings[0]


def test_fastest_passes_over_what_fails_and_names_it() -> None:
    def speed(setting: PeerSetting, limit_s: float) -> float:
        if setting.threads == 2:
            raise BenchError("killed")
        return 1.0 / setting.threads

    ledger = Ledger()
    assert ledger.fastest("peer", [PeerSetting(threads=count) for count in (2, 3, 4)], speed) == PeerSetting(threads=3)
    assert [trial.speed for trial in ledger.trials] == [None, 1 / 3, 1 / 4]
    assert [(failure.what, failure.setting.threads, failure.message) for failure in ledger.failures] == [
        ("peer", 2, "killed")
    ]


def test_fastest_stops_what_has_lost_without_calling_it_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 100.0, 100.0, 120.0, 120.0])
    monkeypatch.setattr("benchmarks.search.time.perf_counter", lambda: next(clock))
    limits = []

    def speed(setting: PeerSetting, limit_s: float) -> float:
        limits.append(limit_s)
        if setting.threads == 3:
            raise TooSlowError("took longer")
        return float(setting.threads)

    ledger = Ledger()
    best = ledger.fastest("peer", [PeerSetting(threads=count) for count in (1, 2, 3)], speed)
    assert best == PeerSetting(threads=2)
    # Three times 100 s after the first trial; three times 20 s, which is the shortest limit, after the second.
    assert limits == [LONGEST_RUN_S, 300.0, 60.0]
    assert (ledger.trials[2].speed, ledger.trials[2].note, ledger.failures) == (None, "stopped after 60 s", [])


def test_fastest_at_the_longest_limit_is_a_failure() -> None:
    def speed(setting: PeerSetting, limit_s: float) -> float:
        raise TooSlowError("took longer than 1800 s")

    ledger = Ledger()
    assert ledger.fastest("peer", [PeerSetting(threads=count) for count in (1, 2)], speed) is None
    assert [failure.message for failure in ledger.failures] == ["took longer than 1800 s"] * 2


def test_fastest_single_setting_is_not_tried() -> None:
    def speed(setting: PeerSetting, limit_s: float) -> float:
        raise AssertionError("one setting needs no search")

    ledger = Ledger()
    assert ledger.fastest("peer", [PeerSetting()], speed) == PeerSetting()
    assert ledger.trials == []


def test_plain_holds_trials_and_failures() -> None:
    ledger = Ledger()
    ledger.fastest("peer", [PeerSetting(threads=1), PeerSetting(threads=2)], lambda one, limit_s: float(one.threads))
    plain = ledger.plain()
    assert plain["failures"] == []
    assert plain["trials"][1] == {
        "what": "peer",
        "setting": {"threads": 2, "wait_policy": "unset", "experts": "own"},
        "speed": 2.0,
        "note": "",
    }
