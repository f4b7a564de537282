"""Messages written as a model would have drawn them: they are read back, and contexts made of them are those of the whole conversation."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samepath.model.text.conversation import Message, ToolCall
from samepath.model.text.encodings.deepseek_v32 import DeepSeekV32Renderer
from samepath.model.text.encodings.results import with_all_results
from samepath.model.text.encodings.retention import Retention
from samepath.model.text.encodings.template import TemplateRenderer
from samepath.model.text.renderer import Renderer
from samepath.model.text.tokenizer import Tokenizer
from tests.marked_conversations import marked_tokenizer
from tests.model.text.encodings.test_conversation_laws import ANSWERS, CALLS, QUICK, TEXTS, conversations
from tests.model.text.encodings.test_template import KEEPS, MARKS, PLAIN, QWEN, SMALL, SWITCHED, THINKS, tokenizer

TOKENIZER = marked_tokenizer()
ASKED = Message(role="user", content="q")
CALL = ToolCall(name="get", arguments={"key": "C", "n": [1, 2.5, None]}, call_id="c")


@QUICK
@given(answer=ANSWERS, thinking=st.booleans())
def test_answer_is_read_back_and_is_what_open_writes_behind_the_prompt(answer: Message, thinking: bool) -> None:
    renderer = DeepSeekV32Renderer(TOKENIZER, thinking=thinking)
    answer = answer if thinking else replace(answer, reasoning="")
    ids = spoken(renderer, answer)
    if ids is None:
        # The names of the calls' tags in letters, in the content.
        assert "function_calls>" in answer.content
        return
    completion = renderer.parse(ids)
    assert completion.message(()) == replace(answer, calls=completion.calls)
    assert completion.calls == answer.calls
    assert renderer.open((ASKED, answer)).ids == (*renderer.open((ASKED,)).ids, *ids)


def spoken(renderer: Renderer, answer: Message) -> tuple[int, ...] | None:
    """Ids of the answer; None if it cannot be said."""
    try:
        return renderer.answer(answer).ids
    except ValueError as error:
        if "must be read as it was meant" not in str(error):
            raise
        return None


def contexts(renderer: Renderer, told: list[Message]) -> list[tuple[tuple[int, ...], list[Message]]]:
    """Walk a conversation as a rollout does; every context with the messages that it stands for, none of them drawn."""
    found = []
    drawn: list[Message] = []
    context: tuple[int, ...] | None = None
    for place, message in enumerate(told):
        if message.role == "assistant":
            # Behind results or a question a bridge has made the context already, unless a new epoch begins.
            context = renderer.open(drawn).ids if context is None else context
            found.append((context, told[:place]))
            ids = renderer.answer(message).ids
            context = (*context, *ids)
            found.append((context, told[: place + 1]))
            drawn.append(replace(message, sampled=ids))
            bridge = None
            following = told[place + 1 :]
            if message.calls and following and following[0].role == "tool":
                results = following[: len(message.calls)]
                bridge = renderer.bridge(message.calls, results)
            elif not message.calls and following and following[0].role == "user":
                bridge = renderer.reply(following[0].content)
            context = None if bridge is None else (*context, *bridge.ids)
        else:
            if message.role == "user" and drawn and drawn[-1].role in ("tool", "user"):
                # No rollout goes on so; the conversation is opened anew.
                context = None
            drawn.append(message)
    return found


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("retention", ["v32", "r1", "retain_all"])
@QUICK
@given(told=conversations())
def test_contexts_of_answers_and_bridges_have_the_ids_of_open(
    retention: Retention, thinking: bool, told: tuple[Message, ...]
) -> None:
    """As if nothing had been drawn: every seam stands beside a control token."""
    renderer = DeepSeekV32Renderer(TOKENIZER, retention=retention, thinking=thinking)
    whole = [replace(one, reasoning=one.reasoning if thinking else "") for one in with_all_results(told)]
    if any(one.role == "assistant" and spoken(renderer, one) is None for one in whole):
        return
    # A conversation goes on behind an answer when the user speaks, behind calls when the tools have.
    while whole and whole[-1].role == "assistant" and whole[-1].calls:
        whole.pop()
    alternating = [one for one, after in zip(whole, [*whole[1:], None], strict=True) if not _speaks_on(one, after)]
    for ids, messages in contexts(renderer, alternating):
        assert ids == renderer.open(messages).ids


def _speaks_on(one: Message, after: Message | None) -> bool:
    """True if another message of the assistant follows an answer without calls."""
    return one.role == "assistant" and not one.calls and after is not None and after.role == "assistant"


TEMPLATES = {
    "keeps": (KEEPS, {}),
    "drops": (THINKS, {}),
    "without tools": (SMALL, {}),
    "opens": (tokenizer(SWITCHED), {"off": False}),
    "closes": (tokenizer(SWITCHED), {"off": True}),
    "shows no reasoning": (tokenizer(PLAIN), {}),
    "opens and shows none": (tokenizer(PLAIN.replace("assistant\\n'", "assistant\\n<think>\\n'")), {}),
}
"""Templates by what they do with reasoning."""


@pytest.mark.parametrize("name", TEMPLATES)
@QUICK
@given(reasoning=st.sampled_from(["", "r", "a\nb"]), content=TEXTS, calls=CALLS)
def test_answer_of_a_template_is_read_back(
    name: str, reasoning: str, content: str, calls: tuple[ToolCall, ...]
) -> None:
    one, options = TEMPLATES[name]
    renderer = TemplateRenderer(one, options=options)
    answer = Message(role="assistant", reasoning=reasoning, content=content, calls=calls)
    if name == "closes" and reasoning:
        with pytest.raises(ValueError, match="must be read as it was meant: reasoning"):
            renderer.answer(answer)
        return
    ids = spoken(renderer, answer)
    if ids is None:
        # Line breaks at its head are the form's own behind reasoning; a tag in letters may read like one that was misspelt.
        spelt = any(tag in repr((content, calls)) for tag in MARKS)
        assert content.startswith("\n") or spelt
        return
    completion = renderer.parse(ids)
    assert (completion.reasoning, completion.content, completion.calls) == (reasoning, content, calls)
    assert ids[-1] == one.end_id


@pytest.mark.parametrize("name", TEMPLATES)
def test_contexts_of_a_template_have_the_ids_of_open(name: str) -> None:
    one, options = TEMPLATES[name]
    renderer = TemplateRenderer(one, options=options)
    thinks = name in ("keeps", "drops", "opens")
    told = [
        Message(role="system", content="s"),
        ASKED,
        Message(role="assistant", reasoning="r1" if thinks else "", content="c", calls=(CALL,)),
        Message(role="tool", content="17", call_id="c"),
        Message(role="assistant", reasoning="r2" if thinks else "", content="a"),
        Message(role="user", content="p"),
        Message(role="assistant", reasoning="r3" if thinks else "", content="b"),
    ]
    walked = contexts(renderer, told)
    assert len(walked) == 6
    for ids, messages in walked:
        text = one.text(ids)
        if name == "opens and shows none":
            # What the model draws to close the reasoning stays in the context; the template knows nothing of it.
            text = text.replace("<think>\n\n</think>\n\n", "").replace("<think>\n", "")
            assert text == one.text(renderer.open(messages).ids).replace("<think>\n", "")
        else:
            assert ids == renderer.open(messages).ids
        assert text.count("17") == (len(messages) > 3)


def test_answer_gives_drawn_ids_as_they_are_and_refuses_what_has_no_place() -> None:
    drawn = Message(role="assistant", sampled=(5, 6, 7))
    chat = DeepSeekV32Renderer(TOKENIZER, thinking=False)
    for renderer in (chat, TemplateRenderer(KEEPS)):
        assert renderer.answer(drawn).ids == (5, 6, 7)
        assert set(renderer.answer(drawn).kinds) == {"sampled"}
        with pytest.raises(ValueError, match="answers as the assistant; got a message of the user"):
            renderer.answer(ASKED)
    with pytest.raises(ValueError, match="chat mode have no reasoning; got 'r'. Leave it out, or set thinking: true"):
        chat.answer(Message(role="assistant", reasoning="r"))
    other = tokenizer(PLAIN.replace("{{ '<|im_start|>assistant\\n' }}", "{{ '<|im_start|>model\\n' }}"))
    with pytest.raises(ValueError, match="must write messages as its prompts begin them"):
        TemplateRenderer(other).answer(Message(role="assistant", content="a"))
    letters = Message(role="assistant", content="<tool_call>\n{}\n</tool_call>")
    with pytest.raises(ValueError, match="must be read as it was meant: content"):
        TemplateRenderer(SMALL).answer(letters)
    # Where the tags are control tokens their names are text.
    assert TemplateRenderer(KEEPS).parse(TemplateRenderer(KEEPS).answer(replace(letters, content="x<tool_call>")).ids)


def test_answer_has_the_kinds_of_its_parts() -> None:
    pieces = DeepSeekV32Renderer(TOKENIZER).answer(Message(role="assistant", reasoning="ab", content="cd"))
    texts = TOKENIZER.token_texts(pieces.ids)
    said = "".join(text for text, kind in zip(texts, pieces.kinds, strict=True) if kind == "content")
    assert said == "abcd"
    assert [text for text, kind in zip(texts, pieces.kinds, strict=True) if kind == "scaffold"] == [
        "</think>",
        "<｜end▁of▁sentence｜>",
    ]


def test_answer_reasoning_in_tags_that_the_template_writes_without_line_breaks() -> None:
    """Its prompts end with an open tag on a line of its own."""
    source = QWEN.replace("KEEP", "true").replace("<think>\n", "<think>")
    source = source.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
    one: Tokenizer = tokenizer(source)
    renderer = TemplateRenderer(one)
    ids = renderer.answer(Message(role="assistant", reasoning="r", content="a")).ids
    assert one.text(ids) == "r\n</think>\n\na<|im_end|>"
