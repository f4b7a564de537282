"""Which isolation is taken, what is said of it, and what is refused."""

import re

import pytest

from samepath.rewards.runner import RewardRunner
from samepath.rewards.sandbox import isolation
from samepath.rewards.sandbox.isolation import MODES, chosen_isolation
from samepath.rewards.sandbox.process import RewardStartError
from samepath.rewards.settings import RewardSettings


def settings(**changes: object) -> RewardSettings:
    return RewardSettings.model_validate({"parts": {"own": "own_rewards:act"}, **changes})


@pytest.fixture
def only(monkeypatch):
    """Let only these modes work."""

    def let(*modes: str) -> None:
        monkeypatch.setattr(isolation, "problem_of", lambda mode: "" if mode in modes else f"no {mode} today")
        monkeypatch.setattr(isolation, "described", lambda mode, network: f"{mode} it is")

    return let


@pytest.mark.parametrize("strongest", MODES)
def test_chosen_isolation_auto_takes_the_strongest_and_says_why_nothing_stronger(only, strongest):
    only(*MODES[MODES.index(strongest) :])
    found = chosen_isolation(settings())
    assert found.mode == strongest
    missed = MODES[: MODES.index(strongest)]
    assert found.notice == "; ".join(f"{mode} does not work here: no {mode} today" for mode in missed)
    said = " ".join(found.said())
    assert f"{strongest} it is" in said
    assert said.count("notice:") == bool(missed)


@pytest.mark.parametrize("named", ["bubblewrap", "landlock"])
def test_runner_named_isolation_that_does_not_work_is_refused_with_what_to_do(only, named):
    only("none")
    with pytest.raises(
        RewardStartError,
        match=f"reward.isolation={named} must work on this machine; it does not: no {named} today.*to auto",
    ):
        RewardRunner(settings(isolation=named))


def test_chosen_isolation_named_one_is_taken_though_a_stronger_one_works(only):
    only(*MODES)
    assert [chosen_isolation(settings(isolation=mode)).mode for mode in MODES] == list(MODES)
    assert chosen_isolation(settings(isolation="none")).notice == ""


def test_chosen_isolation_without_bwrap_names_the_program(monkeypatch, tmp_path):
    isolation.bubblewrap_problem.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    try:
        with pytest.raises(isolation.IsolationUnavailableError, match="no program `bwrap` on PATH"):
            chosen_isolation(settings(isolation="bubblewrap"))
    finally:
        isolation.bubblewrap_problem.cache_clear()


def test_chosen_isolation_bwrap_that_may_not_is_no_bubblewrap_and_its_words_are_told(monkeypatch, tmp_path):
    """As where the system forbids user namespaces."""
    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    program.chmod(0o755)
    isolation.bubblewrap_problem.cache_clear()
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    try:
        found = chosen_isolation(settings())
    finally:
        isolation.bubblewrap_problem.cache_clear()
    assert found.mode != "bubblewrap"
    assert (
        "bubblewrap does not work here: bwrap ends with 1: bwrap: setting up uid map: Permission denied" in found.notice
    )


@pytest.mark.parametrize("mode", MODES)
def test_described_says_what_becomes_of_the_network(mode):
    if isolation.problem_of(mode):
        pytest.skip(isolation.problem_of(mode))
    closed, opened = isolation.described(mode, network=False), isolation.described(mode, network=True)
    if mode == "none":
        assert closed == opened
    else:
        assert re.search("no (network|TCP)", closed)
        assert "with network" in opened
