"""The index of a run's rollouts: it holds what the files hold, follows a run that writes, and survives whatever stands in a file."""

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from samepath.rl.report.inspector import step_columns
from samepath.rl.report.inspector.details import RewrittenError, detail, place_of, rollout_at
from samepath.rl.report.inspector.rollout_index import RolloutIndex
from samepath.rl.report.inspector.search import Wanted, find
from samepath.rl.tracking.jsonl import plain
from samepath.rl.tracking.tracked_rollout import TrackedRollout
from tests.rl.report.inspector.made_run import some_rollouts, tracked, write
from tests.rl.tracked_conversation import tracked_conversation


def index_of(run_dir: Path) -> RolloutIndex:
    index = RolloutIndex(run_dir / "rollouts")
    index.refresh()
    return index


def names(index: RolloutIndex) -> list[tuple[int, str, int]]:
    snapshot = index.snapshot
    groups = snapshot.words["group"]
    return [
        (int(step), groups.values[code], int(sample))
        for step, code, sample in zip(snapshot.numbers["step"], groups.codes_B, snapshot.numbers["sample"], strict=True)
    ]


def named(rollouts: list[TrackedRollout]) -> list[tuple[int, str, int]]:
    return [(one.step, one.group_id, one.sample_index) for one in rollouts]


