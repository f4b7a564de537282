"""The store as a conversation: its user, its tools and its score."""

import asyncio
from typing import Any

import pytest

from samepath.model.text.conversation import Message
from samepath.rollout.environments.protocol import EnvironmentRow, ToolResult
from samepath.rollout.environments.store import StoreEnvironment, StoreSession, is_right

ROW = EnvironmentRow(
    row_id="train-0",
    text="C plus K? then A plus D?",
    data={
        "store": {"A": 40, "C": 17, "D": 5, "K": "D"},
        "questions": [["C", "K"], ["A", "D"]],
        "answers": [22, 45],
        "tools": True,
        "noise": 0,
        "system": "",
        "share_weight": 0.25,
    },
)


def session(**data: Any) -> StoreSession:
    """A session on the row above with some of its data otherwise."""
    row = EnvironmentRow(row_id="train-0", text=ROW.text, data={**ROW.data, **data})
    return asyncio.run(StoreEnvironment().start(row, seed=1))


def called(held: StoreSession, name: str, /, **arguments: Any) -> ToolResult:
    return asyncio.run(held.call(name, arguments, deadline_s=1.0))


def test_user_asks_the_questions_one_after_the_other_and_ends() -> None:
    held = session()
    assert list(held.messages) == [Message(role="user", content="C plus K?")]
    assert asyncio.run(held.reply("no idea")) == Message(role="user", content="A plus D?")
    assert asyncio.run(held.reply("45")) is None
    asyncio.run(held.close())


def test_system_text_stands_first_where_there_is_one() -> None:
    (row,) = StoreEnvironment(system="Only the number.", num_train=1).tasks("train")
    first, second = StoreSession(row).messages
    assert (first.role, first.content, second.role) == ("system", "Only the number.", "user")


def test_get_gives_a_number_or_the_key_to_look_at() -> None:
    held = session()
    assert [called(held, "get", key=key).text for key in "CKD"] == ["17", "see D", "5"]


def test_noise_stands_behind_the_value_the_same_each_time() -> None:
    (row,) = StoreEnvironment(noise=30, num_train=1).tasks("train")
    held = StoreSession(row)
    store: Any = row.data["store"]
    texts = {key: called(held, "get", key=key).text for key in store}
    for key, text in texts.items():
        value, _, noise = text.rpartition(" ")
        assert value == (str(store[key]) if isinstance(store[key], int) else f"see {store[key]}")
        assert len(noise) == 30
        assert noise.isalpha()
    assert len({text.rpartition(" ")[2] for text in texts.values()}) == len(store)
    assert called(StoreSession(row), "get", key="A").text == texts["A"]


def test_add_gives_the_sum() -> None:
    assert called(session(), "add", a=-3, b=20) == ToolResult(text="17")


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("get", {"key": "Z"}, "there is no key Z"),
        ("get", {"key": 3}, "there is no key 3"),
        ("get", {"name": "C"}, "there is no get(name)"),
        ("add", {"a": 1}, "there is no add(a)"),
        ("add", {"a": 1, "b": "2"}, "a and b must be whole and at most 1000000000"),
        ("add", {"a": True, "b": 2}, "a and b must be whole and at most 1000000000"),
        ("add", {"a": 1, "b": 10**9 + 1}, "a and b must be whole and at most 1000000000"),
        ("add", {"a": 1, "b": -(10**5000)}, "a and b must be whole and at most 1000000000"),
        ("put", {}, "there is no put()"),
    ],
)
def test_call_that_no_tool_takes_is_the_models_error(name: str, arguments: dict[str, Any], text: str) -> None:
    assert called(session(), name, **arguments) == ToolResult(text=text, error="bad_arguments")


def test_without_tools_nothing_is_offered_and_nothing_is_looked_up() -> None:
    (row,) = StoreEnvironment(tools=False, num_train=1).tasks("train")
    held = StoreSession(row)
    assert not held.tools
    assert called(held, "get", key="A").error == "bad_arguments"
    assert called(held, "add", a=1, b=1).error == "bad_arguments"
    assert [tool.name for tool in session().tools] == ["get", "add"]


@pytest.mark.parametrize(
    ("answers", "right", "share", "total"),
    [
        (["22", "45"], 1.0, 1.0, 1.0),
        (["22", "46"], 0.0, 0.5, 0.125),
        (["0", "45"], 0.0, 0.5, 0.125),
        (["22"], 0.0, 0.5, 0.125),
        ([], 0.0, 0.0, 0.0),
    ],
)
def test_score_is_whether_all_and_how_many_answers_are_right(
    answers: list[str], right: float, share: float, total: float
) -> None:
    held = session()
    for answer in answers:
        asyncio.run(held.reply(answer))
    score = asyncio.run(held.score())
    assert score.total == total
    assert list(score.parts.items()) == [("right", right), ("share", share)], "accuracy is measured by the first part"


def test_share_weight_of_the_options_is_in_the_score() -> None:
    (row,) = StoreEnvironment(share_weight=1.0, num_train=1).tasks("train")
    held, data = StoreSession(row), dict[str, Any](row.data)
    asyncio.run(held.reply(str(data["answers"][0])))
    assert asyncio.run(held.score()).total == 0.5


@pytest.mark.parametrize(
    ("answer", "right"),
    [("22", True), (" 22\n", True), ("22.", False), ("022", False), ("It is 22", False), ("2 2", False), ("", False)],
)
def test_is_right_takes_the_number_and_nothing_else(answer: str, right: bool) -> None:
    assert is_right(answer, 22) is right
