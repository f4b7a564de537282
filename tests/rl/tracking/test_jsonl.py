"""Settings, JSON lines and the choice of rollouts to trace."""

import builtins
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samepath.rl.recipe.tracking import TrackingSettings
from samepath.rl.tracking.jsonl import (
    JsonlSink,
    plain,
    read_metrics,
    read_rollouts,
)
from samepath.rl.tracking.sink import RunStart
from samepath.rl.tracking.tracked_rollout import TrackedRollout, choose_rollouts
from samepath.rl.tracking.tracker import build_tracker, store_uri


def tracked(group: int = 0, sample: int = 0, reward: float = 1.0, **changes: Any) -> TrackedRollout:
    values: dict[str, Any] = {"step": 3, "prompt_text": "1+1=", "response_text": "2", "num_tokens": 1}
    return TrackedRollout(**{**values, "group_id": f"s3-g{group}", "sample_index": sample, "reward": reward, **changes})


def failed(group: int, sample: int) -> TrackedRollout:
    return tracked(group, sample, math.nan, reward_status="timeout")


def started(run_dir: Path, run_id: str = "") -> JsonlSink:
    sink = JsonlSink(run_dir)
    sink.start(RunStart(run_name="r", recipe={}, recipe_yaml="a: 1\n", environment={}, run_id=run_id))
    return sink