@pytest.fixture
def read_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the step files whose lines are read."""
    seen: list[str] = []
    lines_of = step_columns.lines_of

    def counted(path: Path, size: int) -> Iterator[tuple[int, bytes]]:
        seen.append(path.name)
        return lines_of(path, size)

    monkeypatch.setattr(step_columns, "lines_of", counted)
    return seen


def test_index_holds_every_rollout_in_order_with_its_values(tmp_path: Path) -> None:
    rollouts = [*some_rollouts(), tracked(100_000, 0, 0), tracked(99_999, 0, 0)]
    write(tmp_path, rollouts)
    index = index_of(tmp_path)
    in_order = sorted(rollouts, key=lambda one: one.step)
    assert names(index) == named(in_order)
    numbers = index.snapshot.numbers
    for place, one in enumerate(in_order):
        for name in ("reward", "kl", "off_policy", "advantage", "num_tokens", "weight_lag", "masked", "failed"):
            value, wanted = numbers[name][place], getattr(one, name)
            assert value == wanted or (math.isnan(value) and math.isnan(wanted)), name
        # NaN equals nothing.
        assert plain(rollout_at(index.snapshot, place)) == json.loads(json.dumps(plain(one)))


def test_index_follows_a_run_and_reads_each_step_once(tmp_path: Path, read_files: list[str]) -> None:
    rollouts = some_rollouts(steps=4)
    index = index_of(tmp_path)
    assert len(index.snapshot) == 0
    assert not index.refresh()
    for step in range(1, 5):
        write(tmp_path, [one for one in rollouts if one.step == step])
        before = index.snapshot
        assert index.refresh()
        assert index.snapshot.version == before.version + 1
        assert len(before) == 12 * (step - 1), "a snapshot stays what it was"
        assert not index.refresh()
    assert names(index) == named(rollouts)
    assert read_files == [f"step-0000{step}.jsonl" for step in range(1, 5)]


def test_index_of_a_later_start_reads_no_line_again(tmp_path: Path, read_files: list[str]) -> None:
    rollouts = some_rollouts()
    write(tmp_path, rollouts)
    first = index_of(tmp_path)
    del read_files[:]
    second = index_of(tmp_path)
    assert read_files == []
    assert names(second) == names(first) == named(rollouts)
    assert detail(second.snapshot, 5) == detail(first.snapshot, 5)


def test_index_takes_a_step_that_is_done_again_and_lets_one_go_that_is_set_aside(tmp_path: Path) -> None:
    write(tmp_path, some_rollouts(steps=2))
    index = index_of(tmp_path)
    again = [tracked(2, 0, 0, reward=0.875, response_text="done again")]
    write(tmp_path, again)
    (tmp_path / "rollouts" / "step-00001.jsonl").rename(tmp_path / "aside.jsonl")
    with pytest.raises(RewrittenError, match="step-00001"):
        rollout_at(index.snapshot, 0)
    with pytest.raises(RewrittenError, match="step-00002"):
        rollout_at(index.snapshot, 17)
    assert index.refresh()
    assert names(index) == [(2, "s2-g0", 0)]
    assert rollout_at(index.snapshot, 0).response_text == "done again"


def test_rollout_at_takes_no_other_rollout_that_stands_there_now(tmp_path: Path) -> None:
    write(tmp_path, [tracked(1, 0, 0), tracked(1, 0, 1)])
    index = index_of(tmp_path)
    write(tmp_path, [tracked(1, 0, 1), tracked(1, 0, 0)])
    with pytest.raises(RewrittenError, match="has changed"):
        rollout_at(index.snapshot, 0)
    index.refresh()
    assert rollout_at(index.snapshot, 0).sample_index == 1


def test_index_of_a_step_that_grows_has_all_of_it(tmp_path: Path) -> None:
    write(tmp_path / "whole", some_rollouts(steps=1))
    whole = (tmp_path / "whole" / "rollouts" / "step-00001.jsonl").read_bytes()
    path = tmp_path / "rollouts" / "step-00001.jsonl"
    path.parent.mkdir()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    index = RolloutIndex(path.parent)
    for size in (ends[2], ends[2] + 40, ends[3] - 1, ends[3], len(whole)):
        path.write_bytes(whole[:size])
        os.utime(path, ns=(size, size))
        index.refresh()
        # A line that lacks only its end is whole.
        assert len(index.snapshot) == sum(size >= end - 1 for end in ends)
        assert index.snapshot.unreadable == (size == ends[2] + 40)
    assert names(index) == named(some_rollouts(steps=1))


@pytest.mark.parametrize(
    "line",
    [
        b"{}", b"[]", b"null", b"\xff\xfe", b'{"step": 1}', b"[" * 100_000, b'{"step": 1e400, "group_id": "a", "sample_index": 0}',
        b'{"step": 1, "group_id": 7, "sample_index": 0}', b'{"step": 1, "group_id": "a", "sample_index": 99999999999999999999}',
        b'{"step": 1, "group_id": "a", "sample_index": 0, "reward": "good"}', b'{"step": 1, "group_id": "a", "sample_index": 0, "messages": [7]}',
        b'{"step": 1, "group_id": "a", "sample_index": 0, "segment_tokens": 7}',
    ],
)  # fmt: skip
def test_index_counts_a_line_that_is_no_rollout_and_goes_on(tmp_path: Path, line: bytes) -> None:
    write(tmp_path, some_rollouts(steps=1))
    path = tmp_path / "rollouts" / "step-00001.jsonl"
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + line + b"\n\n" + b"".join(rest))
    index = index_of(tmp_path)
    assert names(index) == named(some_rollouts(steps=1))
    assert index.snapshot.unreadable == 1
    assert index_of(tmp_path).snapshot.unreadable == 1, "the kept index knows it too"


def test_index_takes_no_text_for_numbers_of_tokens(tmp_path: Path) -> None:
    said = 'x "kl_tokens": [1, 2] and \\"entropies\\": [3] "log_ratios": ['
    one = tracked(1, 0, 0, response_text=said, kl_tokens=(0.5, math.nan), entropies=(math.inf, -1e-9), num_tokens=2)
    write(tmp_path, [one, tracked(1, 0, 1, prompt_text='"support_sizes": []')])
    index = index_of(tmp_path)
    assert find(index.snapshot, Wanted(text=said)).tolist() == [0]
    assert find(index.snapshot, Wanted(text='"support_sizes": []')).tolist() == [1]
    assert index.snapshot.numbers["num_tokens"].tolist() == [2, 0]
    assert rollout_at(index.snapshot, 0).entropies == (math.inf, -1e-9)


def damaged(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize("damage", [damaged, lambda data: b"", lambda data: b"no arrow", lambda data: data[:-8]])
def test_index_makes_a_damaged_index_file_again(
    tmp_path: Path, damage: Callable[[bytes], bytes], read_files: list[str]
) -> None:
    write(tmp_path, some_rollouts(steps=1))
    index_of(tmp_path)
    kept = tmp_path / "rollouts" / "index" / "step-00001.arrow"
    whole = kept.read_bytes()
    # A new file: the old one is mapped by whoever looks at it.
    kept.unlink()
    kept.write_bytes(damage(whole))
    assert names(index_of(tmp_path)) == named(some_rollouts(steps=1))
    assert len(read_files) == 2
    assert index_of(tmp_path).snapshot.unsaved == ""
    assert len(read_files) == 2
    assert os.listdir(kept.parent) == [kept.name], "nothing half written is left"


def test_index_that_cannot_be_kept_stays_in_memory_and_says_why(tmp_path: Path) -> None:
    write(tmp_path, some_rollouts())
    (tmp_path / "rollouts" / "index").write_text("a file where the folder should be")
    index = index_of(tmp_path)
    assert names(index) == named(some_rollouts())
    assert index.snapshot.unsaved.startswith(str(tmp_path / "rollouts" / "index"))
    assert find(index.snapshot, Wanted(text="needle")).size


def test_index_leaves_foreign_files_alone(tmp_path: Path) -> None:
    write(tmp_path, some_rollouts(steps=1))
    for name in ("step-x.jsonl", "step-1.jsonl.bak", "notes.txt", ".step-00009.jsonl.partial"):
        (tmp_path / "rollouts" / name).write_text("{}\n")
    (tmp_path / "rollouts" / "step-00002.jsonl").mkdir()
    index = index_of(tmp_path)
    assert names(index) == named(some_rollouts(steps=1))
    assert "step-00002.jsonl" in index.problem


def test_index_of_a_folder_that_cannot_be_read_says_so_and_keeps_what_it_knows(tmp_path: Path) -> None:
    write(tmp_path, some_rollouts(steps=1))
    index = index_of(tmp_path)
    (tmp_path / "rollouts").rename(tmp_path / "moved")
    (tmp_path / "rollouts").write_text("a file")
    assert not index.refresh()
    assert index.problem.startswith(str(tmp_path / "rollouts"))
    assert len(index.snapshot) == 12
    (tmp_path / "rollouts").unlink()
    (tmp_path / "moved").rename(tmp_path / "rollouts")
    index.refresh()
    assert index.problem == ""


wild = st.text(st.characters(), max_size=30)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(texts=[("\ud800", "\ud801\x00", "<\udfff>", "\udc00")], spelled=True)
@example(texts=[("\ud800", "\ud801\x00", "<\udfff>", "\udc00")], spelled=False)
@given(texts=st.lists(st.tuples(wild, wild, wild, wild), min_size=1, max_size=4), spelled=st.booleans())
def test_index_any_text_is_found_and_comes_back(
    tmp_path: Path, texts: list[tuple[str, str, str, str]], spelled: bool
) -> None:
    """Control characters, markup, halves of surrogate pairs: as the run writes them, or spelled out in JSON."""
    folder = tmp_path / "rollouts"
    folder.mkdir(exist_ok=True)
    entries = [
        {"step": 1, "group_id": group, "sample_index": sample, "prompt_text": prompt, "response_text": said, "dataset": task, "reward": 1.0}
        for sample, (group, prompt, said, task) in enumerate(texts)
    ]  # fmt: skip
    lines = "".join(json.dumps(entry, ensure_ascii=spelled) + "\n" for entry in entries)
    path = folder / "step-00001.jsonl"
    path.write_bytes(lines.encode("utf-8", errors="replace"))
    os.utime(path, ns=(hash(lines) % 2**40, hash(lines) % 2**40))
    index = index_of(tmp_path)
    assert len(index.snapshot) == len(texts)
    assert index.snapshot.unreadable == 0
    for sample, (group, prompt, said, task) in enumerate(texts):
        known = group.encode("utf-8", errors="replace").decode()
        place = place_of(index.snapshot, 1, known, sample)
        assert place == sample
        shown = detail(index.snapshot, place)
        wanted = said if spelled else said.encode("utf-8", errors="replace").decode()
        assert shown["response_text"] == wanted
        json.dumps(shown, allow_nan=False)
        for text in (prompt, said):
            if text:
                assert sample in find(index.snapshot, Wanted(text=text))
        assert sample in find(
            index.snapshot, Wanted(equals=(("task", task.encode("utf-8", errors="replace").decode()),))
        )


def test_detail_of_a_conversation_has_messages_and_segments(tmp_path: Path) -> None:
    write(tmp_path, [tracked_conversation()])
    shown = detail(index_of(tmp_path).snapshot, 0)
    assert [message["role"] for message in shown["messages"]] == [
        "system", "user", "assistant", "tool", "tool", "assistant", "user", "assistant",
    ]  # fmt: skip
    assert [segment["kinds"] for segment in shown["segments"]] == ["sccstttscstt", "sccsrrscstt"]
    assert find(index_of(tmp_path).snapshot, Wanted(text="NO ANSWER IN 0.5")).tolist() == [0]
