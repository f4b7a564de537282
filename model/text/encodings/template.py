"""Conversations in the form of a checkpoint's own chat template, with the same contract: nothing is encoded twice, content is text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from samepath.model.text.chat import ChatTemplate, names_variable, rendered
from samepath.model.text.control_tokens import ControlTokens, Span
from samepath.model.text.conversation import Completion, Message, ToolCall, ToolSchema
from samepath.model.text.encodings.dsml_text import THINK, THOUGHT
from samepath.model.text.encodings.followed import Followed, follow, placeholder, plain
from samepath.model.text.encodings.hermes_parser import HermesParser, Opening
from samepath.model.text.encodings.hermes_text import Turn, flattened, turns
from samepath.model.text.encodings.results import in_call_order, with_all_results
from samepath.model.text.openai_form import plain_tools
from samepath.model.text.renderer import Part, Pieces, checked_answer, drawn_pieces, encode_parts, said, scaffold
from samepath.model.text.tokenizer import Tokenizer


class Parser(Protocol):
    """Reads drawn ids: see `Renderer.parse`."""

    def __call__(self, ids: Sequence[int], tools: Sequence[ToolSchema] = (), *, strict: bool = True) -> Completion: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Where a drawn message stands in what the template made.

    Example:
        Drawn(start=40, end=62, ids=(17, 2), whole=True)
    """

    start: int
    """First character that the ids replace."""
    end: int
    """One past the last."""
    ids: tuple[int, ...]
    """The ids that stay."""
    whole: bool
    """True if the template leaves all that was read and drawn as it was."""


def prompt_of(template: ChatTemplate, options: Mapping[str, Any]) -> tuple[str, Opening]:
    """The prompt of a short question, and where in a message it ends."""
    prompt = rendered(template, options, [{"role": "user", "content": "?"}], answer_follows=True)
    if THINK not in prompt:
        return prompt, "free"
    return prompt, "closed" if THOUGHT in prompt.rpartition(THINK)[2] else "open"


