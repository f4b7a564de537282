"""Conversations through a checkpoint's own chat template: Qwen's form with and without reasoning, and a template that knows no tools."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from samepath.model.text.chat import ChatTemplate, rendered
from samepath.model.text.conversation import Message, ToolCall
from samepath.model.text.encodings.results import with_all_results
from samepath.model.text.encodings.template import TemplateRenderer
from samepath.model.text.openai_form import plain_message, plain_tools
from samepath.model.text.tokenizer import Tokenizer
from tests.marked_conversations import ADD, GET, KEYS, STORE

START, END = "<|im_start|>", "<|im_end|>"
QWEN = r"""{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'user' %}<|im_start|>user
{{ m.content | trim }}<|im_end|>
{% elif m.role == 'assistant' %}<|im_start|>assistant
{% if m.reasoning_content and (KEEP or loop.index0 > ns.last) %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}{{ m.content }}
{%- for call in m.tool_calls %}{% if m.content or not loop.first %}{{ '\n' }}{% endif %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% elif m.role == 'tool' %}{% if loop.previtem.role != 'tool' %}<|im_start|>user{% endif %}
<tool_response>
{{ m.content }}
</tool_response>{% if loop.last or loop.nextitem.role != 'tool' %}<|im_end|>
{% endif %}{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""Shaped like Qwen3's: calls and results in tags, reasoning dropped before the last question (KEEP: never)."""
PLAIN = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
PIECES = [START, END, *MARKS, "\n", "17", "ü", '"', "<|im_"]
TEXTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map(lambda pieces: f"x{''.join(pieces)}y")


def tokenizer(source: str, *, marks: bool = True) -> Tokenizer:
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(["\n17\n", "user\nx", "y\n</", '{"name": "', "}\n"] * 3, trainer)
    if marks:
        fast.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    return Tokenizer(fast, END, "", chat=ChatTemplate(source=source))


THINKS, KEEPS = tokenizer(QWEN.replace("KEEP", "false")), tokenizer(QWEN.replace("KEEP", "true"))
SMALL = tokenizer(PLAIN, marks=False)
TOOLS = (GET, ADD, KEYS)
CALLS = (ToolCall(name="get", arguments={"key": "C"}, call_id="c"), ToolCall(name="keys", call_id="k"))


def controls(one: Tokenizer, ids: tuple[int, ...]) -> list[str]:
    return [one.text([id_]) for id_ in ids if id_ in one.control_ids]


def test_open_is_the_template_s_own_rendering_and_its_ids() -> None:
    told = with_all_results([replace(message, response_format=None) for message in STORE])
    for one in (THINKS, KEEPS):
        assert one.chat is not None
        text = rendered(one.chat, {}, list(map(plain_message, told)), plain_tools(TOOLS), answer_follows=True)
        pieces = TemplateRenderer(one).open(told, TOOLS)
        assert one.text(pieces.ids) == text
        assert list(pieces.ids) == one.fast.encode(text, add_special_tokens=False).ids
        shown = "".join(
            one.text([id_]) for id_, kind in zip(pieces.ids, pieces.kinds, strict=True) if kind == "content"
        )
        assert "And D?" in shown
        assert START not in shown


def test_open_without_tools_adds_nothing() -> None:
    asked = [Message(role="user", content="q")]
    assert SMALL.text(TemplateRenderer(SMALL).open(asked).ids) == f"{START}user\nq{END}\n{START}assistant\n"


def test_open_template_without_tools_has_schemas_calls_and_results_as_text() -> None:
    told = [
        Message(role="user", content="C?"),
        Message(role="assistant", content="Both.", calls=CALLS),
        Message(role="tool", content="17", call_id="c"),
    ]
    text = SMALL.text(TemplateRenderer(SMALL).open(told, (KEYS,)).ids)
    head, rest = text.split("<|im_start|>user\nC?<|im_end|>\n")
    assert head.startswith("<|im_start|>system\n# Tools\n\nYou may call one or more functions")
    assert '<tools>\n{"type": "function", "function": {"name": "keys"}}\n</tools>' in head
    assert rest == (
        '<|im_start|>assistant\nBoth.\n<tool_call>\n{"name": "get", "arguments": {"key": "C"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "keys", "arguments": {}}\n</tool_call><|im_end|>\n<|im_start|>user\n'
        "<tool_response>\n17\n</tool_response>\n<tool_response>\nError: this call has no result.\n</tool_response>"
        "<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("one", [THINKS, KEEPS, SMALL])
@settings(deadline=None, derandomize=True, max_examples=12)
@given(texts=st.lists(TEXTS, min_size=7, max_size=7), tool=st.sampled_from([(), TOOLS]))
def test_open_has_as_many_control_tokens_with_any_content(one: Tokenizer, texts: list[str], tool: tuple) -> None:  # type: ignore[type-arg]
    def told(said: list[str]) -> list[Message]:
        call = ToolCall(name="get", arguments={said[3]: [said[4]], "key": said[5]}, call_id="c")
        return [
            Message(role="system", content=said[0]),
            Message(role="user", content=said[1]),
            Message(role="assistant", reasoning=said[2], content=said[2], calls=(call,)),
            Message(role="tool", content=said[6], call_id="c"),
        ]

    renderer = TemplateRenderer(one)
    pieces = renderer.open(told(texts), tool)
    calm = renderer.open(told(list("abcdefg")), tool)
    assert controls(one, pieces.ids) == controls(one, calm.ids)
    assert one.text(pieces.ids).count("x") >= 6


@pytest.mark.parametrize("one", [THINKS, KEEPS, SMALL])
@settings(deadline=None, derandomize=True, max_examples=12)
@given(said=TEXTS, drawn=st.lists(st.integers(4, 200), min_size=1, max_size=6), ended=st.booleans())
def test_contexts_grow_by_drawn_ids_and_bridges_alone(one: Tokenizer, said: str, drawn: list[int], ended: bool) -> None:
    """Context, drawn ids and bridge are what a new epoch of the same messages would begin with; else the bridge is None."""
    renderer = TemplateRenderer(one)
    thought = one.fast.token_to_id("</think>")
    ids = (5, *([] if thought is None else [thought]), *drawn, *([one.end_id] if ended else []))
    told = [Message(role="system", content="s"), Message(role="user", content=said)]
    context = renderer.open(told, TOOLS).ids
    told.append(Message(role="assistant", calls=CALLS, sampled=ids))
    results = [Message(role="tool", content=f"{said}{call.call_id}", call_id=call.call_id) for call in CALLS]
    bridge = renderer.bridge(CALLS, results[::-1], ended=ended)
    assert bridge is not None
    told += results
    context = (*context, *ids, *bridge.ids)
    assert renderer.open(told, TOOLS).ids == context
    told.append(Message(role="assistant", sampled=ids))
    reply = renderer.reply(said, ended=ended)
    told.append(Message(role="user", content=said))
    opened = renderer.open(told, TOOLS)
    if one is THINKS:
        assert reply is None
        kept = tuple(id_ for id_, kind in zip(opened.ids, opened.kinds, strict=True) if kind == "sampled")
        behind = tuple(ids[2:])
        assert kept == behind * 2 or one.text(behind[:1]).strip() == ""
    else:
        assert reply is not None
        assert opened.ids == (*context, *ids, *reply.ids)


def test_parse_of_a_rendered_message_is_the_message() -> None:
    for one in (KEEPS, SMALL):
        renderer = TemplateRenderer(one)
        for reasoning in ("", "r\nr") if one is KEEPS else ("",):
            for content in ("", "c</tool_call>c", "c\n"):
                for calls in ((), CALLS):
                    if one is SMALL and "tool_call" in content:
                        continue
                    answer = Message(role="assistant", reasoning=reasoning, content=content, calls=calls)
                    asked = Message(role="user", content="q")
                    prompt, whole = renderer.open([asked]).ids, renderer.open([asked, answer]).ids
                    assert whole[: len(prompt)] == prompt
                    completion = renderer.parse(whole[len(prompt) :], TOOLS)
                    assert completion.problems == ()
                    assert (completion.reasoning, completion.content, completion.calls) == (reasoning, content, calls)


def test_templates_that_hide_or_read_messages_are_refused() -> None:
    hides = TemplateRenderer(tokenizer(PLAIN.replace("m.content", "(m.content if m.role == 'user' else '')")))
    with pytest.raises(ValueError, match="must show every message"):
        hides.open([Message(role="system", content="s"), Message(role="user", content="q")])
    counts = TemplateRenderer(tokenizer(PLAIN + "{{ '!' if messages[-1].content | length == 4 else '' }}"))
    counts.open([Message(role="user", content="12345")])
    with pytest.raises(ValueError, match="must show every message"):
        counts.open([Message(role="user", content="1234")])
    reads = TemplateRenderer(tokenizer(PLAIN.replace("m.content", "m.content.split('<|im_end|>')[-1]")))
    with pytest.raises(ValueError, match="looks for control tokens inside messages"):
        reads.open([Message(role="user", content=f"a{END}b")])
    with pytest.raises(ValueError, match="needs? the checkpoint's chat template"):
        TemplateRenderer(Tokenizer(THINKS.fast, END, ""))
    with pytest.raises(ValueError, match="must be a variable of the checkpoint's chat template"):
        TemplateRenderer(THINKS, options={"thinkin": True})
    with pytest.raises(ValueError, match="leave Unicode's noncharacters out"):
        TemplateRenderer(THINKS).open([Message(role="user", content="a\ufdd0")])


def test_a_new_epoch_leaves_out_blanks_behind_dropped_reasoning() -> None:
    """As the template does, which puts them there: what follows is the drawn ids, letters that no encoding gives one by one."""
    thought, letters = THINKS.fast.token_to_id("</think>"), [THINKS.fast.token_to_id(one) for one in "user"]
    ids = (*THINKS.encode_continuation("r"), thought, *THINKS.encode_continuation("\n\n"), *letters, THINKS.end_id)
    told = [
        Message(role="user", content="q"),
        Message(role="assistant", sampled=ids),
        Message(role="user", content="p"),
    ]
    opened = TemplateRenderer(THINKS).open(told)
    assert THINKS.text(opened.ids).startswith("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nuser<|im_end|>\n")
    kept = [id_ for id_, kind in zip(opened.ids, opened.kinds, strict=True) if kind == "sampled"]
    assert kept == [*letters, THINKS.end_id]


EMPTY = "{% if not m.reasoning_content and loop.index0 > ns.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
PROMPT = "{{ '<|im_start|>assistant\\n<think>\\n' }}{% if off %}{{ '\\n</think>\\n\\n' }}{% endif %}{% endif %}"
REASONING = "{% if m.reasoning_content and"
SWITCHED = (
    QWEN.replace("KEEP", "false")
    .replace(REASONING, EMPTY + REASONING)
    .replace("<|im_start|>assistant\n{% endif %}", PROMPT)
)
"""Its prompts open the reasoning, or close it at once; so does a message behind the last question."""


@pytest.mark.parametrize("off", [True, False])
def test_bridge_where_the_prompt_opens_or_closes_the_reasoning(off: bool) -> None:
    one = tokenizer(SWITCHED)
    renderer = TemplateRenderer(one, options={"off": off})
    asked = Message(role="user", content="q")
    context = renderer.open([asked]).ids
    assert one.text(context).endswith("<think>\n" + ("\n</think>\n\n" if off else ""))
    answer = "\n</think>\n\n" if not off else ""
    drawn = one.encode_continuation(f"{answer}c{END}", [(0, 99)])
    assert renderer.parse(drawn).content == "c"
    assert [problem.kind for problem in renderer.parse(drawn).problems] == ([] if off else ["empty_reasoning"])
    told = [asked, Message(role="assistant", calls=CALLS[:1], sampled=drawn), Message(role="tool", content="17")]
    bridge = renderer.bridge(CALLS[:1], told[2:])
    assert bridge is not None
    assert renderer.open(told).ids == (*context, *drawn, *bridge.ids)
    # A new question takes the reasoning, an empty one too, out of the earlier messages.
    assert renderer.reply("p") is None
