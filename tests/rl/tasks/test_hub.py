"""Hub datasets: from a local folder, from a cache laid out as the hub client leaves it, and every refusal."""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from samepath.rl.recipe.task import HubTask
from samepath.rl.tasks.hub_folder import HubUnreachableError, hub_folder
from samepath.rl.tasks.row import Task, TaskError
from samepath.rl.tasks.tasks import build_task

GSM = {"answer_rewrite": {"match": r"#### (\S+)", "template": "{1}", "remove": [","]}}
CARD = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train-*}
  - {split: test, path: main/test-*}
- config_name: socratic
  data_files:
  - {split: train, path: socratic/train-*}
---
"""


def entries(split: str, count: int) -> list[dict[str, Any]]:
    return [
        {
            "question": f"{split} {i}?",
            "answer": f"{i} and 1 are <<{i}+1={i + 1}>>{i + 1}.\n#### {i + 1},000",
            "level": i,
        }
        for i in range(count)
    ]


@pytest.fixture
def gsm(tmp_path: Path) -> Path:
    """A folder as the hub has it: two configurations, Parquet files by split."""
    folder = tmp_path / "gsm8k"
    for config, splits in (("main", ("train", "test")), ("socratic", ("train",))):
        (folder / config).mkdir(parents=True)
        for split in splits:
            table = pyarrow.Table.from_pylist(entries(split, 6))
            pyarrow.parquet.write_table(table, folder / config / f"{split}-00000-of-00001.parquet")
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache is an empty folder and no address resolves."""
    from huggingface_hub import constants

    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def build(folder: Path, **more: Any) -> Task:
    pytest.importorskip("datasets")
    return build_task(HubTask.model_validate({"path": folder.name, "config": "main", **GSM, **more}), folder.parent)


def test_build_hub_rows_carry_question_and_the_answer_cut_out(gsm: Path) -> None:
    task = build(gsm, columns={"extra": ["level"]}, template="{question} Think.")
    row = task.train[3]
    assert (row.question, row.text, row.answer["answer"]) == ("train 3?", "train 3? Think.", "4000")
    assert row.answer["entry"]["level"] == 3
    assert row.answer["entry"]["answer"].endswith("#### 4,000")
    assert [one.row_id for one in task.held_out] == [f"held-out-{i}" for i in range(6)]
    assert (task.name, row.dataset, len(task.train)) == ("gsm8k", "gsm8k", 6)


def test_build_hub_max_held_out_takes_the_first(gsm: Path) -> None:
    assert [row.text for row in build(gsm, max_held_out=2).held_out] == ["test 0?", "test 1?"]


def test_build_hub_part_of_the_training_split_is_held_out(gsm: Path) -> None:
    task = build(gsm, config="socratic", held_out_split="", held_out_fraction=0.5)
    assert len(task.train) + len(task.held_out) == 6
    assert not {row.text for row in task.train} & {row.text for row in task.held_out}


def test_build_hub_parts_of_one_split_are_kept_apart(gsm: Path) -> None:
    task = build(gsm, config="socratic", train_split="train[2:]", held_out_split="train[:3]")
    assert [row.text for row in task.held_out] == ["train 0?", "train 1?", "train 2?"]
    assert ([row.text for row in task.train], task.dropped_overlap) == (["train 3?", "train 4?", "train 5?"], 1)


def test_build_hub_jsonl_files_are_read_like_parquet(gsm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lines"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in entries(split, 6)))
    lines, whole = build(folder, config=""), build(gsm)
    assert [row.text for row in lines.train] == [row.text for row in whole.train]
    assert [row.answer["answer"] for row in lines.held_out] == [row.answer["answer"] for row in whole.held_out]


def test_build_hub_name_in_the_cache_needs_no_network(gsm: Path, offline: Path) -> None:
    repository = offline / "datasets--openai--gsm8k"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    gsm.rename(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    pytest.importorskip("datasets")
    task = build_task(HubTask.model_validate({"path": "openai/gsm8k", "config": "main", **GSM}), offline)
    assert (len(task.train), task.name) == (6, "gsm8k")


def test_build_hub_name_offline_and_not_cached_says_what_to_do(offline: Path) -> None:
    with pytest.raises(HubUnreachableError) as caught:
        build_task(HubTask(path="openai/gsm8k", config="main"), offline)
    for words in ("not in the hub's cache", "`hf download openai/gsm8k --repo-type dataset`", "path of a local copy"):
        assert words in str(caught.value)


def test_hub_folder_model_says_its_own_command_and_revision(offline: Path) -> None:
    with pytest.raises(
        HubUnreachableError, match=r"model Qwen/Qwen3-30B-A3B \(revision v2\).*`hf download Qwen/Qwen3-30B-A3B`"
    ):
        hub_folder("Qwen/Qwen3-30B-A3B", "model", ["*.json"], "v2")


def test_hub_folder_impossible_name_is_refused(offline: Path) -> None:
    with pytest.raises(ValueError, match="no name of a dataset"):
        hub_folder("a/b/c", "dataset", ["*"])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"config": "mian"}, "got 'mian'; did you mean main?; there are: main, socratic"),
        ({"config": ""}, "task.config must be one that gsm8k has; got ''"),
        ({"train_split": "trian"}, "gsm8k has no split 'trian'; did you mean train?; there are: train, test"),
        ({"config": "socratic"}, "gsm8k has no split 'test'"),
        ({"columns": {"prompt": "Question"}}, "gsm8k train: no column 'Question'; did you mean question?"),
        (
            {"answer_rewrite": {"match": r"= (\d+)$"}},
            r"gsm8k train row 0: answer_rewrite.match '= (\\d+)$' must match every row",
        ),
        ({"answer_rewrite": {"match": "#### ", "remove": ["#### "]}}, "row 0: the gold answer must not be empty"),
    ],
)
def test_build_hub_what_does_not_fit_is_named(gsm: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(TaskError) as caught:
        build(gsm, **more)
    assert said in str(caught.value)


def test_build_hub_without_the_package_names_the_extra(gsm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TaskError, match=r"pip install samepath\[hub\]"):
        build_task(HubTask(path="gsm8k", config="main"), gsm.parent)