def test_store_uri_relative_sqlite_lies_in_runs_folder(tmp_path: Path) -> None:
    assert store_uri("sqlite:///mlflow.db", tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert store_uri("sqlite:////data/x.db", tmp_path) == "sqlite:////data/x.db"
    assert store_uri("http://host:5000", tmp_path) == "http://host:5000"


def test_build_tracker_jsonl_does_not_import_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def guarded(name: str, *rest: Any) -> Any:
        assert not name.startswith(("mlflow", "samepath.rl.tracking.mlflow"))
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", guarded)
    tracker = build_tracker(TrackingSettings(kind="jsonl"), tmp_path / "run")
    run_id = tracker.start(RunStart(run_name="r", recipe={}, recipe_yaml="", environment={}))
    tracker.finish("FINISHED")
    assert run_id.startswith("local-")
    assert tracker.links() == {}


def test_build_tracker_without_mlflow_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install samepath\[mlflow\].*tracking.kind=jsonl"):
        build_tracker(TrackingSettings(), tmp_path / "run")


def test_jsonl_metrics_nan_and_infinity_survive_as_strict_json(tmp_path: Path) -> None:
    sink = started(tmp_path)
    sink.log_metrics(1, {"reward/mean": math.nan, "kl/reference": -math.inf, "eval/accuracy": 0.25})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    read = read_metrics(tmp_path / "metrics.jsonl")[1]
    assert math.isnan(read["reward/mean"])
    assert read["kl/reference"] == -math.inf
    assert read["eval/accuracy"] == 0.25


def test_read_metrics_step_done_twice_and_cut_line_last_value_counts(tmp_path: Path) -> None:
    sink = started(tmp_path)
    sink.log_metrics(2, {"a": 1.0, "b": 5.0})
    sink.log_metrics(1, {"a": 0.5})
    sink.log_metrics(2, {"a": 2.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "metr')
    assert list(read_metrics(tmp_path / "metrics.jsonl").items()) == [(1, {"a": 0.5}), (2, {"a": 2.0, "b": 5.0})]


def test_jsonl_rollouts_all_rollouts_come_back_equal(tmp_path: Path) -> None:
    kept = [
        tracked(0, 0, 0.5, reward_parts={"answer": 1.0}, tokens=("2",), sampler_logprobs=(-0.5,), kl_tokens=(0.1,),
               advantage=0.1, kl=0.2, off_policy=0.0, route_flips=0.0, response_text="ü\n\u2028 </script> \ud800"),
        tracked(0, 1, -1.0, advantage=-0.1, kl=0.0, off_policy=0.0, route_flips=0.0, masked=True),
    ]  # fmt: skip
    sink = started(tmp_path)
    sink.log_rollouts(3, kept)
    back = read_rollouts(tmp_path / "rollouts" / "step-00003.jsonl")
    assert back[1] == kept[1]
    assert back[0].tokens == ("2",)
    assert back[0].response_text == "ü\n\u2028 </script> ?"


def test_jsonl_rollouts_resumed_attempt_replaces_step_and_one_attempt_appends(tmp_path: Path) -> None:
    path = tmp_path / "rollouts" / "step-00003.jsonl"
    first = started(tmp_path)
    first.log_rollouts(3, [tracked(0), tracked(1)])
    first.log_rollouts(3, [tracked(2)])
    assert len(read_rollouts(path)) == 3
    second = started(tmp_path, "local-1")
    second.log_rollouts(3, [tracked(5)])
    assert [r.group_id for r in read_rollouts(path)] == ["s3-g5"]


def test_jsonl_book_lists_attempts_with_status_and_checkpoint(tmp_path: Path) -> None:
    first = started(tmp_path)
    first.log_checkpoint(10, tmp_path / "c10")
    first.log_best(8, tmp_path / "c8", 0.5)
    first.finish("KILLED")
    started(tmp_path, "abc").finish("FINISHED")
    book = json.loads((tmp_path / "tracking.json").read_text())
    assert book["run_id"] == "abc"
    assert [attempt["status"] for attempt in book["attempts"]] == ["KILLED", "FINISHED"]
    assert book["attempts"][0]["checkpoint"] == {"step": 10, "path": str(tmp_path / "c10")}
    assert book["attempts"][0]["best_checkpoint"] == {"step": 8, "path": str(tmp_path / "c8"), "accuracy": 0.5}


def test_jsonl_unwritable_folder_warns_once_and_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    sink = JsonlSink(tmp_path / "file" / "run")
    sink.log_metrics(1, {"a": 1.0})
    sink.log_metrics(2, {"a": 1.0})
    assert len([entry for entry in caplog.records if entry.levelname == "WARNING"]) == 1


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_plain_any_value_is_strict_json(value: object) -> None:
    json.dumps(plain(value), allow_nan=False)


def test_choose_rollouts_enough_places_takes_everything() -> None:
    rollouts = [tracked(0, 0), tracked(0, 1)]
    assert choose_rollouts(rollouts, 2) == rollouts
    assert choose_rollouts(rollouts, 0) == []


def test_choose_rollouts_takes_whole_groups_that_show_most() -> None:
    dull = [tracked(0, i, 0.5) for i in range(4)]
    mixed = [tracked(1, i, float(i % 2)) for i in range(4)]
    broken = [tracked(2, 0, 0.5), tracked(2, 1, 0.5), failed(2, 2), tracked(2, 3, 0.5)]
    chosen = choose_rollouts(dull + mixed + broken, 8)
    assert chosen == mixed + broken


def test_choose_rollouts_one_group_fits_still_shows_the_failed_one() -> None:
    mixed = [tracked(0, i, float(i % 2)) for i in range(4)]
    broken = [tracked(1, i, 0.5) for i in range(3)] + [failed(1, 3)]
    chosen = choose_rollouts(mixed + broken, 5)
    assert chosen == [*mixed, broken[3]]


rewards = st.one_of(st.just(math.nan), st.sampled_from([0.0, 0.5, 1.0]))


@given(st.lists(st.tuples(st.integers(0, 4), rewards), max_size=30), st.integers(0, 31))
def test_choose_rollouts_any_batch_fills_the_limit_and_shows_each_kind(
    cases: list[tuple[int, float]], limit: int
) -> None:
    rollouts = [
        tracked(group, index, reward, reward_status="error" if math.isnan(reward) else "ok")
        for index, (group, reward) in enumerate(cases)
    ]
    chosen = choose_rollouts(rollouts, limit)
    assert len(chosen) == min(limit, len(rollouts))
    assert [r.sample_index for r in chosen] == sorted({r.sample_index for r in chosen})
    good = [r.reward for r in rollouts if not r.failed]
    if limit >= 3:
        assert any(r.failed for r in chosen) == any(r.failed for r in rollouts)
        shown = [r.reward for r in chosen if not r.failed]
        assert not good or (max(shown) == max(good) and min(shown) == min(good))
