"""The settings that a peer's search tries, and what it makes of their speeds."""

from benchmarks.process import BenchError
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
    best = ledger.fastest("peer", [PeerSetting(threads=count) for count in speeds], lambda one: speeds[one.threads])
    assert best == PeerSetting(threads=2)
    assert [(trial.setting.threads, trial.speed) for trial in ledger.trials] == [(1, 5.0), (2, 9.0), (3, 7.0)]


def test_fastest_equal_speeds_keep_the_first() -> None:
    settings = [PeerSetting(threads=count) for count in (1, 2)]
    assert Ledger().fastest("peer", settings, lambda one: 1.0) == settings[0]


def test_fastest_passes_over_what_fails_and_names_it() -> None:
    def speed(setting: PeerSetting) -> float:
        if setting.threads == 2:
            raise BenchError("killed")
        return 1.0 / setting.threads

    ledger = Ledger()
    assert ledger.fastest("peer", [PeerSetting(threads=count) for count in (2, 3, 4)], speed) == PeerSetting(threads=3)
    assert [trial.speed for trial in ledger.trials] == [None, 1 / 3, 1 / 4]
    assert [(failure.what, failure.setting.threads, failure.message) for failure in ledger.failures] == [
        ("peer", 2, "killed")
    ]


def test_fastest_single_setting_is_not_tried() -> None:
    def speed(setting: PeerSetting) -> float:
        raise AssertionError("one setting needs no search")

    ledger = Ledger()
    assert ledger.fastest("peer", [PeerSetting()], speed) == PeerSetting()
    assert ledger.trials == []


def test_plain_holds_trials_and_failures() -> None:
    ledger = Ledger()
    ledger.fastest("peer", [PeerSetting(threads=1), PeerSetting(threads=2)], lambda one: float(one.threads))
    plain = ledger.plain()
    assert plain["failures"] == []
    assert plain["trials"][1] == {
        "what": "peer",
        "setting": {"threads": 2, "wait_policy": "unset", "experts": "own"},
        "speed": 2.0,
    }
