"""The lines of a run's history: one a step, the same after a step is made again, and whole whatever a kill left."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from samepath.rewards.score import Score
from samepath.rl.history import History, StepLine, record_digest, step_line
from tests.rl.sampled import group, rollout


def line(step: int, weights: str = "w", rewards: tuple[float | Score | None, ...] = (1.0, 0.5)) -> StepLine:
    return step_line(step, [2 * step], [group("g", *rewards)], f"{weights}{step}")


def test_step_line_says_what_time_decided() -> None:
    one = rollout("g", 4, 0.25)
    (segment,) = one.segments
    versions = np.where(segment.trained, [-1, -1, 3, 3, 4, 4, 4], -1).astype(np.int32)
    failed = rollout("g", 1, None, failure="prompt_too_long", segments=())
    timed_out = rollout("g", 2, Score(total=float("nan"), parts={}, status="timeout"))
    made = replace(
        group("g"), rollouts=(replace(one, segments=(replace(segment, weight_version=versions),)), failed, timed_out)
    )
    (got,) = step_line(7, [29], [made], "abc").groups
    assert got.number == 29
    first, second, third = got.samples
    assert (first.drawn, first.status, first.reward) == (((3, 2), (4, 3)), "ok", 0.25)
    assert (second.drawn, second.record, second.status) == ((), "prompt_too_long", "")
    assert (third.status, third.reward) == ("timeout", None)


@pytest.mark.parametrize("name", ["token_ids", "sampler_logprobs", "routes", "weight_version"])
def test_record_digest_changes_with_every_array(name: str) -> None:
    one = rollout("g", 2)
    (segment,) = one.segments
    changed = getattr(segment, name).copy()
    changed.flat[-1] += 1
    assert record_digest(one) == record_digest(rollout("g", 2, 0.5))
    assert record_digest(replace(one, segments=(replace(segment, **{name: changed}),))) != record_digest(one)


def test_history_keeps_a_line_a_step_and_forgets_what_came_after_another_one(tmp_path: Path) -> None:
    history = History(tmp_path)
    for step in range(3):
        history.note(line(step))
    before = (tmp_path / "history.jsonl").read_bytes()
    again = History(tmp_path)
    assert [again.line(step) for step in again.steps] == [line(step) for step in range(3)]
    again.note(line(1))
    assert (tmp_path / "history.jsonl").read_bytes() == before
    assert [again.weights(version) for version in range(5)] == ["", "w0", "w1", "w2", ""]
    again.note(line(1, "other"))
    assert History(tmp_path).steps == [0, 1]
    again.note(line(2, "other"))
    assert [History(tmp_path).weights(version) for version in (1, 2, 3)] == ["w0", "other1", "other2"]
    again.rewind(1)
    assert History(tmp_path).steps == [0]


def test_history_torn_at_any_byte_of_its_last_line_has_one_line_less(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.note(line(0))
    path = tmp_path / "history.jsonl"
    size = path.stat().st_size
    history.note(line(1))
    whole = path.read_bytes()
    for cut in range(size + 1, len(whole), 7):
        path.write_bytes(whole[:cut])
        torn = History(tmp_path)
        assert torn.steps == [0]
        torn.note(line(1))
        assert path.read_bytes() == whole
