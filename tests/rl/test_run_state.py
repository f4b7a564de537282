"""`run.json`: totals come back as they were at a checkpoint, and a damaged file is named."""

import json
import math
from pathlib import Path

import pytest

from samepath.rl.run_state import METRICS_FILE, STATE_FILE, RunState, RunStateError


def test_save_and_load_give_an_equal_state_in_strict_json(tmp_path: Path) -> None:
    state = RunState(run_id="r", phase="training", accuracy_before=0.5, counters={"reward/status.error": 2.0})
    state.mark(tmp_path, 4, keep=2)
    state.save(tmp_path)
    assert RunState.load(tmp_path) == state
    RunState().save(tmp_path)
    text = (tmp_path / STATE_FILE).read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["accuracy_before"] is None
    assert math.isnan(RunState.load(tmp_path).accuracy_before)
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


def test_rewind_gives_the_totals_of_the_mark_and_forgets_later_marks(tmp_path: Path) -> None:
    state = RunState(counters={"a": 1.0}, gap_at_lag_0=0.25)
    (tmp_path / METRICS_FILE).write_text("12345")
    state.mark(tmp_path, 2, keep=2)
    state.counters["a"] = 7.0
    state.counters["b"] = 1.0
    state.gap_at_lag_0 = 0.5
    state.mark(tmp_path, 4, keep=2)
    state.rewind(2)
    assert (state.counters, state.gap_at_lag_0) == ({"a": 1.0}, 0.25)
    assert state.marks.keys() == {2}
    assert state.marks[2].metrics_bytes == 5
    state.counters["a"] = 9.0
    state.rewind(2)
    assert state.counters == {"a": 1.0}, "counting on must not change the mark"


def test_mark_keeps_the_reference_and_as_many_as_there_can_be_checkpoints(tmp_path: Path) -> None:
    state = RunState()
    for step in range(0, 20, 2):
        state.mark(tmp_path, step, keep=1)
    assert sorted(state.marks) == [0, 14, 16, 18]


def test_rewind_to_an_unknown_step_names_the_known_ones(tmp_path: Path) -> None:
    state = RunState()
    state.mark(tmp_path, 3, keep=1)
    with pytest.raises(RunStateError, match=r"step 2; it does for \[3\]"):
        state.rewind(2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no run was started"),
        ('{"run_id": "r', "damaged"),
        ("[]", "this version"),
        ('{"run_id": "r"}', "this version"),
    ],
)
def test_load_of_what_is_no_state_says_so(text: str | None, said: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / STATE_FILE).write_text(text)
    with pytest.raises(RunStateError, match=said):
        RunState.load(tmp_path)
