"""Reading of calls in the Hermes form: each mistake has its kind, strict reading stops there, nothing raises."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samepath.model.text.conversation import Completion, ToolCall
from samepath.model.text.encodings.hermes_parser import HermesParser
from tests.marked_conversations import GET
from tests.model.text.encodings.test_template import END, KEEPS, SMALL, START

PARSE = HermesParser(KEEPS, opening="free")
C = '<tool_call>\n{"name": "get", "arguments": {"key": "C"}}\n</tool_call>'
SAID = ToolCall(name="get", arguments={"key": "C"})


def drawn(text: str) -> tuple[int, ...]:
    return KEEPS.encode_continuation(text, [(0, len(text))])


def shown(completion: Completion) -> tuple[str, str]:
    kinds = " ".join(dict.fromkeys(problem.kind for problem in completion.problems))
    return kinds, "".join(str(call.arguments.get("key")) for call in completion.calls)


def call(text: str) -> str:
    return f"<tool_call>\n{text}\n</tool_call>{END}"


@pytest.mark.parametrize(
    ("text", "strict", "keys", "tolerant", "keys_past_it"),
    [
        (f"{C}{END}", "", "C", "", "C"),
        (f"<think>\nr\n</think>\n\nc\n{C}\n{C}{END}", "", "CC", "", "CC"),
        (f"<think></think>{C}{END}", "empty_reasoning", "C", "empty_reasoning", "C"),
        ("<think>r", "reasoning_unclosed", "", "reasoning_unclosed", ""),
        (f"<think>{C}</think>a{END}", "call_before_close", "", "call_before_close", ""),
        (f"a</think>{END}", "special_in_text", "", "special_in_text", ""),
        (f"a{START}{END}", "special_in_text", "", "special_in_text", ""),
        ("a", "answer_unclosed", "", "answer_unclosed", ""),
        (f"a{END}b", "text_after_end", "", "text_after_end", ""),
        (f"a{C}{END}", "block_separator", "", "block_separator", "C"),
        (f"{C}{C}{END}", "block_separator", "C", "block_separator", "CC"),
        (f"{C}\n{END}", "text_after_calls", "C", "text_after_calls", "C"),
        (C.removesuffix("</tool_call>") + END, "call_unclosed", "", "call_unclosed", "C"),
        (C.removesuffix("}\n</tool_call>"), "call_unclosed", "", "call_unclosed", ""),
        (f"a</tool_call>{END}", "tag_misspelt", "", "tag_misspelt", ""),
        (f"<tool_calls>\n{{}}{END}", "tag_misspelt", "", "tag_misspelt", ""),
        (call(""), "block_empty", "", "block_empty", ""),
        (call("{'name': 'get'}"), "value_not_json", "", "value_not_json", ""),
        (call('{"name": "get", "arguments": {"key": NaN}}'), "value_not_json", "", "value_not_json", ""),
        (call("[]"), "invoke_form", "", "invoke_form", ""),
        (call('{"arguments": {"key": "C"}}'), "invoke_form", "", "invoke_form", ""),
        (call('{"name": "get", "arguments": {"key": "C"}, "id": 1}'), "invoke_form", "", "invoke_form", "C"),
        (C.replace("\n", "") + END, "invoke_form", "", "invoke_form", "C"),
        (call('{"name": "get"}'), "parameter_form", "", "parameter_form", "None"),
        (call('{"name": "get", "arguments": "{\\"key\\": \\"C\\"}"}'), "parameter_form", "", "parameter_form", "C"),
        (call('{"name": "get", "arguments": [1]}'), "parameter_form", "", "parameter_form", "None"),
        (
            call(f'{{"name": "get", "arguments": {{"key": "{START}"}}}}'),
            "special_in_text",
            "",
            "special_in_text",
            START,
        ),
    ],
)
def test_parse_mistake_has_its_kind(text: str, strict: str, keys: str, tolerant: str, keys_past_it: str) -> None:
    assert shown(PARSE(drawn(text))) == (strict, keys)
    mild = PARSE(drawn(text), strict=False)
    assert shown(mild) == (tolerant, keys_past_it)
    assert mild.malformed is (tolerant not in ("", "empty_reasoning"))


def test_parse_begins_where_the_prompt_left_off() -> None:
    inside, behind = HermesParser(KEEPS, opening="open"), HermesParser(KEEPS, opening="closed")
    thought = inside(drawn(f"r\n</think>\n\na{END}"))
    assert (thought.reasoning, thought.content, thought.problems) == ("r", "a", ())
    assert shown(inside(drawn(f"a{END}"))) == ("reasoning_unclosed", "")
    assert shown(behind(drawn(f"<think>r</think>a{END}"))) == ("special_in_text", "")


def test_parse_schemas_are_checked() -> None:
    wrong = PARSE(drawn(C.replace('"C"', "1") + END), (GET,))
    assert (shown(wrong), wrong.malformed) == (("wrong_type", "1"), False)


def test_parse_marks_in_letters_count_where_the_tokenizer_has_none() -> None:
    letters = SMALL.encode_continuation(C)
    assert HermesParser(SMALL, opening="free")((*letters, SMALL.end_id)).calls == (SAID,)
    as_text = PARSE((*KEEPS.encode_continuation(C), KEEPS.end_id))
    assert as_text.calls == ()


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    ids=st.lists(st.integers(-1, KEEPS.vocab_size + 5), max_size=20),
    cut=st.integers(0, 60),
    strict=st.booleans(),
    opening=st.sampled_from(["open", "closed", "free"]),
)
def test_parse_arbitrary_ids_never_raises(ids: list[int], cut: int, strict: bool, opening: str) -> None:
    whole = drawn(f"<think>r</think>c\n{C}\n{C}{END}")
    for told in (ids, [*whole[:cut], *ids, *whole[cut:]]):
        HermesParser(KEEPS, opening=opening)(told, (GET,), strict=strict)  # type: ignore[arg-type]
