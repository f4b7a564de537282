"""What a chat template makes of a conversation, followed: which part of the text is whose, and where content only looks like control tokens."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from samepath.model.text.control_tokens import NONCHARACTERS, ControlTokens, Span
from samepath.model.text.conversation import ToolSchema
from samepath.model.text.encodings.hermes_text import Turn
from samepath.model.text.openai_form import plain_message, plain_tools
from samepath.model.text.renderer import Part

Render = Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]], str]
"""Messages and tools as plain data to text."""
Spell = Callable[[str], str]
TRIMS: tuple[Spell, ...] = (
    lambda text: text,
    str.strip,
    str.rstrip,
    str.lstrip,
    lambda text: text.strip("\n"),
    lambda text: text.rstrip("\n"),
    lambda text: text.lstrip("\n"),
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    lambda text: json.dumps(text)[1:-1],
)
"""What templates do to a message's text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """The text of a conversation.

    Example: of `<|im_start|>user\\n17<|im_end|>`
        Followed(text="<|im_start|>user\\n17<|im_end|>", content=((17, 19),))
    """

    text: str
    """What the template made, drawn messages as `placeholder` names them."""
    content: tuple[Span, ...]
    """Parts that somebody said, ascending; also those inside a control token's name that stands in a tool or a call."""

    def scaffold(self) -> list[Span]:
        """Parts that the form wrote."""
        edges = [0, *(edge for span in self.content for edge in span), len(self.text)]
        return list(zip(edges[::2], edges[1::2], strict=True))

    def parts(self, start: int, end: int) -> list[Part]:
        """A stretch of the text in parts."""
        parts, place = [], start
        for left, right in self.content:
            left, right = max(left, place), min(right, end)
            if left < right:
                parts += [
                    Part(kind="scaffold", text=self.text[place:left]),
                    Part(kind="content", text=self.text[left:right]),
                ]
                place = right
        return [*parts, Part(kind="scaffold", text=self.text[place:end])]


def placeholder(kind: str, index: int) -> str:
    """What stands for the content (`drawn`) or reasoning (`thought`) of the drawn message `index`."""
    return f"{NONCHARACTERS[0]}{kind}{index}{NONCHARACTERS[1]}"


def plain(turns: Sequence[Turn], spell: Callable[[Part], str], text: Spell) -> list[dict[str, Any]]:
    """The turns as templates read them: `spell` writes parts of contents, `text` strings of calls and reasoning."""
    told = []
    for index, turn in enumerate(turns):
        message = turn.message
        if message.sampled:
            content = placeholder("drawn", index)
            message = replace(message, reasoning=placeholder("thought", index) if message.reasoning else "")
        else:
            content = "".join(map(spell, turn.parts))
        one = plain_message(replace(message, content=content, reasoning=text(message.reasoning)))
        for call in one.get("tool_calls", ()):
            call["function"]["arguments"] = _mapped(call["function"]["arguments"], text)
        told.append(one)
    return told


def follow(control: ControlTokens, turns: Sequence[Turn], tools: Sequence[ToolSchema], render: Render) -> Followed:
    """Render the turns and find what is whose. Raises ValueError if the template changes a message so that it cannot be found, or leaves it out."""
    raw = plain(turns, lambda part: part.text, lambda text: text)
    shown = json.dumps([raw, plain_tools(tools)], ensure_ascii=False)
    text = render(raw, plain_tools(tools))
    left = [one for one in NONCHARACTERS[2:] if one not in shown and one not in text]
    if not left or any(mark in part.text for mark in NONCHARACTERS[:2] for turn in turns for part in turn.parts):
        raise ValueError("a conversation must leave Unicode's noncharacters out; got U+FDD0, U+FDD1 or all others")
    breaker = left[0]

    def broken(part: str) -> str:
        return control.broken(part, (), breaker)

    told = plain(turns, lambda part: part.text if part.kind == "scaffold" else broken(part.text), broken)
    plain_broken = [_mapped(tool, broken) for tool in plain_tools(tools)]
    torn = render(told, plain_broken)
    if torn.replace(breaker, "") != text:
        raise ValueError(
            f"the checkpoint's chat template looks for control tokens inside messages, where they are text only; take them out of {raw!r:.300}"
        )
    seams = [match.start() - index for index, match in enumerate(re.finditer(breaker, torn))]
    said = [part.text for turn in turns if not turn.message.sampled for part in turn.parts if _spoken(part)]
    numbers = iter(range(len(said)))
    marked = plain(
        turns, lambda part: placeholder("said", next(numbers)) if _spoken(part) else part.text, lambda text: text
    )
    spans = _found(render(marked, plain_tools(tools)), text, said)
    return Followed(text=text, content=tuple(_union([*spans, *((seam - 1, seam + 1) for seam in seams)])))


def _spoken(part: Part) -> bool:
    return part.kind == "content" and bool(part.text.strip())


def _found(marked: str, text: str, said: Sequence[str]) -> list[Span]:
    """Where each text stands, by the rendering in which place holders stand for them."""
    first, *rest = re.split(f"{NONCHARACTERS[0]}said([0-9]+){NONCHARACTERS[1]}", marked)
    found: list[Span] = []
    place = len(first)
    fits = text.startswith(first)
    for number, between in zip(rest[::2], rest[1::2], strict=True):
        trims = (trim(said[int(number)]) for trim in TRIMS)
        here = next((one for one in trims if text.startswith(one + between, place)), None)
        if here is None:
            fits = False
            break
        found.append((place, place + len(here)))
        place += len(here) + len(between)
    if not fits or place != len(text) or {int(number) for number in rest[::2]} != set(range(len(said))):
        raise ValueError(
            f"the checkpoint's chat template must show every message as it is or trimmed; it does not in {text!r:.300}"
        )
    return found


def _mapped(value: Any, text: Spell) -> Any:
    """The value with every string in it rewritten."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, dict):
        return {text(key): _mapped(one, text) for key, one in value.items()}
    return [_mapped(one, text) for one in value] if isinstance(value, list) else value


def _union(spans: Iterable[Span]) -> list[Span]:
    """The spans ascending, those that overlap made one."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined
