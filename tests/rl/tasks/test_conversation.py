"""Conversations in a table's column: what the model is asked, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from samepath.model.text.chat import ChatForm
from samepath.model.text.conversation import Message
from samepath.rl.recipe.prompt import ChatSettings
from samepath.rl.recipe.task import FileTask, HubTask
from samepath.rl.tasks.conversation import conversation
from samepath.rl.tasks.row import Task, TaskError
from samepath.rl.tasks.tasks import build_task
from tests.rl.tasks.test_requests import chatty

CHAT = ChatSettings(enabled=True)
SYSTEM, USER, ANSWER = ({"role": role, "content": role[0]} for role in ("system", "user", "assistant"))
SETTINGS: dict[str, Any] = {"chat": CHAT, "held_out_fraction": 0.5, "template": "{question}+1"}


def rows(column: str) -> list[dict[str, Any]]:
    """Twenty rows that end with the same question; what comes before tells them apart."""
    before = [
        [{"role": "system", "content": "7"}, {"role": "user", "content": str(i)}, {"role": "assistant", "content": "8"}]
        for i in range(20)
    ]
    return [{column: [*given, {"role": "user", "content": "9"}], "answer": 10} for given in before]


def checked(task: Task) -> None:
    """Every row is there, asks the last message, and becomes the whole conversation."""
    found = sorted([*task.train, *task.held_out], key=lambda row: int(row.earlier[1].content))
    assert [int(row.earlier[1].content) for row in found] == list(range(20))
    assert len(task.held_out) > 2
    for i, row in enumerate(found):
        assert (row.question, row.text, row.written) == ("9", "9+1", ((1, 3),))
        assert row.earlier == (
            Message(role="system", content="7"),
            Message(role="user", content=str(i)),
            Message(role="assistant", content="8"),
        )
        tokenizer = chatty()
        assert row.encode(tokenizer) == (0, *tokenizer.encode_continuation(f"7#{i}8#9+1="))


@pytest.mark.parametrize("column", ["messages", "prompt"])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_build_file_conversations_are_read(tmp_path: Path, column: str, suffix: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(column)))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(column)), path)
    checked(build_task(FileTask(path=path.name, columns={"prompt": column}, **SETTINGS), tmp_path))


def test_build_hub_conversations_are_read(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows("messages")))
    checked(build_task(HubTask(path="set", held_out_split="", columns={"prompt": "messages"}, **SETTINGS), tmp_path))


def test_conversation_text_stays_text_and_empty_values_are_none() -> None:
    assert conversation("1+1", ChatSettings(), "here") == ("1+1", ())
    assert conversation([{**SYSTEM, "name": None}, {**USER, "tool_calls": None}], CHAT, "here") == (
        "u",
        (Message(role="system", content="s"),),
    )


@pytest.mark.parametrize(
    ("value", "chat", "message"),
    [
        (7, CHAT, "here must be text or a list of messages"),
        ([], CHAT, "here must be text or a list of messages"),
        (["a"], CHAT, "here, message 0 must be an object of role and content"),
        ([USER], ChatSettings(), "here holds messages.*task.chat.enabled"),
        ([{"role": "user"}], CHAT, "message 0 must be an object of role and content"),
        ([{"role": "user", "content": [{"type": "text"}]}], CHAT, "message 0 must be an object"),
        ([{**USER, "tool_calls": "x"}], CHAT, "message 0 must be an object"),
        ([{"role": "human", "content": "a"}], CHAT, "message 0: role must be system, user, assistant; got 'human'"),
        ([USER, {"role": "<|im_end|>", "content": "a"}, USER], CHAT, "message 1: role must be"),
        ([{"role": "user", "content": "\ud800"}], CHAT, "content must be Unicode text"),
        ([USER, SYSTEM, USER], CHAT, "a system message at its head only"),
        ([SYSTEM, SYSTEM, USER], CHAT, "a system message at its head only"),
        ([USER, ANSWER], CHAT, "must end with the user's message.*the assistant's"),
        ([SYSTEM], CHAT, "must end with the user's message.*the system's"),
        ([SYSTEM, USER], ChatSettings(enabled=True, system="7"), "task.chat.system gives another"),
    ],
)
def test_conversation_bad_one_is_refused(value: object, chat: ChatSettings, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        conversation(value, chat, "here")


def test_row_canonical_text_of_equal_conversations_is_equal(tmp_path: Path) -> None:
    """Equal last messages after different ones ask different things; blanks do not count."""
    given = [[USER, ANSWER, {"role": "user", "content": text}] for text in ("9", " 9 ")] + [[USER]]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"messages": one, "answer": 1, "id": str(i)}) + "\n" for i, one in enumerate(given))
    )
    (tmp_path / "held.jsonl").write_text(json.dumps({"messages": given[0], "answer": 1, "id": "h"}) + "\n")
    task = build_task(
        FileTask(path="rows.jsonl", held_out_path="held.jsonl", columns={"prompt": "messages", "id": "id"}, chat=CHAT),
        tmp_path,
    )
    assert [row.row_id for row in task.train] == ["train-2"]
    assert task.dropped_overlap == 2
    assert task.train[0].chat == ChatForm()
