"""What every encoding of conversations gives: ids to open a context with, ids to go on with, and the reading of what was drawn."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, Protocol

from samepath.model.text.control_tokens import Placed, Span
from samepath.model.text.conversation import Completion, Message, ToolCall, ToolSchema
from samepath.model.text.tokenizer import Tokenizer

PieceKind = Literal["scaffold", "content", "sampled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A stretch of a conversation before it is encoded: text of the form, text that somebody said, or ids drawn before.

    Example:
        Part(kind="content", text="What is 12 + 34?")
    """

    kind: PieceKind
    """`scaffold` may name control tokens; in `content` their names are text; `sampled` is ids."""
    text: str = ""
    """Text; empty where `ids` are given."""
    ids: tuple[int, ...] = ()
    """Ids that the model drew as part of an earlier context, used as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """Ids of a part of a conversation. None of them is trained, but for those of an `answer`, which stand for drawn ones.

    Example: of `<｜User｜>1<｜Assistant｜><think>`
        Pieces(ids=(2, 17, 3, 4), kinds=("scaffold", "content", "scaffold", "scaffold"))
    """

    ids: tuple[int, ...]
    """Token ids."""
    kinds: tuple[PieceKind, ...]
    """For each id `scaffold` (the form's own), `content` (said by somebody, in part at least) or `sampled` (drawn in an earlier epoch)."""


class Renderer(Protocol):
    """Encoding of conversations in one form. Context k+1 = context k + ids drawn at k + bridge; no id is ever encoded a second time.

    An *epoch* is a stretch of calls in which the context only grows. Where the form would change what the model has already read, `bridge` and
    `reply` give None: a new epoch begins with `open`, whose messages carry the ids that were drawn (`Completion.message`), reused where they stay.
    """

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> Pieces:
        """Ids of the conversation up to where the next message of the assistant begins; if the last is the assistant's, up to its end."""
        ...

    def bridge(self, calls: Sequence[ToolCall], results: Sequence[Message], *, ended: bool = True) -> Pieces | None:
        """Ids between a message that made `calls` and the assistant's next; None where a new epoch begins.

        `results` are tool messages, given to the calls by call id, or by order where ids are empty; a call without one is told so. `ended`:
        the drawn ids end with the end token, or else the bridge begins with it.
        """
        ...

    def reply(self, content: str, tools: Sequence[ToolSchema] = (), *, ended: bool = True) -> Pieces | None:
        """Ids between an answer and the assistant's next message, with what the user says; None where a new epoch begins.

        `tools` are those of the conversation.
        """
        ...

    def answer(self, message: Message) -> Pieces:
        """Ids that a model would have drawn as this message of the assistant behind a prompt: reasoning, its end, content, calls, end token.

        What `parse` reads of them is the message. Drawn ids are given back as they are. Raises ValueError for a message that the form cannot say.
        """
        ...

    def parse(self, ids: Sequence[int], tools: Sequence[ToolSchema] = (), *, strict: bool = True) -> Completion:
        """Read drawn ids; never raises. With `tools`, calls are also held against their schemas.

        Strict: calls up to the first problem of form are read. Tolerant: reading goes on past it where the meaning is plain.
        """
        ...


def scaffold(text: str) -> Part:
    """Text of the form itself."""
    return Part(kind="scaffold", text=text)


def said(text: str) -> Part:
    """Text that somebody said."""
    return Part(kind="content", text=text)


def drawn_pieces(message: Message) -> Pieces:
    """The ids that were drawn as the message."""
    kind: PieceKind = "sampled"
    return Pieces(ids=message.sampled, kinds=(kind,) * len(message.sampled))


def checked_answer(message: Message, pieces: Pieces, completion: Completion) -> Pieces:
    """The pieces of an `answer`, if the completion read of them is the message. Raises ValueError."""
    problems = [problem for problem in completion.problems if problem.kind != "empty_reasoning"]
    told = [(name, getattr(message, name), getattr(completion, name)) for name in ("reasoning", "content", "calls")]
    wrong = [f"{name} {said!r:.200} is read as {read!r:.200}" for name, said, read in told if said != read]
    wrong += [f"{problem.kind} ({problem.detail})" for problem in problems]
    if wrong:
        raise ValueError(f"a worked message must be read as it was meant: {'; '.join(wrong)}")
    return pieces


def encode_parts(tokenizer: Tokenizer, parts: Iterable[Part], *, follows: bool) -> Pieces:
    """Ids of the parts. Text is encoded in one run up to the next drawn ids, so that merges fall as in the whole text.

    `follows`: a control token stands before. Raises ValueError if a character has no token or is no Unicode text.
    """
    ids: list[int] = []
    kinds: list[PieceKind] = []
    for drawn, run in groupby(parts, key=lambda part: part.kind == "sampled"):
        if drawn:
            new = [id_ for part in run for id_ in part.ids]
            ids += new
            kinds += ["sampled"] * len(new)
        else:
            placed, spans = _placed(tokenizer, list(run), follows or bool(ids))
            ids += [id_ for id_, _ in placed]
            kinds += ["content" if _overlaps(span, spans) else "scaffold" for _, span in placed]
    return Pieces(ids=tuple(ids), kinds=tuple(kinds))


def _placed(tokenizer: Tokenizer, parts: Sequence[Part], follows: bool) -> tuple[list[Placed], list[Span]]:
    """Ids of a run of text with their places, and the parts of it that are content."""
    spans: dict[PieceKind, list[Span]] = {"scaffold": [], "content": []}
    place = 0
    for part in parts:
        if part.text:
            spans[part.kind].append((place, place + len(part.text)))
        place += len(part.text)
    text = "".join(part.text for part in parts)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"a conversation must be Unicode text; got {text[error.start :]!r:.80}: {error.reason}"
        ) from error
    return tokenizer.place(text, _joined(spans["scaffold"]), follows=follows), spans["content"]


def _joined(spans: Sequence[Span]) -> list[Span]:
    """The spans, those that touch made one: a control token may stand over the seam of two."""
    joined: list[Span] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _overlaps(span: Span, spans: Sequence[Span]) -> bool:
    """True if the span shares a character with one of the ascending spans."""
    place = bisect_left(spans, (span[1],)) - 1
    return place >= 0 and spans[place][1] > span[0]
