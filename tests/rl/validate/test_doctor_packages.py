"""What `samepath doctor` says of packages that only some recipes need."""

import importlib.util
from typing import Any

import pytest

from samepath.rl.validate import doctor
from samepath.rollout.environments import verifiers


@pytest.mark.parametrize(
    ("module", "cure"),
    [
        ("mcp", "pip install samepath[mcp]"),
        ("verifiers", f"pip install '{verifiers.PACKAGE}'"),
        ("peft", "pip install samepath[lora]"),
    ],
)
def test_missing_package_is_named_with_its_cure(module: str, cure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(doctor, "package_versions", lambda names: {})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else found(name))
    (entry,) = [entry for entry in doctor.OPTIONAL if entry[1] == module]
    check = doctor.optional_package(*entry)
    assert not check.ok
    assert check.detail.startswith("not installed: ")
    assert cure in check.detail


def test_package_that_is_there_is_named_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(doctor, "package_versions", lambda names: dict.fromkeys(names, "2.3.0"))
    check = doctor.optional_package("environment mcp", "mcp", "")
    assert (check.name, check.ok, check.detail) == ("environment mcp", True, "2.3.0")


def test_every_check_names_both_foreign_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def quick(*_: Any) -> doctor.Check:
        return doctor.Check(name="", ok=True, detail="")

    monkeypatch.setattr(doctor, "row_exactness", quick)
    monkeypatch.setattr(doctor, "reward_isolation", list)
    assert {"environment mcp", "environment verifiers"} <= {check.name for check in doctor.run_checks()}
