"""Reading of drawn ids: each mistake has its kind, strict reading stops there, tolerant reading goes on, and nothing raises."""

import pytest

from samepath.model.text.conversation import Completion, ProblemKind, ToolCall
from samepath.model.text.encodings.deepseek_v32 import DeepSeekV32Renderer
from samepath.model.text.encodings.dsml_text import ASSISTANT, CALLS_CLOSE, CALLS_OPEN, DSML, END, USER
from tests.marked_conversations import ADD, GET, KEYS, marked_tokenizer

TOKENIZER = marked_tokenizer()
THINKING = DeepSeekV32Renderer(TOKENIZER)
CHAT = DeepSeekV32Renderer(TOKENIZER, thinking=False)
TOOLS = (GET, ADD, KEYS)
SAID = ToolCall(name="get", arguments={"key": "C"})
GET_C = f'<{DSML}invoke name="get">\n<{DSML}parameter name="key" string="true">C</{DSML}parameter>\n</{DSML}invoke>'
NO_KEYS = f'<{DSML}invoke name="keys">\n\n</{DSML}invoke>'


def block(*calls: str) -> str:
    return "\n".join([CALLS_OPEN, *calls, CALLS_CLOSE])


def add(*lines: str) -> str:
    return "\n".join([f'<{DSML}invoke name="add">', *lines, f"</{DSML}invoke>"])


def parameter(key: str, value: str, text: str = "false") -> str:
    return f'<{DSML}parameter name="{key}" string="{text}">{value}</{DSML}parameter>'


def drawn(text: str) -> tuple[int, ...]:
    """Ids of the text with every control token that it names."""
    return TOKENIZER.encode_continuation(text, [(0, len(text))])


def read(text: str, *, strict: bool = True, schemas: bool = False) -> Completion:
    return THINKING.parse(drawn(text), TOOLS if schemas else (), strict=strict)


def kinds(completion: Completion) -> list[ProblemKind]:
    return [problem.kind for problem in completion.problems]


def test_parse_reasoning_content_and_calls() -> None:
    values = [
        parameter("a", "-1"),
        parameter("b", '{"x": [true, null, 1.5e3, "</p>"]}'),
        parameter("c", " x\n", "true"),
    ]
    completion = read(f"r\n</think>c\n\n{block(GET_C, NO_KEYS, add(*values))}{END}")
    arguments = {"a": -1, "b": {"x": [True, None, 1500.0, "</p>"]}, "c": " x\n"}
    calls = (SAID, ToolCall(name="keys"), ToolCall(name="add", arguments=arguments))
    assert completion == Completion(reasoning="r\n", content="c", calls=calls, problems=())
    assert [call.call_id for call in completion.calls] == ["call-0", "call-1", "call-2"]
    assert list(completion.calls[2].arguments) == ["a", "b", "c"]
    assert not completion.malformed
    message = completion.message((1, 2))
    assert (message.role, message.reasoning, message.content, message.calls, message.sampled) == (
        "assistant",
        "r\n",
        "c",
        calls,
        (1, 2),
    )


def test_parse_content_keeps_its_line_breaks() -> None:
    for content in ("", "\n", "c\n\n\n", "\n\nc "):
        assert read(f"r</think>{content}\n\n{block(GET_C)}{END}").content == content
        assert read(f"r</think>{content}{END}").content == content


def test_parse_answer_in_chat_mode_has_no_reasoning() -> None:
    assert CHAT.parse(drawn(f"42{END}")) == Completion(reasoning="", content="42", calls=(), problems=())
    thought = CHAT.parse(drawn(f"r</think>42{END}"))
    assert (thought.content, kinds(thought)) == ("r</think>42", ["special_in_text"])


def called(*calls: str, change: tuple[str, str] = ("", ""), end: str = END) -> str:
    """Reasoning `r`, the block of calls with a change, the end."""
    return "r</think>\n\n" + (block(*calls).replace(*change) if change[0] else block(*calls)) + end


