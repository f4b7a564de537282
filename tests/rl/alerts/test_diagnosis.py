"""`samepath doctor RUN`: what went wrong first, in a run that is finished, cut short, stopped, dead or still going."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from samepath.rl.alerts.diagnosis import diagnose
from samepath.rl.cli import app
from samepath.rl.run_folder import claimed
from tests.rl.alerts.folders import Attempt
from tests.rl.alerts.series import Changes

SICK: dict[int, Changes] = {
    3: {"policy/gap_at_lag_0": 1e-5},
    4: {"policy/gap_at_lag_0": 1e-5, "rollout/truncated": 1.0},
    5: {"rollout/truncated": 1.0},
}


def sick(step: int) -> Changes:
    """A gap from step 3 to 4, truncation from step 4 on."""
    return SICK.get(step, {"rollout/truncated": 1.0} if step > 5 else {})


def doctor(*arguments: str) -> tuple[int, str]:
    """(exit status, what is printed) of `samepath doctor …`."""
    done = CliRunner().invoke(app, ["doctor", *arguments], standalone_mode=False)
    assert done.exception is None or isinstance(done.exception, FileNotFoundError), done.exception
    return int(done.return_value or 0), done.output


def test_findings_come_in_the_order_in_which_they_began(tiny_recipe) -> None:
    run_dir = Attempt(tiny_recipe("rl.steps=8")).steps(range(1, 9), sick).ended("FINISHED")
    found = diagnose(run_dir)
    assert [(one.step, one.rule, one.over_at) for one in found.findings] == [(3, "gap", 5), (4, "truncated", None)]
    assert (found.status, found.steps_done, found.steps_planned, found.healthy) == ("finished", 8, 8, False)
    status, printed = doctor(str(run_dir))
    assert status == 1
    lines = printed.splitlines()
    assert lines[0] == f"{run_dir}: finished at step 8 of 8"
    assert lines[1].startswith("1. step 3, first: gap (over at step 5): policy/gap_at_lag_0 is 1e-05 nats")
    assert lines[2].startswith("   usually: the sampler holds stale weights")
    assert lines[3].startswith("   advice: look at kl/sampler_k3_numerics")
    assert lines[4].startswith("2. step 4: truncated: 100% of the responses")


def test_what_began_first_stands_first_even_if_it_holds_to_the_end(tiny_recipe) -> None:
    def changes(step: int) -> Changes:
        return {"rollout/truncated": float(step > 1), "policy/gap_at_lag_0": 1e-5 * (step == 3)}

    run_dir = Attempt(tiny_recipe("rl.steps=5")).steps(range(1, 6), changes).ended("FINISHED")
    assert [(one.step, one.rule, one.over_at) for one in diagnose(run_dir).findings] == [
        (2, "truncated", None),
        (3, "gap", 4),
    ]


def test_healthy_run_has_status_0(tiny_recipe) -> None:
    run_dir = Attempt(tiny_recipe("rl.steps=4")).steps(range(1, 5), lambda step: {}).ended("FINISHED")
    status, printed = doctor(str(run_dir))
    assert (status, printed.splitlines()[1:]) == (0, ["nothing went wrong"])


def test_what_was_over_before_the_end_has_status_0_and_is_told(tiny_recipe) -> None:
    changes = lambda step: {"rollout/truncated": float(step == 2)}  # noqa: E731
    run_dir = Attempt(tiny_recipe("rl.steps=4")).steps(range(1, 5), changes).ended("FINISHED")
    status, printed = doctor(str(run_dir))
    assert status == 0
    assert "1. step 2: truncated (over at step 3)" in printed
    assert printed.endswith("nothing is wrong at the end\n")


def test_json_holds_all_of_it(tiny_recipe) -> None:
    run_dir = Attempt(tiny_recipe("rl.steps=8")).steps(range(1, 9), sick).ended("FINISHED")
    status, printed = doctor(str(run_dir), "--json")
    read = json.loads(printed)
    assert status == 1
    assert read == diagnose(run_dir).plain()
    assert [finding["rule"] for finding in read["findings"]] == ["gap", "truncated"]


def test_rules_look_at_the_metrics_even_where_nothing_was_said(tiny_recipe) -> None:
    """As of a run that was killed before it could, or had the alerts switched off and on again in its recipe."""
    run_dir = Attempt(tiny_recipe("rl.steps=8")).steps(range(1, 9), sick).ended("FINISHED")
    (run_dir / "alerts.jsonl").unlink()
    assert [one.rule for one in diagnose(run_dir).findings] == ["gap", "truncated"]


def test_run_that_an_error_stopped_ends_with_its_message(tiny_recipe) -> None:
    attempt = Attempt(tiny_recipe("rl.steps=8")).steps(range(1, 6), sick)
    attempt.alerts.stopped(RuntimeError("12 of 16 responses have no usable reward"))
    found = diagnose(attempt.ended("FAILED"))
    assert found.status == "stopped"
    assert [(one.step, one.rule) for one in found.findings] == [(3, "gap"), (4, "truncated"), (5, "stopped")]
    assert found.findings[-1].seen == "RuntimeError: 12 of 16 responses have no usable reward"


def test_run_that_was_interrupted_is_no_finding(tiny_recipe) -> None:
    found = diagnose(Attempt(tiny_recipe("rl.steps=8")).steps(range(1, 4), lambda step: {}).ended("KILLED"))
    assert (found.status, found.steps_done, found.findings) == ("interrupted", 3, ())


def test_run_that_died_says_so(tiny_recipe) -> None:
    found = diagnose(Attempt(tiny_recipe("rl.steps=8")).steps(range(1, 4), lambda step: {}).run_dir)
    assert found.status == "died"
    (finding,) = found.findings
    assert (finding.step, finding.rule) == (3, "died")
    assert "SIGKILL" in finding.cause


def test_run_whose_error_was_not_kept_says_so(tiny_recipe) -> None:
    found = diagnose(Attempt(tiny_recipe()).ended("FAILED"))
    assert (found.status, [one.rule for one in found.findings]) == ("failed", ["failed"])


def test_run_that_goes_on_is_running_and_dead_no_more(tiny_recipe) -> None:
    run_dir = Attempt(tiny_recipe("rl.steps=8")).steps(range(1, 4), lambda step: {}).run_dir
    with claimed(run_dir):
        found = diagnose(run_dir)
    assert (found.status, found.findings) == ("running", ())


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        diagnose(tmp_path)


def test_notes_are_told_and_are_no_findings(tiny_recipe) -> None:
    attempt = Attempt(tiny_recipe("rl.steps=2"))
    attempt.alerts.begin(1)
    run_dir = attempt.steps([1, 2], lambda step: {}).ended("FINISHED")
    status, printed = doctor(str(run_dir))
    assert status == 0
    assert "note, step 0: there is one training row" in printed
