"""Laws of DeepSeek-V3.2's form over generated conversations: content full of control tokens, merges over every seam, arbitrary drawn ids."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samepath.model.text.conversation import Message, ToolCall, ToolSchema
from samepath.model.text.encodings.deepseek_v32 import DeepSeekV32Renderer
from samepath.model.text.encodings.dsml_text import CALLS_CLOSE, DSML, MARKS, THOUGHT
from samepath.model.text.encodings.retention import Retention
from tests.marked_conversations import ADD, GET, KEYS, marked_tokenizer

TOKENIZER = marked_tokenizer()
THINKING, CHAT = DeepSeekV32Renderer(TOKENIZER), DeepSeekV32Renderer(TOKENIZER, thinking=False)
TOOLS = (GET, ADD, KEYS)
PIECES = [*MARKS, DSML, CALLS_CLOSE, "</result>", "\n", "\n\n", "<", " ", "17", "ü", "😀", '"', "\x00"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=4).map("".join) | st.text(max_size=3)
NAMES = st.text("abc<｜>é _", min_size=1, max_size=4)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
CALLS = st.lists(st.builds(ToolCall, name=NAMES, arguments=st.dictionaries(NAMES, VALUES, max_size=2)), max_size=3).map(
    lambda calls: tuple(replace(call, call_id=f"call-{index}") for index, call in enumerate(calls))
)
ANSWERS = st.builds(Message, role=st.just("assistant"), reasoning=TEXTS, content=TEXTS, calls=CALLS)
IDS = st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=30)
QUICK = settings(deadline=None, derandomize=True, max_examples=60)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    """Up to three questions, each with up to two messages of calls whose results come in any order, some not at all."""
    told = [Message(role="system", content=draw(TEXTS))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        told.append(Message(role="user", content=draw(TEXTS)))
        for answer in draw(st.lists(ANSWERS, max_size=2)):
            told.append(answer)
            results = [Message(role="tool", content=draw(TEXTS), call_id=call.call_id) for call in answer.calls]
            told += draw(st.permutations(results))[: draw(st.integers(0, len(results)))]
    return tuple(told)


def marks(text: str) -> int:
    return sum(id_ in TOKENIZER.control_ids for id_ in TOKENIZER.fast.encode(text, add_special_tokens=False).ids)


@QUICK
@given(
    told=conversations(),
    tools=st.sampled_from([(), (), (KEYS,)]),
    retention=st.sampled_from(["v32", "r1", "retain_all"]),
    thinking=st.booleans(),
)
def test_open_has_as_many_control_tokens_as_the_scaffold_has_marks(
    told: tuple[Message, ...], tools: tuple[ToolSchema, ...], retention: Retention, thinking: bool
) -> None:
    renderer = DeepSeekV32Renderer(TOKENIZER, retention=retention, thinking=thinking)
    parts, pieces = renderer.parts(told, tools), renderer.open(told, tools)
    scaffolds = "\ue000".join(part.text for part in parts if part.kind == "scaffold")
    assert sum(id_ in TOKENIZER.control_ids for id_ in pieces.ids) == marks(scaffolds)
    text = "".join(part.text for part in parts)
    assert TOKENIZER.text(pieces.ids) == text
    assert len(pieces.ids) == len(pieces.kinds)
    if marks(text) == marks(scaffolds):
        assert list(pieces.ids) == TOKENIZER.fast.encode(text, add_special_tokens=False).ids


@QUICK
@given(answer=ANSWERS)
def test_parse_of_a_rendered_message_is_the_message(answer: Message) -> None:
    asked = (Message(role="user", content="q"),)
    prompt, whole = THINKING.open(asked).ids, THINKING.open((*asked, answer)).ids
    assert whole[: len(prompt)] == prompt
    completion = THINKING.parse(whole[len(prompt) :])
    assert (completion.reasoning, completion.content, completion.calls) == (
        answer.reasoning,
        answer.content,
        answer.calls,
    )
    if "function_calls>" not in answer.content:
        assert {problem.kind for problem in completion.problems} <= {"empty_reasoning"}
        assert not completion.malformed
    assert [list(call.arguments) for call in completion.calls] == [list(call.arguments) for call in answer.calls]


@QUICK
@given(ids=IDS, strict=st.booleans(), cut=st.integers(0, 40), answer=ANSWERS)
def test_parse_arbitrary_ids_never_raises(ids: list[int], strict: bool, cut: int, answer: Message) -> None:
    rendered = THINKING.open((Message(role="user", content="q"), answer)).ids
    for drawn in (ids, [*rendered[:cut], *ids, *rendered[cut:]], [-1, 2**40, *ids]):
        for renderer in (THINKING, CHAT):
            completion = renderer.parse(drawn, TOOLS, strict=strict)
            assert len(completion.problems) < 200
            # What was read can be told again.
            renderer.open((Message(role="user", content="q"), completion.message(())))


@pytest.mark.parametrize("retention", ["v32", "r1", "retain_all"])
@pytest.mark.parametrize("thinking", [True, False])
@settings(QUICK, max_examples=20)
@given(data=st.data(), question=TEXTS, later=TEXTS)
def test_contexts_grow_by_drawn_ids_and_bridges_alone(
    retention: Retention, thinking: bool, data: st.DataObject, question: str, later: str
) -> None:
    """Context k+1 = context k + drawn ids + bridge: exactly what a new epoch of the same messages would begin with."""
    renderer = DeepSeekV32Renderer(TOKENIZER, retention=retention, thinking=thinking)
    told = [Message(role="system", content="s"), Message(role="user", content=question)]
    context = renderer.open(told, TOOLS).ids
    for _ in range(data.draw(st.integers(1, 2))):
        drawn = tuple(data.draw(IDS)) + ((TOKENIZER.end_id,) if data.draw(st.booleans()) else ())
        ended = drawn[-1:] == (TOKENIZER.end_id,)
        calls = data.draw(CALLS)
        told.append(Message(role="assistant", calls=calls, sampled=drawn or (5,)))
        drawn = told[-1].sampled
        if calls:
            results = [Message(role="tool", content=data.draw(TEXTS), call_id=call.call_id) for call in calls]
            bridge = renderer.bridge(calls, data.draw(st.permutations(results)), ended=ended)
            told += results
        else:
            bridge = renderer.reply(later, TOOLS, ended=ended)
            told.append(Message(role="user", content=later))
        opened = renderer.open(told, TOOLS)
        if bridge is None:
            assert thinking
            assert retention == "r1" or (retention == "v32" and not calls)
            assert opened.ids[: len(context)] != context
        else:
            assert opened.ids == (*context, *drawn, *bridge.ids)
            assert opened.kinds.count("sampled") >= len(drawn)
        context = opened.ids


@QUICK
@given(reasoning=TEXTS, answer=TEXTS, calls=CALLS)
def test_a_new_epoch_reuses_the_ids_behind_the_reasoning(
    reasoning: str, answer: str, calls: tuple[ToolCall, ...]
) -> None:
    """Ids that no encoding would give: letters one by one. The new epoch holds none of the reasoning's."""
    letters = [TOKENIZER.fast.token_to_id(one) for one in "abc"]
    thought = TOKENIZER.fast.token_to_id(THOUGHT)
    drawn = (*TOKENIZER.encode_continuation(reasoning), *letters, thought, *letters, TOKENIZER.end_id)
    told = [Message(role="user", content="q"), Message(role="assistant", calls=calls, sampled=drawn)]
    opened = THINKING.open([*told, Message(role="user", content="p")])
    kept = tuple(id_ for id_, kind in zip(opened.ids, opened.kinds, strict=True) if kind == "sampled")
    assert kept == (*letters, TOKENIZER.end_id)


def test_a_new_epoch_of_reasoning_that_was_cut_holds_an_empty_message() -> None:
    told = [Message(role="user", content="q"), Message(role="assistant", sampled=TOKENIZER.encode_continuation("cut"))]
    opened = THINKING.open([*told, Message(role="user", content="p")])
    assert TOKENIZER.text(opened.ids).startswith(
        "<｜begin▁of▁sentence｜><｜User｜>q<｜Assistant｜></think><｜end▁of▁sentence｜><｜User｜>p"
    )
    assert "sampled" not in opened.kinds


def test_bridge_for_no_calls_is_refused() -> None:
    with pytest.raises(ValueError, match="results follow a message with calls"):
        THINKING.bridge((), ())
