"""What a child sees of the driver's environment: a short list, and what the recipe names."""

import os

import pytest

from samepath.rewards.sandbox.environment import MissingVariableError, child_environment


def test_child_environment_keys_stay_with_the_driver(monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    found = child_environment({}, ())
    assert "secret" not in found.values()
    assert "HOME" not in found
    assert found["PATH"] == os.environ["PATH"]
    assert found["OMP_NUM_THREADS"] == "3"
    assert found["LC_ALL"] == "C.UTF-8"


def test_child_environment_named_variables_are_passed_and_given_ones_win(monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "secret")
    monkeypatch.setenv("JUDGE_URL", "http://one")
    found = child_environment({"JUDGE_URL": "http://two", "PATH": "/bin"}, ("JUDGE_API_KEY", "JUDGE_URL"))
    assert (found["JUDGE_API_KEY"], found["JUDGE_URL"], found["PATH"]) == ("secret", "http://two", "/bin")


def test_child_environment_missing_variable_is_named(monkeypatch):
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    with pytest.raises(MissingVariableError, match="reward.pass_environment names JUDGE_API_KEY, which"):
        child_environment({}, ("PATH", "JUDGE_API_KEY"))


def test_child_environment_module_search_path_becomes_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["own", "/opt/modules"]))
    assert child_environment({}, ())["PYTHONPATH"] == os.pathsep.join([str(tmp_path / "own"), "/opt/modules"])