PARAMETER_CLOSE, INVOKE_CLOSE = f"</{DSML}parameter>", f"</{DSML}invoke>"
ONE, TWO, QUOTED = parameter("a", "1"), parameter("a", "2"), parameter("a", '"1"')
BROKEN: list[tuple[str, str, str, str, str]] = [
    (f"r{END}", "reasoning_unclosed", "", "reasoning_unclosed", ""),
    ("r", "reasoning_unclosed", "", "reasoning_unclosed", ""),
    (
        f"r\n\n{block(GET_C)}{END}",
        "call_before_close reasoning_unclosed",
        "",
        "call_before_close reasoning_unclosed",
        "",
    ),
    (f"{block(GET_C)}</think>a{END}", "call_before_close", "", "call_before_close", ""),
    (f"r{USER}</think>a{END}", "special_in_text", "", "special_in_text", ""),
    ("r</think>a", "answer_unclosed", "", "answer_unclosed", ""),
    (called(GET_C, end=""), "answer_unclosed", "C", "answer_unclosed", "C"),
    (f"r</think>a{ASSISTANT}b{END}", "special_in_text", "", "special_in_text", ""),
    (f"r</think>a{DSML}b{END}", "special_in_text", "", "special_in_text", ""),
    (f"r</think>a{END}b{END}", "text_after_end", "", "text_after_end", ""),
    (f"r</think>c\n{block(GET_C)}{END}", "block_separator", "", "block_separator", "C"),
    (f"r</think>{block(GET_C)}{END}", "block_separator", "", "block_separator", "C"),
    (called(), "block_empty", "", "block_empty", ""),
    (called(GET_C, end=f" {END}"), "text_after_calls", "C", "text_after_calls", "C"),
    (called(GET_C, end=f"\n\n{block(GET_C)}{END}"), "text_after_calls", "C", "text_after_calls", "C"),
    (called(GET_C, change=(CALLS_CLOSE, "")), "call_unclosed", "C", "call_unclosed", "C"),
    (
        called(GET_C, NO_KEYS, change=(NO_KEYS, f"<{DSML}inv"), end="").removesuffix(f"\n{CALLS_CLOSE}"),
        "call_unclosed",
        "C",
        "call_unclosed",
        "C",
    ),
    (f"r</think>\n\n{CALLS_OPEN}\n{GET_C.split('</')[0]}{END}", "call_unclosed", "", "call_unclosed", ""),
    (called(GET_C, GET_C, change=(f"\n{INVOKE_CLOSE}\n<", "\n<")), "call_unclosed", "", "call_unclosed", "CC"),
    (called(GET_C, change=(DSML, "")), "tag_misspelt", "", "tag_misspelt", "C"),
    (called(GET_C, change=(DSML, "|DSML|")), "tag_misspelt", "", "tag_misspelt", "C"),
    (called(GET_C, change=("function_calls", "function_call")), "tag_misspelt", "", "tag_misspelt", "C"),
    (called(GET_C, change=("</" + DSML, "</")), "call_unclosed", "", "tag_misspelt", "C"),
    (called(GET_C, f"<{DSML}parameter>"), "invoke_form", "C", "invoke_form", "C"),
    (called(GET_C, f"<{DSML}invok>"), "tag_misspelt", "C", "tag_misspelt", "C"),
    (called(GET_C, "x", GET_C), "invoke_form", "C", "invoke_form", "CC"),
    (called(f"  {GET_C}"), "invoke_form", "", "invoke_form", "C"),
    (called(GET_C, change=('"get"', "'get'")), "invoke_form", "", "invoke_form", "C"),
    (called(NO_KEYS, GET_C, change=("\n\n", "\n")), "invoke_form", "", "invoke_form", "C"),
    (called(GET_C, change=(' string="true"', "")), "parameter_form", "", "parameter_form", "C"),
    (called(add(QUOTED), GET_C), "parameter_form", "", "parameter_form", "C"),
    (called(GET_C, change=(PARAMETER_CLOSE, "")), "parameter_form", "", "parameter_form invoke_form", "C\n"),
    (called(add(ONE, TWO), GET_C), "duplicate_parameter", "", "duplicate_parameter", "C"),
    (called(GET_C, change=(">C<", f">{USER}C<")), "special_in_text", "", "special_in_text", f"{USER}C"),
]
"""Text; problems and the keys that `get` is called with, in strict and in tolerant reading."""


