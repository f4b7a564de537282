"""Chat form of a prompt: a checkpoint's own template, rendered by transformers, its text encoded once (`chat_ids`)."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samepath.model.json_file import read_json
from samepath.model.text.conversation import Message

TEMPLATE_FILE = "chat_template.jinja"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Names under which templates read the tokenizer's special tokens."""
DEEPSEEK_MARKS = ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")
DEEPSEEK_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role != ('user' if loop.last else 'system') or loop.index > 2 -%}"
    "{{ raise_exception('one user message is encoded, after one system message at most') }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{{ bos_token }}{{ messages[0].content if messages | length > 1 else '' }}"
    "<｜User｜>{{ messages[-1].content }}<｜Assistant｜>"
    "{{ '<think>' if thinking or enable_thinking else '</think>' }}"
)
"""DeepSeek-V3.2 publishes a program instead of a template. This is the part of its encoding that a single turn without tools needs:
text of the system, then the user's between its marks, then the open or at once closed reasoning of the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """A Jinja template and the special tokens that it may name.

    Example:
        ChatTemplate(source="{% for message in messages %}<|im_start|>…", special_tokens={"eos_token": "<|im_end|>"})
    """

    source: str
    """Jinja, as published beside the tokenizer."""
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """`bos_token` and so on, as far as the tokenizer has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatForm:
    """How a question becomes a conversation.

    Example:
        ChatForm(system="Answer with one number.", options={"enable_thinking": False})
    """

    system: str = ""
    """Text of the system message; empty: none is given, and a template that has one of its own uses it."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the template, such as a thinking switch."""


def read_chat_template(folder: Path, config: Mapping[str, Any], known_tokens: Iterable[str]) -> ChatTemplate | None:
    """The template of a tokenizer folder; None if it has none. `config` is its tokenizer_config.json.

    `chat_template.jinja` comes before `chat_template` of the config; of several named ones `default` is taken.
    """
    file = folder / TEMPLATE_FILE
    source = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    if isinstance(source, list):
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    if source is None and _model_type(folder) == "deepseek_v32" and set(DEEPSEEK_MARKS) <= set(known_tokens):
        source = DEEPSEEK_TEMPLATE
    if source is None:
        return None
    tokens = {name: token_text(config[name]) for name in SPECIAL_TOKENS if config.get(name)}
    return ChatTemplate(source=source, special_tokens=tokens)


def token_text(entry: object) -> str:
    """Text of a special token, which tokenizer_config.json writes as text or as an object with `content`."""
    return str(entry["content"]) if isinstance(entry, dict) else str(entry or "")


def chat_text(template: ChatTemplate, form: ChatForm, messages: Sequence[Message]) -> str:
    """The conversation up to where the answer begins, with the form's options. Raises ValueError if the template refuses it or knows no such option."""
    plain = [{"role": message.role, "content": message.content} for message in messages]
    return rendered(template, form.options, plain, answer_follows=True)


def rendered(
    template: ChatTemplate,
    options: Mapping[str, Any],
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    answer_follows: bool,
) -> str:
    """What the template makes of plain messages and tools. Raises ValueError if it refuses them or knows no option of such a name."""
    for name in options:
        # Jinja takes any variable and says nothing; a misspelt switch would train on the wrong prompts.
        if not names_variable(template, name):
            raise ValueError(
                f"chat.options.{name} must be a variable of the checkpoint's chat template; it has none so named"
            )
    # Late: it takes a second, and most runs have no chat form.
    from jinja2.exceptions import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts = render_jinja_template(
            conversations=[[dict(message) for message in messages]],
            tools=[dict(tool) for tool in tools] or None,
            chat_template=template.source,
            add_generation_prompt=answer_follows,
            **{**template.special_tokens, **options},
        )
    except TemplateError as error:
        raise ValueError(f"the checkpoint's chat template cannot render the conversation: {error}") from error
    return str(texts[0][0])


def names_variable(template: ChatTemplate, name: str) -> bool:
    """True if the template's source holds the name."""
    return re.search(rf"\b{re.escape(name)}\b", template.source) is not None


def _model_type(folder: Path) -> str:
    file = folder / "config.json"
    return str(read_json(file).get("model_type", "")) if file.is_file() else ""
