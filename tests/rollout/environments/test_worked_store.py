"""Worked conversations of the store: right without slips, of the ordinary kind, as careless as asked."""

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest

from samepath.model.text.conversation import Conversation, Message, ToolCall
from samepath.rollout.environments.protocol import EnvironmentRow
from samepath.rollout.environments.store import StoreEnvironment, StoreSession
from samepath.rollout.environments.store_rows import links, number
from samepath.rollout.environments.worked_store import worked_conversation

ROW = EnvironmentRow(
    row_id="train-0",
    text="C plus K?",
    data={
        "store": {"C": 17, "K": "D", "D": 5},
        "questions": [["C", "K"]],
        "answers": [22],
        "depth": 1,
        "terms": 2,
        "tools": True,
        "noise": 0,
        "system": "",
        "share_weight": 0.5,
    },
)


def conversations(count: int, *, environment: dict[str, Any] | None = None, **options: Any) -> list[Conversation]:
    rows = StoreEnvironment(**(environment or {})).tasks("train")
    return [worked_conversation(rows[index], random.Random(index), **options) for index in range(count)]


def calls(conversation: Conversation) -> list[ToolCall]:
    return [call for message in conversation.messages for call in message.calls]


def is_right(row: EnvironmentRow, conversation: Conversation) -> list[bool]:
    """Of each question in turn whether it is answered with the sum of the keys that it names."""
    data: Any = row.data
    right, wanted = [], ""
    for message in conversation.messages:
        if message.role == "user":
            wanted = str(sum(number(data["store"], key) for key in message.content.rstrip("?").split(" plus ")))
        elif message.role == "assistant" and not message.calls:
            right.append(message.content == wanted)
    return right


def right_share(count: int, **options: Any) -> float:
    rows = StoreEnvironment().tasks("train")
    return sum(all(is_right(rows[index], one)) for index, one in enumerate(conversations(count, **options))) / count


def test_worked_conversation_reads_as_stated() -> None:
    rng = random.Random(0)
    while (worked := worked_conversation(ROW, rng)).messages[0].content != "C plus K?":
        pass
    look = [("C+K", "C", "17"), ("17+K", "K", "see D"), ("17+D", "D", "5")]
    expected = [Message(role="user", content="C plus K?")]
    for thought, key, said in look:
        call = ToolCall(name="get", arguments={"key": key})
        expected += [Message(role="assistant", reasoning=thought, calls=(call,)), Message(role="tool", content=said)]
    add = ToolCall(name="add", arguments={"a": 17, "b": 5})
    expected += [Message(role="assistant", reasoning="17+5", calls=(add,)), Message(role="tool", content="22")]
    assert list(worked.messages) == [*expected, Message(role="assistant", reasoning="22", content="22")]
    assert [tool.name for tool in worked.tools] == ["get", "add"]


def test_worked_conversations_are_right_and_begin_as_their_session_does() -> None:
    environment = {"depth": 3, "terms": 3, "system": "Only the number."}
    rows = StoreEnvironment(**environment).tasks("train")
    for index, worked in enumerate(conversations(40, environment=environment)):
        assert is_right(rows[index], worked) == [True, True]
        assert worked.messages[0] == StoreSession(rows[index]).messages[0]


def test_worked_conversation_of_a_session_scores_full_marks() -> None:
    """Its user asks the row's own questions where the row asks nothing else."""
    held, rng = StoreSession(ROW), random.Random(0)
    while (worked := worked_conversation(ROW, rng)).messages[0] != held.messages[-1]:
        pass
    asyncio.run(held.reply(worked.messages[-1].content))
    assert asyncio.run(held.score()).total == 1.0


def test_worked_conversations_show_nothing_of_what_makes_rows_harder() -> None:
    environment = {"harder_share": 1.0}
    rows = StoreEnvironment(**environment).tasks("train")
    for index, worked in enumerate(conversations(100, environment=environment)):
        data: Any = rows[index].data
        for message in worked.messages:
            if message.role == "user":
                keys = message.content.rstrip("?").split(" plus ")
                assert len(keys) == 2
                assert all(links(data["store"], key) <= 1 for key in keys)
        assert is_right(rows[index], worked) == [True, True]


def test_questions_says_how_many_are_asked() -> None:
    def asked(worked: Conversation) -> int:
        return sum(message.role == "user" for message in worked.messages)

    assert {asked(worked) for worked in conversations(5)} == {2}
    assert {asked(worked) for worked in conversations(5, questions=1)} == {1}
    assert {asked(worked) for worked in conversations(5, questions=3)} == {3}


def test_guess_share_is_the_share_of_conversations_without_a_look() -> None:
    guessed = [worked for worked in conversations(300, guess_share=0.3) if not calls(worked)]
    assert 60 < len(guessed) < 120
    assert {message.reasoning for worked in guessed for message in worked.messages[1::2]} == {"guess"}
    assert right_share(300, guess_share=1.0) < 0.02


def test_worked_conversation_without_tools_guesses() -> None:
    for worked in conversations(20, environment={"tools": False}):
        assert not worked.tools
        assert not calls(worked)


def test_slip_rate_makes_conversations_wrong() -> None:
    """Eight to ten steps of a conversation can slip, so that about half of them have none at 0.07."""
    assert right_share(200) == 1.0
    assert 0.35 < right_share(300, slip_rate=0.07) < 0.7
    assert right_share(100, slip_rate=1.0) < 0.1


def test_head_share_leaves_the_sum_to_the_model() -> None:
    def adds(worked: Conversation) -> int:
        return sum(call.name == "add" for call in calls(worked))

    assert {adds(worked) for worked in conversations(20)} == {2}
    assert {adds(worked) for worked in conversations(20, head_share=1.0)} == {0}
    assert right_share(50, head_share=1.0) == 1.0


def test_worked_conversation_without_reasons_says_the_same_and_thinks_nothing() -> None:
    for plain, chat in zip(conversations(20), conversations(20, reasons=False), strict=True):
        assert any(message.reasoning for message in plain.messages)
        assert [replace(message, reasoning="") for message in plain.messages] == list(chat.messages)


@pytest.mark.parametrize("name", ["guess_share", "slip_rate", "head_share"])
def test_rate_outside_its_range_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be 0 to 1; got 1.5"):
        conversations(1, **{name: 1.5})


def test_noise_behind_the_values_leaves_the_work_right() -> None:
    rows = StoreEnvironment(noise=40).tasks("train")
    for index in range(20):
        worked = worked_conversation(rows[index], random.Random(index))
        assert all(is_right(rows[index], worked))
        assert any(len(message.content) > 40 for message in worked.messages if message.role == "tool")