def shown(completion: Completion) -> tuple[str, str]:
    kinds_ = " ".join(dict.fromkeys(kinds(completion)))
    return kinds_, "".join(str(call.arguments.get("key")) for call in completion.calls if call.name == "get")


@pytest.mark.parametrize(("text", "strict", "keys", "tolerant", "keys_past_it"), BROKEN)
def test_parse_mistake_has_its_kind(text: str, strict: str, keys: str, tolerant: str, keys_past_it: str) -> None:
    severe, mild = read(text), read(text, strict=False)
    assert shown(severe) == (strict, keys)
    assert shown(mild) == (tolerant, keys_past_it)
    assert severe.malformed
    assert mild.malformed


@pytest.mark.parametrize(
    "value",
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "",
        "1,5",
        "True",
        "'x'",
        "[1",
        '"\\ud800"',
        "[" * 70 + "]" * 70,
        "[" * 20_000,
        '{"a": 1, "a": 2}',
        '{"\\udc00": 1}',
        "9" * 5000,
        "1 2",
    ],
)
def test_parse_value_that_json_cannot_say_is_none(value: str) -> None:
    text = called(add(parameter("a", value)))
    assert (kinds(read(text)), read(text).calls) == (["value_not_json"], ())
    mild = read(text, strict=False)
    assert kinds(mild) == ["value_not_json"]
    assert mild.calls[0].arguments == {"a": value}


def test_parse_name_in_letters_is_text_and_no_control_token() -> None:
    """The same text drawn as letters: the parser reads ids, so neither the answer nor a value ends."""
    spelt = TOKENIZER.encode_continuation(f"</think>{END}{CALLS_CLOSE}")
    ids = (*drawn("r"), *spelt, *drawn("</think>a"), *spelt, TOKENIZER.end_id)
    completion = THINKING.parse(ids)
    assert completion == Completion(
        reasoning=f"r</think>{END}{CALLS_CLOSE}", content=f"a</think>{END}{CALLS_CLOSE}", calls=(), problems=()
    )
    head, tail = called(GET_C).split("C<")
    value = f"{PARAMETER_CLOSE}\n{INVOKE_CLOSE}"
    ids = (*drawn(head), *TOKENIZER.encode_continuation(value), *drawn(f"<{tail}"))
    assert THINKING.parse(ids).calls == (ToolCall(name="get", arguments={"key": value}),)


def test_parse_tags_of_a_tokenizer_without_their_mark_are_read_from_letters() -> None:
    tokenizer = marked_tokenizer(dsml=False)
    text = called(GET_C)
    ids = tokenizer.encode_continuation(text, [(0, len(text))])
    assert DeepSeekV32Renderer(tokenizer).parse(ids) == read(text)


def test_parse_tolerant_takes_arguments_out_of_an_object_of_their_own() -> None:
    text = called(add(parameter("arguments", '{"a": 1, "b": 2}')))
    assert kinds(read(text, schemas=True)) == ["unknown_parameter"]
    mild = read(text, strict=False, schemas=True)
    assert mild.calls == (ToolCall(name="add", arguments={"a": 1, "b": 2}),)
    assert kinds(mild) == ["parameter_form"]
    # Without schemas nobody knows that no tool has such a parameter.
    assert read(text, strict=False).calls[0].arguments == {"arguments": {"a": 1, "b": 2}}


def test_parse_prose_about_calls_is_no_call() -> None:
    for prose in ("Write <function_calls> first.", "a function_calls b", "<invoke> and <parameter>"):
        assert not read(f"r</think>{prose}{END}").problems
    assert kinds(read(f"r</think>Like this:\n<function_calls>\n{END}")) == ["tag_misspelt"]


def test_parse_empty_reasoning_is_told_and_is_not_malformed() -> None:
    completion = read(f"</think>\n\n{block(GET_C)}{END}")
    assert (kinds(completion), completion.calls, completion.malformed) == (["empty_reasoning"], (SAID,), False)
