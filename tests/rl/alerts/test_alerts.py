"""What a run says of itself, once, kept in `alerts.jsonl` and taken up by the process that goes on with it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from samepath.rewards.score import Score
from samepath.rl.alerts.alerts import Alerts
from samepath.rl.alerts.book import read_alerts, rewind_alerts
from samepath.rl.alerts.diagnosis import diagnose
from samepath.rl.tracking.alert import Alert
from samepath.rl.tracking.sink import Sink
from samepath.rl.tracking.tracker import Tracker
from tests.rl.alerts.folders import Attempt
from tests.rl.alerts.series import CASES, Changes, from_step
from tests.rl.sampled import group

BY_RULE = {case.rule: case for case in CASES}
TRUNCATED: Changes = {"rollout/truncated": 1.0}


def failed(status: str, detail: str) -> Score:
    return Score(total=float("nan"), status=status, detail=detail)


class Book(Sink):
    """Keeps what it is told of alerts."""

    def __init__(self) -> None:
        self.told: list[tuple[list[str], dict[str, int]]] = []

    def log_alerts(self, alerts: Sequence[Alert], holding: Mapping[str, int]) -> None:
        self.told.append(([f"{alert.rule} {alert.event}" for alert in alerts], dict(holding)))


def test_tracker_hears_what_begins_and_ends_and_what_holds(tiny_recipe) -> None:
    book = Book()
    alerts = Alerts(tiny_recipe(), Tracker([book]))
    lines = [alerts.step(step, {"rollout/truncated": float(1 < step < 4)}) for step in range(1, 6)]
    assert book.told == [(["truncated begins"], {"truncated": 2}), (["truncated ends"], {})]
    assert [len(said) for said in lines] == [0, 1, 0, 1, 0]
    assert lines[1][0].startswith("warning: truncated: 100% of the responses ran into sampling.max_new_tokens")
    assert lines[1][0].endswith("with rl.truncated.mode=mask nothing is learned from them")
    assert lines[3] == ["over: truncated: no longer seen at step 4, it began at step 2"]


def test_failures_of_each_kind_are_noted_once_with_function_rollout_and_message(tiny_recipe) -> None:
    error, slow = failed("error", "short: KeyError: 'gold'"), failed("timeout", "short: no result within 1 s")
    alerts = Alerts(tiny_recipe(), Tracker([]))
    said = alerts.failures([group("s1-g0", 1.0, error, error), group("s1-g1", slow, error)])
    function = "samepath.rewards.length:brevity"
    assert said == [
        f"warning: first reward/status.error of {function}, rollout s1-g0/1: short: KeyError: 'gold'",
        f"warning: first reward/status.timeout of {function}, rollout s1-g1/0: short: no result within 1 s",
    ]
    assert alerts.failures([group("s2-g0", error, slow)]) == []
    assert Alerts(tiny_recipe("alerts.first_failure=false"), Tracker([])).failures([group("s1-g0", error)]) == []


def test_failures_of_sampling_name_reason_prompt_and_detail(tiny_recipe) -> None:
    made = group("s1-g0", None, None)
    broken = replace(
        made.rollouts[1],
        failure="prompt_not_encodable",
        failure_detail="rows.jsonl:8: ×",
        segments=(),
        prompt_id="train-7",
    )
    said = Alerts(tiny_recipe(), Tracker([])).failures([replace(made, rollouts=(made.rollouts[0], broken))])
    assert said == [
        "warning: first rollout/failure.prompt_not_encodable, rollout s1-g0/1, prompt train-7: rows.jsonl:8: ×"
    ]


def test_task_of_one_row_is_noted(tiny_recipe) -> None:
    assert Alerts(tiny_recipe(), Tracker([])).begin(2) == []
    alerts = Alerts(tiny_recipe(), Tracker([]))
    (said,) = alerts.begin(1)
    assert said.startswith("warning: there is one training row. Every group")
    assert alerts.begin(1) == []
    assert Alerts(tiny_recipe("alerts.one_row=false"), Tracker([])).begin(1) == []


def test_run_that_goes_on_says_nothing_twice(tiny_recipe) -> None:
    recipe, changes = tiny_recipe(), from_step(2, TRUNCATED)
    first = Attempt(recipe).steps(range(1, 5), changes)
    first.alerts.failures([group("s1-g0", failed("error", "x"))])
    second = Attempt(recipe, first_step=4).steps(range(5, 8), changes)
    assert second.said == []
    assert second.alerts.failures([group("s5-g0", failed("error", "x"))]) == []
    assert second.alerts.holding == {"truncated": 2}
    assert [(one.step, one.rule, one.event) for one in read_alerts(recipe.run_dir)] == [
        (2, "truncated", "begins"),
        (5, "first_failure", "note"),
        (4, "resumed", "note"),
    ]


def test_alert_that_a_kill_kept_from_being_written_is_written_by_the_run_that_goes_on(tiny_recipe) -> None:
    recipe, changes = tiny_recipe(), from_step(4, TRUNCATED)
    Attempt(recipe).steps(range(1, 5), changes)
    (recipe.run_dir / "alerts.jsonl").write_text('{"step": 4, "rule": "trunc')
    second = Attempt(recipe, first_step=4)
    assert [line.partition(":")[2][:11] for line in second.said] == [" truncated:"]
    assert [(one.step, one.rule) for one in read_alerts(recipe.run_dir)] == [(4, "truncated"), (4, "resumed")]


def test_memory_of_the_process_before_is_not_compared_with_this_ones(tiny_recipe) -> None:
    recipe, changes = tiny_recipe(), BY_RULE["memory_growth"].changes
    Attempt(recipe).steps(range(1, 26), changes)
    assert Attempt(recipe, first_step=25).steps(range(26, 60), changes).said == []
    assert diagnose(recipe.run_dir).findings[0].rule == "died"


def test_rewind_takes_out_what_later_steps_said(tiny_recipe) -> None:
    run_dir = Attempt(tiny_recipe()).steps(range(1, 9), lambda step: TRUNCATED if step in (2, 6) else {}).run_dir
    assert [one.step for one in read_alerts(run_dir)] == [2, 3, 6, 7]
    rewind_alerts(run_dir, 3)
    assert [one.step for one in read_alerts(run_dir)] == [2, 3]
    rewind_alerts(run_dir / "nowhere", 3)


def test_what_ended_a_run_is_kept_and_over_once_it_goes_on(tiny_recipe) -> None:
    recipe = tiny_recipe()
    first = Attempt(recipe).steps(range(1, 3), lambda step: {})
    assert first.alerts.stopped(ValueError("At equal weights …")) == []
    assert read_alerts(recipe.run_dir)[-1].seen == "ValueError: At equal weights …"
    Attempt(recipe, first_step=2)
    assert [(one.rule, one.event) for one in read_alerts(recipe.run_dir)] == [
        ("stopped", "begins"),
        ("stopped", "ends"),
        ("resumed", "note"),
    ]


def test_lines_of_the_file_are_plain_and_have_a_time(tiny_recipe, tmp_path: Path) -> None:
    run_dir = Attempt(tiny_recipe()).steps([1], lambda step: TRUNCATED).run_dir
    (line,) = (run_dir / "alerts.jsonl").read_text().splitlines()
    assert set(json.loads(line)) == {"time", "step", "rule", "event", "seen", "cause", "advice"}
