"""What a terminal shows of a conversation: messages, results beside their calls, and each token by who made it."""

from dataclasses import replace

from rich.text import Text

from samepath.model.text.conversation import Message, ToolCall
from samepath.rewards.score import Score
from samepath.rl.report.conversation_text import STYLES, conversation_text
from samepath.rollout.segments import as_call, joined_segments
from samepath.rollout.types import Rollout, ToolRecord
from tests.conftest import ALPHABET, character_tokenizer
from tests.conversations import drawn_call
from tests.rl.sampled import rollout

TOKENIZER = character_tokenizer(ALPHABET)


def conversation() -> Rollout:
    """Two messages of the model with a tool between them; then the question again, in a new epoch."""
    calls = [
        as_call(drawn_call([2, 3], [4, 5]), index=0, epoch=0, kinds=["scaffold", "content"]),
        as_call(
            drawn_call([2, 3, 4, 5, 6, 2], [7]),
            index=1, epoch=0, kinds=["scaffold", "content", "sampled", "sampled", "content", "scaffold"],
        ),
        as_call(drawn_call([2, 5, 8], [9, 4]), index=2, epoch=1, kind="edit", kinds=["scaffold", "sampled", "content"]),
    ]  # fmt: skip
    messages = (
        Message(role="tool", content="an example"),
        Message(role="user", content="C\x1b[31m?\x9b\x00\n\té"),
        Message(
            role="assistant", reasoning="so", calls=(ToolCall(name="get", arguments={"key": "ü"}),), sampled=(4, 5)
        ),
        Message(role="tool", content="17"),
        Message(role="assistant", content="17", sampled=(7,)),
    )
    record = ToolRecord(turn=0, name="get", arguments={"key": "ü"}, text="17", error="timeout", seconds=0.25)
    return replace(
        rollout("a", 0),
        segments=joined_segments(calls, exact=True),
        messages=messages,
        tool_calls=(record,),
        problems=("unknown_tool",),
        ended="turns",
        environment_score=Score(total=0.5, parts={"right": 0.5}),
    )


def lines(*, ids: bool = False) -> list[Text]:
    return list(conversation_text(conversation(), TOKENIZER, ids=ids))


def test_messages_stand_in_order_and_a_result_names_its_call() -> None:
    assert [line.plain for line in lines()[:10]] == [
        "tool", "an example", "user", "C␛[31m?�␀\n\té", "assistant", "so", 'get {"key": "ü"}', "tool get, 0.25 s, timeout", "17", "assistant",
    ]  # fmt: skip
    assert lines()[11].plain == "ended by turns, score 0.5, problems: unknown_tool, 5 tokens drawn"


def test_short_times_are_said_in_milliseconds() -> None:
    made = conversation()
    shown = conversation_text(
        replace(made, tool_calls=(replace(made.tool_calls[0], seconds=0.000145),)), TOKENIZER, ids=False
    )
    assert "tool get, 0.145 ms, timeout" in [line.plain for line in shown]


def test_tokens_stand_in_runs_of_one_kind_in_its_colour() -> None:
    two, *_, nine = (repr(text) for text in TOKENIZER.token_texts(list(range(2, 10))))
    shown = lines()[12:]
    assert [line.plain.split()[:2] for line in shown if not line.plain.startswith("segment")] == [
        ["scaffold", two], ["content", repr(TOKENIZER.token_texts([3])[0])], ["trained", repr(TOKENIZER.token_texts([4])[0])],
        ["content", repr(TOKENIZER.token_texts([6])[0])], ["scaffold", two], ["trained", repr(TOKENIZER.token_texts([7])[0])],
        ["scaffold", two], ["read", "again"], ["content", repr(TOKENIZER.token_texts([8])[0])], ["trained", nine],
    ]  # fmt: skip
    heads = [line.plain for line in shown if line.plain.startswith("segment")]
    assert heads == [
        "segment 1, epoch 0: 7 tokens, 3 trained, calls 0, 1",
        "segment 2, epoch 1: 5 tokens, 2 trained, calls 2 (edit)",
    ]
    styles = [line.spans[-1].style for line in shown if not line.plain.startswith("segment")]
    assert styles[:3] == [STYLES["scaffold"], STYLES["content"], STYLES["trained"]]
    assert styles[7] == STYLES["sampled"]
    assert len(set(STYLES.values())) == 4


def test_ids_are_shown_where_they_are_asked_for() -> None:
    first, second = TOKENIZER.token_texts([4, 5])
    assert f"{first!r}:4 {second!r}:5" in [line.plain.strip().partition("  ")[2] for line in lines(ids=True)]
    assert f"{first!r} {second!r}" in [line.plain.strip().partition("  ")[2] for line in lines()]