class TemplateRenderer:
    """A checkpoint's chat template. Tools are given to templates that name `tools`; into others they go in the words of the Hermes form.

    Raises ValueError if the tokenizer has no template, or the template has none of the named options.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, options: Mapping[str, Any] | None = None, parser: Parser | None = None
    ) -> None:
        """`options` are the template's variables; `parser` reads drawn ids, in the Hermes form if it is not given."""
        if tokenizer.chat is None:
            raise ValueError("conversations need the checkpoint's chat template; the tokenizer has none")
        self.tokenizer, self._template, self._options = tokenizer, tokenizer.chat, dict(options or {})
        self._control = ControlTokens(tokenizer.fast)
        self._knows_tools = names_variable(tokenizer.chat, "tools")
        self._knows_reasoning = names_variable(tokenizer.chat, "reasoning_content")
        self._ends = [tokenizer.text([id_]) for id_ in sorted(tokenizer.end_ids)]
        thought = tokenizer.fast.token_to_id(THOUGHT)
        self._thought_id = thought if thought in tokenizer.control_ids else None
        self._prompt, self._opening = prompt_of(tokenizer.chat, self._options)
        self._thinks = self._opening != "closed" and self._thought_id is not None
        self._parser: Parser = parser or HermesParser(tokenizer, opening=self._opening)

    def parse(self, ids: Sequence[int], tools: Sequence[ToolSchema] = (), *, strict: bool = True) -> Completion:
        """See `Renderer.parse`."""
        return self._parser(ids, tools, strict=strict)

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> Pieces:
        """See `Renderer.open`. Raises ValueError if the template refuses the conversation or leaves a message out."""
        told = with_all_results(messages)
        if not told or told[-1].role == "system":
            raise ValueError("a conversation must end with a message to be answered, or the answer; got none of them")
        followed, drawn, end = self._placed(told, tools)
        parts: list[Part] = []
        place = 0
        for one in drawn:
            parts += [*followed.parts(place, one.start), Part(kind="sampled", ids=one.ids)]
            place = one.end
        return encode_parts(self.tokenizer, [*parts, *followed.parts(place, end)], follows=False)

    def bridge(self, calls: Sequence[ToolCall], results: Sequence[Message], *, ended: bool = True) -> Pieces | None:
        """See `Renderer.bridge`."""
        if not calls:
            raise ValueError("results follow a message with calls; it has none")
        return self._following(tuple(calls), in_call_order(calls, results), ended)

    def reply(self, content: str, tools: Sequence[ToolSchema] = (), *, ended: bool = True) -> Pieces | None:
        """See `Renderer.reply`."""
        return self._following((), [Message(role="user", content=content)], ended)

    def answer(self, message: Message) -> Pieces:
        """See `Renderer.answer`. Reasoning that the template does not show stands in `<think>` tags on lines of their own.

        A prompt may end with text: then a merge over its end, which no drawn id can have, is missing from contexts with answers.
        """
        if message.role != "assistant":
            raise ValueError(f"the model answers as the assistant; got a message of the {message.role}")
        if message.sampled:
            return drawn_pieces(message)
        shown = message if self._knows_reasoning else replace(message, reasoning="")
        followed, _, end = self._placed([Message(role="user", content="?"), shown], ())
        text, prompt = followed.text, self._prompt
        if text.startswith(prompt) and shown.reasoning == message.reasoning:
            parts = followed.parts(len(prompt), end)
        else:
            head = prompt.rpartition(THINK)[0] if self._opening != "free" else prompt
            if not text.startswith(head):
                raise ValueError(
                    f"the checkpoint's chat template must write messages as its prompts begin them, {prompt!r:.200}; it writes {text!r:.200}"
                )
            if self._opening == "open" and text.startswith(THINK, len(head)):
                parts = followed.parts(len(head) + len(THINK), end)
            else:
                parts = [*self._reasoned(message.reasoning), *followed.parts(len(head), end)]
        pieces = encode_parts(self.tokenizer, parts, follows=True)
        return checked_answer(message, pieces, self.parse(pieces.ids))

    def _reasoned(self, reasoning: str) -> list[Part]:
        """Reasoning behind a prompt, in tags that the template does not write."""
        if self._opening == "closed" or (self._opening == "free" and not reasoning):
            return []
        opened = [scaffold(f"{THINK}\n")] if self._opening == "free" else []
        return [*opened, said(reasoning), scaffold(f"\n{THOUGHT}\n\n")]

    def _following(self, calls: tuple[ToolCall, ...], added: list[Message], ended: bool) -> Pieces | None:
        """What the template writes behind a drawn message, in a short conversation; None if it changes what was read or drawn before."""
        thought = (self._thought_id,) if self._thinks and self._thought_id is not None else ()
        drawn = Message(role="assistant", calls=calls, sampled=(*thought, self.tokenizer.end_id))
        followed, (place,), end = self._placed([Message(role="user", content="?"), drawn, *added], ())
        if not place.whole:
            return None
        head = [] if ended else [scaffold(self.tokenizer.end_token)]
        return encode_parts(self.tokenizer, [*head, *followed.parts(place.end, end)], follows=True)

    def _placed(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> tuple[Followed, list[Drawn], int]:
        """The conversation's text, its drawn messages, and where it ends."""
        # The place holder of reasoning is written where the drawn ids hold some and the template knows it.
        told = [
            replace(message, reasoning="?" if self._knows_reasoning and self._thought_id in message.sampled else "")
            if message.sampled
            else message
            for message in messages
        ]
        shown = turns(told) if self._knows_tools else flattened(told, tools)
        given = tools if self._knows_tools else ()
        last = shown[-1].message.role == "assistant"
        render = partial(rendered, self._template, self._options, answer_follows=not last)
        followed = follow(self._control, shown, given, render)
        drawn = [
            self._drawn(followed, shown[: index + 1], given) for index, turn in enumerate(shown) if turn.message.sampled
        ]
        end = len(followed.text)
        if last:
            closings = [span for span in self._closings(followed) if not followed.text[span[1] :].strip()]
            end = closings[-1][1] if closings else end
        return followed, drawn, end

    def _drawn(self, followed: Followed, shown: Sequence[Turn], tools: Sequence[ToolSchema]) -> Drawn:
        """The last of the turns, which was drawn, in the text of the whole conversation."""
        index, sampled = len(shown) - 1, shown[-1].message.sampled
        before = rendered(
            self._template,
            self._options,
            plain(shown[:-1], lambda part: part.text, lambda text: text),
            plain_tools(tools),
            answer_follows=True,
        )
        text, name = followed.text, placeholder("drawn", index)
        if name not in text:
            raise ValueError(f"the checkpoint's chat template must show every message; it leaves out message {index}")
        place = text.index(name)
        closing = next((span for span in self._closings(followed) if span[0] >= place + len(name)), None)
        if closing is None:
            raise ValueError(
                f"the checkpoint's chat template must close messages with {' or '.join(self._ends)}; message {index} is not"
            )
        thought = self._thought_id in sampled
        kept = placeholder("thought", index) in text if self._knows_reasoning else THOUGHT not in self._template.source
        whole = text.startswith(before) and (kept or not thought)
        ids = sampled
        if thought and not whole:
            ids = self._without_blanks(sampled[sampled.index(self._thought_id) + 1 :])
        ended = sampled[-1] in self.tokenizer.end_ids
        return Drawn(start=len(before) if whole else place, end=closing[1 if ended else 0], ids=ids, whole=whole)

    def _closings(self, followed: Followed) -> list[Span]:
        """Where end tokens stand in the text."""
        marks = self._control.marks(followed.text, followed.scaffold())
        return [(mark.start, mark.end) for mark in marks if mark.token_id in self.tokenizer.end_ids]

    def _without_blanks(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """The ids without the blanks behind reasoning, which templates leave out with it."""
        while ids and ids[0] not in self.tokenizer.control_ids and not self.tokenizer.text(ids[:1]).strip():
            ids = ids[1:]
        return ids
