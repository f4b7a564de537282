"""DeepSeek-V3.2's form of conversations, byte for byte as its published encoding writes it (arXiv:2512.02556)."""

from collections.abc import Iterator, Sequence

from samepath.model.text.conversation import Completion, Message, ToolCall, ToolSchema
from samepath.model.text.encodings.dsml_parser import DsmlParser
from samepath.model.text.encodings.dsml_text import (
    ASSISTANT,
    END,
    MARKS,
    RESULTS_CLOSE,
    RESULTS_OPEN,
    START,
    THINK,
    THOUGHT,
    USER,
    USER_MESSAGE,
    calls_parts,
    format_parts,
    tools_parts,
)
from samepath.model.text.encodings.results import in_call_order, with_all_results
from samepath.model.text.encodings.retention import Retention, boundary
from samepath.model.text.renderer import Part, Pieces, checked_answer, drawn_pieces, encode_parts, said, scaffold
from samepath.model.text.tokenizer import Tokenizer


class DeepSeekV32Renderer:
    """Conversations of DeepSeek-V3.2, in thinking or chat mode.

    Prompts end with an open `<think>` where the next message reasons visibly, else with `</think>`: in chat mode always, in thinking mode
    where `retention` has dropped the reasoning. Raises ValueError if the tokenizer lacks one of the form's control tokens.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, thinking: bool = True, retention: Retention = "v32", tools_first: bool = False
    ) -> None:
        names = {tokenizer.text([id_]): id_ for id_ in tokenizer.control_ids}
        if missing := [mark for mark in MARKS if mark not in names]:
            raise ValueError(
                f"DeepSeek-V3.2's form needs the control tokens {', '.join(MARKS)}; the tokenizer adds no {', '.join(missing)}"
            )
        if tokenizer.end_token != END:
            raise ValueError(f"DeepSeek-V3.2's form ends messages with {END}; the tokenizer with {tokenizer.end_token}")
        self.tokenizer, self.thinking, self.retention, self.tools_first = tokenizer, thinking, retention, tools_first
        self.end_id, self.thought_id = names[END], names[THOUGHT]
        self._parser = DsmlParser(tokenizer, thinking=thinking)

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> Pieces:
        """See `Renderer.open`. Raises ValueError for a conversation that has no such form."""
        return encode_parts(self.tokenizer, self.parts(messages, tools), follows=False)

    def bridge(self, calls: Sequence[ToolCall], results: Sequence[Message], *, ended: bool = True) -> Pieces | None:
        """See `Renderer.bridge`: None with retention `r1` in thinking mode, which drops what was thought before these calls."""
        if self.thinking and self.retention == "r1":
            return None
        if not calls:
            raise ValueError("results follow a message with calls; it has none")
        parts = [
            part for place, message in enumerate(in_call_order(calls, results)) for part in _result(message, place)
        ]
        return self._next([*parts, scaffold(RESULTS_CLOSE + self._opening(self.thinking))], ended)

    def reply(self, content: str, tools: Sequence[ToolSchema] = (), *, ended: bool = True) -> Pieces | None:
        """See `Renderer.reply`: None in thinking mode, unless all reasoning is retained."""
        keeps = self.retention == "retain_all" or (self.retention == "v4" and bool(tools))
        if self.thinking and not keeps:
            return None
        return self._next(list(self._asked([said(content)], self.thinking)), ended)

    def answer(self, message: Message) -> Pieces:
        """See `Renderer.answer`. A prompt ends with a control token, so that contexts of answers and bridges have the ids of `open`."""
        if message.role != "assistant":
            raise ValueError(f"the model answers as the assistant; got a message of the {message.role}")
        if message.sampled:
            return drawn_pieces(message)
        if message.reasoning and not self.thinking:
            raise ValueError(
                f"messages in chat mode have no reasoning; got {message.reasoning!r:.80}. Leave it out, or set thinking: true."
            )
        pieces = encode_parts(self.tokenizer, self._answer(message, self.thinking), follows=True)
        return checked_answer(message, pieces, self.parse(pieces.ids))

    def parse(self, ids: Sequence[int], tools: Sequence[ToolSchema] = (), *, strict: bool = True) -> Completion:
        """See `Renderer.parse`."""
        return self._parser(ids, tools, strict=strict)

    def parts(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> list[Part]:
        """The conversation before it is encoded."""
        told = with_all_results(messages)
        if tools and not any(message.role == "system" for message in told):
            told.insert(0, Message(role="system"))
        if not told or told[-1].role == "system":
            raise ValueError(
                "a conversation must end with a message to be answered, or the answer; the last is the system's, or there is none"
            )
        declared = bool(tools) or any(message.tools for message in told)
        limit = boundary(told, self.retention, tools=declared) if self.thinking else len(told)
        parts = [scaffold(START)]
        place_of_result = 0
        for index, message in enumerate(told):
            following = told[index + 1].role if index + 1 < len(told) else ""
            match message.role:
                case "system":
                    parts += self._system(message, tools)
                    tools = ()
                case "user":
                    parts += self._asked([said(message.content)], index >= limit)
                case "developer":
                    parts += self._asked(_developer(message), index >= limit)
                case "assistant":
                    parts += self._answer(message, index > limit)
                    place_of_result = 0
                case "tool":
                    parts += _result(message, place_of_result)
                    place_of_result += 1
                    if following != "tool":
                        parts.append(scaffold(RESULTS_CLOSE + self._opening(index >= limit)))
        return parts

    def _next(self, parts: list[Part], ended: bool) -> Pieces:
        return encode_parts(self.tokenizer, parts if ended else [scaffold(END), *parts], follows=True)

    def _opening(self, visible: bool) -> str:
        return THINK if visible else THOUGHT

    def _asked(self, parts: Sequence[Part], visible: bool) -> Iterator[Part]:
        yield scaffold(USER)
        yield from parts
        yield scaffold(ASSISTANT + self._opening(visible))

    def _system(self, message: Message, tools: Sequence[ToolSchema]) -> list[Part]:
        paragraphs = [[said(message.content)]]
        if declared := (*tools, *message.tools):
            told = tools_parts(declared)
            paragraphs = [told, *(paragraphs if message.content else [])] if self.tools_first else [*paragraphs, told]
        if message.response_format is not None:
            paragraphs.append(format_parts(dict(message.response_format)))
        return _paragraphs(paragraphs)

    def _answer(self, message: Message, visible: bool) -> list[Part]:
        """An assistant's message behind the opening; drawn ids as they are, those of dropped reasoning left out."""
        if message.sampled:
            ids = message.sampled
            if self.thinking and not visible:
                ids = ids[ids.index(self.thought_id) + 1 :] if self.thought_id in ids else ()
            drawn = [Part(kind="sampled", ids=ids)] if ids else []
            return drawn if ids[-1:] == (self.end_id,) else [*drawn, scaffold(END)]
        parts = [said(message.reasoning), scaffold(THOUGHT)] if visible else []
        parts.append(said(message.content))
        if message.calls:
            parts += [scaffold("\n\n"), *calls_parts(message.calls)]
        return [*parts, scaffold(END)]


def _developer(message: Message) -> list[Part]:
    """What a developer's message says between the marks of the user's."""
    if not message.content:
        raise ValueError("a developer message must have content; got none")
    parts: list[Part] = []
    if message.tools:
        parts += [scaffold("\n\n"), *tools_parts(message.tools)]
    if message.response_format is not None:
        parts += [scaffold("\n\n"), *format_parts(dict(message.response_format))]
    return [*parts, scaffold(USER_MESSAGE), said(message.content)]


def _result(message: Message, place: int) -> list[Part]:
    """The result of the call at `place`."""
    return [
        scaffold((RESULTS_OPEN if place == 0 else "") + "\n<result>"),
        said(message.content),
        scaffold("</result>"),
    ]


def _paragraphs(paragraphs: Sequence[Sequence[Part]]) -> list[Part]:
    """The paragraphs with an empty line between them."""
    parts = list(paragraphs[0])
    for paragraph in paragraphs[1:]:
        parts += [scaffold("\n\n"), *paragraph]
    return parts
