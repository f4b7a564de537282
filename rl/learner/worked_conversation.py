"""A worked conversation as a rollout of it would be: one segment an epoch, in which the assistant's messages count as drawn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from samepath.model.text.conversation import Conversation, Message, ToolSchema
from samepath.model.text.renderer import Renderer


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkedSegment:
    """Tokens of one epoch, or of a prompt and its answer.

    Example: a prompt of 4 tokens, answered with 3
        WorkedSegment(token_ids=(1, 5, 6, 7, 8, 9, 2), answers=((4, 7),))
    """

    token_ids: tuple[int, ...]
    """What the model reads and answers."""
    answers: tuple[tuple[int, int], ...]
    """(first, end) of each of the assistant's messages, end tokens included: what is trained. Ascending, never empty."""


def worked_segments(conversation: Conversation, renderer: Renderer) -> list[WorkedSegment]:
    """The segments of a worked conversation. Each of the assistant's messages is trained once, behind what a rollout would have read.

    Within an epoch the text only grows, by bridges and replies; where the form drops something a new segment begins, in which earlier
    messages stand untrained, with the ids they were trained with. Raises ValueError for a conversation that no rollout can be.
    """
    segments: list[WorkedSegment] = []
    ids: tuple[int, ...] = ()
    answers: list[tuple[int, int]] = []
    told: list[Message] = []
    for between, message in _turns(conversation.messages):
        grown = _grown(renderer, ids, told, between, conversation.tools)
        if answers and grown[: len(ids)] != ids:
            segments.append(WorkedSegment(token_ids=ids, answers=tuple(answers)))
            answers = []
        drawn = renderer.answer(message).ids
        ids = (*grown, *drawn)
        answers.append((len(grown), len(ids)))
        told += [*between, replace(message, sampled=drawn)]
    return [*segments, WorkedSegment(token_ids=ids, answers=tuple(answers))]


def _turns(messages: Sequence[Message]) -> Iterator[tuple[list[Message], Message]]:
    """Each of the assistant's messages, and those between it and the one before."""
    if not messages or messages[-1].role != "assistant":
        raise ValueError(
            f"a worked conversation must end with the assistant's message; got {f'the {messages[-1].role}' if messages else 'none'}"
        )
    between: list[Message] = []
    for place, message in enumerate(messages):
        if message.role != "assistant":
            between.append(message)
            continue
        if not between or between[-1].role == "system":
            raise ValueError(
                f"in a worked conversation the assistant answers a user, a developer or tools; message {place} answers nobody"
            )
        if message.sampled:
            raise ValueError(f"a worked conversation is told in words; message {place} has drawn ids")
        yield between, message
        between = []


def _grown(
    renderer: Renderer,
    ids: tuple[int, ...],
    told: Sequence[Message],
    between: list[Message],
    tools: Sequence[ToolSchema],
) -> tuple[int, ...]:
    """What the model reads next: `ids` and a bridge, or the conversation opened anew."""
    last = told[-1] if told else None
    added = None
    if last is not None and last.calls and all(message.role == "tool" for message in between):
        added = renderer.bridge(last.calls, between)
    elif last is not None and not last.calls and [message.role for message in between] == ["user"]:
        added = renderer.reply(between[0].content, tools)
    return (*ids, *added.ids) if added is not None else renderer.open([*told, *between], tools).ids
