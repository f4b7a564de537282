"""What `samepath doctor` says of the isolations."""

import pytest

from samepath.rewards.sandbox.isolation import MODES
from samepath.rl.validate import doctor


@pytest.mark.parametrize("works", [("bubblewrap", "landlock", "none"), ("landlock", "none"), ("none",)])
def test_doctor_has_a_line_for_each_isolation_and_says_which_one_auto_takes(
    works: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "problem_of", lambda mode: "" if mode in works else f"{mode} is missing")
    monkeypatch.setattr(doctor, "described", lambda mode, network: f"{mode} 1.0")
    checks = doctor.reward_isolation()
    assert [check.name for check in checks] == [f"isolation {mode}" for mode in MODES]
    assert [check.ok for check in checks] == [mode in works for mode in MODES]
    taken = [check.name for check in checks if check.detail.endswith("auto takes it")]
    assert taken == [f"isolation {works[0]}"]
    assert all(check.ok or "is missing" in check.detail for check in checks)
