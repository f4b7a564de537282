"""DeepSeek-V3.2's form: golden texts written by hand from its rules, what each retention keeps, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from samepath.model.text.conversation import Message, Role, ToolCall, ToolSchema
from samepath.model.text.encodings import dsml_text as form
from samepath.model.text.encodings.deepseek_v32 import DeepSeekV32Renderer
from samepath.model.text.encodings.results import MISSING_RESULT
from samepath.model.text.encodings.retention import Retention
from samepath.model.text.tokenizer import Tokenizer, character_tokenizer
from tests.marked_conversations import ADD, GET, KEYS, STORE, marked_tokenizer

GOLDEN = (Path(__file__).parent / "golden/deepseek_v32.txt").read_text(encoding="utf-8")
TOOLS = (GET, ADD, KEYS)
B, E, U, A = form.START, form.END, form.USER, form.ASSISTANT
TOKENIZER = marked_tokenizer()
TWO_TURNS = (
    Message(role="user", content="q"),
    Message(role="assistant", reasoning="r1", calls=(ToolCall(name="keys"),)),
    Message(role="tool", content="k"),
    Message(role="assistant", reasoning="r2", content="a"),
    Message(role="user", content="p"),
)
CALL = f'\n\n{form.CALLS_OPEN}\n<{form.DSML}invoke name="keys">\n\n{form.INVOKE_CLOSE}\n{form.CALLS_CLOSE}{E}'
RESULT = "\n\n<function_results>\n<result>k</result>\n</function_results>\n\n"


def text_of(
    messages: tuple[Message, ...],
    tools: tuple[ToolSchema, ...] = (),
    *,
    thinking: bool = True,
    retention: Retention = "v32",
    tools_first: bool = False,
) -> str:
    renderer = DeepSeekV32Renderer(TOKENIZER, thinking=thinking, retention=retention, tools_first=tools_first)
    return TOKENIZER.text(renderer.open(messages, tools).ids)


def test_open_store_is_the_golden_text() -> None:
    assert text_of(STORE, TOOLS) == GOLDEN


def test_open_ids_are_those_of_the_whole_text() -> None:
    """Merges over the seams of scaffold and content fall as in plain encoding, which the model was trained on."""
    ids = DeepSeekV32Renderer(TOKENIZER).open(STORE, TOOLS).ids
    assert ids == tuple(TOKENIZER.fast.encode(GOLDEN, add_special_tokens=False).ids)
    # Else the line above would say nothing.
    assert TOKENIZER.fast.encode("<result>17</result>").ids != [
        id_ for part in ("<result>", "17", "</result>") for id_ in TOKENIZER.fast.encode(part).ids
    ]


@pytest.mark.parametrize(
    ("retention", "first", "second"),
    [
        ("v32", ("</think>", "</think>"), "<think>"),
        ("r1", ("</think>", "</think>"), "<think>"),
        ("retain_all", ("<think>r1</think>", "<think>r2</think>"), "<think>"),
        ("v4", ("</think>", "</think>"), "<think>"),
    ],
)
def test_open_keeps_reasoning_by_retention(retention: Retention, first: tuple[str, str], second: str) -> None:
    wanted = f"{B}{U}q{A}{first[0]}{CALL}{RESULT}{first[1]}a{E}{U}p{A}{second}"
    assert text_of(TWO_TURNS, retention=retention) == wanted


def test_open_within_a_turn_keeps_reasoning_across_results_unless_r1() -> None:
    told = TWO_TURNS[:3]
    assert text_of(told) == f"{B}{U}q{A}<think>r1</think>{CALL}{RESULT}<think>"
    assert text_of(told, retention="r1") == f"{B}{U}q{A}</think>{CALL}{RESULT}<think>"
    # A finished conversation: the last message alone keeps its reasoning.
    ended = f"{B}{U}q{A}</think>{CALL}{RESULT}<think>r2</think>a{E}"
    assert text_of(TWO_TURNS[:4], retention="r1") == ended


def test_open_v4_retains_all_where_tools_are_declared() -> None:
    kept = text_of(TWO_TURNS, TOOLS, retention="v4")
    assert kept == text_of(TWO_TURNS, TOOLS, retention="retain_all") != text_of(TWO_TURNS, TOOLS)


@pytest.mark.parametrize("retention", ["v32", "r1", "retain_all"])
def test_open_in_chat_mode_has_no_reasoning(retention: Retention) -> None:
    wanted = f"{B}{U}q{A}</think>{CALL}{RESULT}</think>a{E}{U}p{A}</think>"
    assert text_of(TWO_TURNS, thinking=False, retention=retention) == wanted


def test_open_tools_stand_behind_the_first_system_message_or_before_it_or_in_an_empty_one() -> None:
    paragraph = GOLDEN[GOLDEN.index("## Tools") : GOLDEN.index("\n\n## Response")]
    user = Message(role="user", content="q")
    ask = f"{U}q{A}<think>"
    assert text_of((user,), TOOLS) == f"{B}\n\n{paragraph}{ask}"
    system = Message(role="system", content="s")
    assert text_of((system, user), TOOLS) == f"{B}s\n\n{paragraph}{ask}"
    assert text_of((system, user), TOOLS, tools_first=True) == f"{B}{paragraph}\n\ns{ask}"
    assert text_of((user,), TOOLS, tools_first=True) == f"{B}{paragraph}{ask}"
    assert text_of((replace(system, tools=TOOLS), user)) == f"{B}s\n\n{paragraph}{ask}"
    assert text_of((system, system, user), TOOLS) == f"{B}s\n\n{paragraph}s{ask}"


def test_open_developer_message_is_a_user_turn_with_tools_of_its_own() -> None:
    """Also before the last boundary, where the published program fails."""
    paragraph = GOLDEN[GOLDEN.index("## Tools") : GOLDEN.index("\n\n## Response")]
    asked = Message(role="developer", content="d", tools=TOOLS, response_format={"type": "integer"})
    form_text = GOLDEN[GOLDEN.index("## Response Format") : GOLDEN.index(U)]
    turn = f"{U}\n\n{paragraph}\n\n{form_text}\n\n# The user's message is: d{A}"
    assert text_of((asked,)) == f"{B}{turn}<think>"
    answer = Message(role="assistant", reasoning="r", content="a")
    later = Message(role="developer", content="e")
    assert text_of((asked, answer, later)) == f"{B}{turn}</think>a{E}{U}\n\n# The user's message is: e{A}<think>"
    with pytest.raises(ValueError, match="a developer message must have content"):
        text_of((Message(role="developer", tools=TOOLS),))


def test_open_last_answer_without_reasoning_closes_it_at_once() -> None:
    assert text_of((TWO_TURNS[0], Message(role="assistant", content="a"))) == f"{B}{U}q{A}<think></think>a{E}"


def test_open_calls_without_results_are_answered_for_the_tools_in_call_order() -> None:
    calls = (ToolCall(name="keys", call_id="x"), ToolCall(name="keys", call_id="y"))
    asked = (TWO_TURNS[0], Message(role="assistant", calls=calls))
    shown = text_of((*asked, Message(role="tool", content="2", call_id="y")))
    assert shown.endswith(
        f"<function_results>\n<result>{MISSING_RESULT}</result>\n<result>2</result>\n</function_results>\n\n<think>"
    )
    assert text_of((*asked, TWO_TURNS[0])).count(MISSING_RESULT) == 2
    assert text_of(asked).endswith(E)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([("z", "1")], "must name a call of the message before (x, y); got 'z'"),
        ([("x", "1"), ("x", "2")], "call 0 (keys) has two"),
        ([("x", "1"), ("y", "2"), ("", "3")], "a message with 2 calls can have as many results; got 3"),
    ],
)
def test_open_results_that_belong_to_no_call_are_refused(results: list[tuple[str, str]], message: str) -> None:
    calls = (ToolCall(name="keys", call_id="x"), ToolCall(name="keys", call_id="y"))
    told = [Message(role="tool", content=said, call_id=id_) for id_, said in results]
    with pytest.raises(ValueError) as refused:
        text_of((TWO_TURNS[0], Message(role="assistant", calls=calls), *told))
    assert message in str(refused.value)


def test_open_conversations_that_have_no_form_are_refused() -> None:
    with pytest.raises(ValueError, match="must follow the calls that it answers; message 1 does not"):
        text_of((TWO_TURNS[0], Message(role="tool", content="1")))
    for told in ((), (Message(role="system", content="s"),)):
        with pytest.raises(ValueError, match="must end with a message to be answered"):
            text_of(told)
    unknown: Role = "function"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="role must be system, user, developer, assistant, tool; got 'function'"):
        Message(role=unknown, content="")
    with pytest.raises(ValueError, match="only assistant messages have calls; got a user message"):
        Message(role="user", calls=(ToolCall(name="keys"),))
    with pytest.raises(ValueError, match="a tool must have a name"):
        ToolSchema(function={"description": "nameless"})
    for name in ("", 'a"b', "a\nb"):
        with pytest.raises(ValueError, match="must be one line without quotation marks"):
            text_of((TWO_TURNS[0], Message(role="assistant", calls=(ToolCall(name=name),))))
    with pytest.raises(ValueError, match="not JSON compliant"):
        text_of((TWO_TURNS[0], Message(role="assistant", calls=(ToolCall(name="add", arguments={"a": float("nan")}),))))
    with pytest.raises(ValueError, match="must be Unicode text"):
        text_of((Message(role="user", content="a\ud800"),))


def test_renderer_for_a_tokenizer_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="the tokenizer adds no <｜begin▁of▁sentence｜>"):
        DeepSeekV32Renderer(character_tokenizer("01"))
    other = Tokenizer(TOKENIZER.fast, U, B)
    with pytest.raises(ValueError, match="ends messages with <｜end▁of▁sentence｜>; the tokenizer with <｜User｜>"):
        DeepSeekV32Renderer(other)
