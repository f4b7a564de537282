"""What a kill or a full disk leaves of a run's tracking files: whole ones, and no line swallowed by a torn one."""

import json
import logging
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from samepath.rl.file_errors import said
from samepath.rl.tracking.events import Event, QueueFile
from samepath.rl.tracking.jsonl import JsonlSink, read_metrics, read_rollouts
from samepath.rl.tracking.sink import RunStart
from samepath.rl.tracking.tracked_rollout import TrackedRollout
from tests.killed import killed_at_each_call
from tests.model.test_durable_file import room_for


def started(run_dir: Path) -> JsonlSink:
    sink = JsonlSink(run_dir)
    sink.start(RunStart(run_name="r", recipe={}, recipe_yaml="a: 1\n", environment={}, run_id="one"))
    return sink


def rollout(text: str) -> TrackedRollout:
    return TrackedRollout(
        step=3, group_id="s3-g0", sample_index=0, prompt_text="1+1=", response_text=text, num_tokens=1, reward=math.nan
    )


def strict(text: bytes) -> object:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_sink_killed_at_each_call_leaves_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tmp_path / "run"

    def attempt() -> None:
        sink = started(run_dir)
        sink.log_metrics(1, {"loss": math.nan})
        sink.log_rollouts(3, [rollout("a"), rollout("b")])
        sink.log_checkpoint(1, run_dir / "checkpoint")
        sink.finish("FINISHED")

    kills = 0
    for _ in killed_at_each_call(monkeypatch, tmp_path, attempt):
        kills += 1
        for path in run_dir.glob("*.json"):
            strict(path.read_bytes())
        for path in run_dir.rglob("*.jsonl"):
            assert path.read_bytes()[-1:] in {b"", b"\n"}
            for line in path.read_bytes().splitlines():
                strict(line)
        for path in run_dir.glob("rollouts/step-*"):
            assert len(read_rollouts(path)) == 2
    assert kills > 20
    assert len(strict((run_dir / "tracking.json").read_bytes())["attempts"]) > 1


def test_metrics_torn_at_any_byte_keep_every_other_line_and_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    started(tmp_path).log_metrics(1, {"loss": 0.5})
    line = path.read_bytes()
    for length in range(1, len(line) - 1, 9):
        path.write_bytes(line + line[:length])
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="samepath.tracking"):
            assert read_metrics(path) == {1: {"loss": 0.5}}
            assert caplog.messages == [f"{path}: 1 torn lines are left out"]
            started(tmp_path).log_metrics(2, {"loss": 0.25})
            assert read_metrics(path) == {1: {"loss": 0.5}, 2: {"loss": 0.25}}


def test_rollouts_torn_inside_a_character_are_read(tmp_path: Path) -> None:
    started(tmp_path).log_rollouts(3, [rollout("a"), rollout("ñ")])
    path = tmp_path / "rollouts" / "step-00003.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index("ñ".encode()) + 1])
    assert [one.response_text for one in read_rollouts(path)] == ["a"]


def test_sink_on_a_full_disk_ends_the_run_and_tears_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = started(tmp_path)
    sink.log_metrics(1, {"loss": 0.5})
    with room_for((tmp_path / "metrics.jsonl").stat().st_size + 10):
        with pytest.raises(OSError, match=re.escape(str(tmp_path / "metrics.jsonl"))) as caught:
            sink.log_metrics(2, {"loss": 0.25})
        assert said(caught.value) == f"{tmp_path / 'metrics.jsonl'}: File too large"
    with room_for(10), caplog.at_level(logging.WARNING):
        sink.finish("FAILED")
    assert "how the run ended is not noted" in caplog.text
    sink.log_metrics(3, {"loss": 0.125})
    assert read_metrics(tmp_path / "metrics.jsonl") == {1: {"loss": 0.5}, 3: {"loss": 0.125}}


def test_sink_whose_file_cannot_be_written_for_another_reason_goes_on_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = started(tmp_path)
    (tmp_path / "metrics.jsonl").mkdir()
    with caplog.at_level(logging.WARNING):
        sink.log_metrics(1, {"loss": 0.5})
        sink.log_metrics(2, {"loss": 0.5})
    assert [record.message.startswith(f"cannot write {tmp_path / 'metrics.jsonl'}") for record in caplog.records] == [
        True
    ]


@pytest.mark.parametrize("text", ["", '{"attempts": [', "[]", "{}"])
def test_sink_sets_a_broken_book_aside_and_goes_on(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tracking.json").write_text(text)
    with caplog.at_level(logging.WARNING, logger="samepath.tracking"):
        started(tmp_path)
    assert len(json.loads((tmp_path / "tracking.json").read_text())["attempts"]) == 1
    assert (tmp_path / "tracking.broken").read_text() == text
    assert "tracking.broken" in caplog.text


def event(number: int) -> Event:
    return Event(kind="metrics", time_ms=number, payload={"step": number})


@pytest.mark.parametrize("act", [lambda file: file.append(event(3), {}), lambda file: file.forget_first(1, {"a": 1})])
def test_queue_file_killed_at_each_call_loses_no_event_and_keeps_its_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[QueueFile], object]
) -> None:
    path = tmp_path / "tracking-queue.jsonl"

    def filled() -> QueueFile:
        path.unlink(missing_ok=True)
        file = QueueFile(path, limit_bytes=10_000)
        for number in (1, 2):
            assert file.append(event(number), {"a": 1})
        return file

    files = [filled()]
    for _ in killed_at_each_call(monkeypatch, tmp_path, lambda: act(files[-1])):
        left = QueueFile(path, limit_bytes=10_000)
        assert left.read_state() == {"a": 1}
        assert [json.loads(line)["time_ms"] for line in left.lines()] in [[1, 2], [1, 2, 3], [2]]
        files.append(filled())
