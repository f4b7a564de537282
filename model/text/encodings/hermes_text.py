"""Tools in the words of the Hermes form, for chat templates that know none: schemas in the system text, calls and results as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from samepath.model.text.conversation import Message, ToolCall, ToolSchema
from samepath.model.text.encodings.dsml_text import json_text
from samepath.model.text.openai_form import plain_tools
from samepath.model.text.renderer import Part, said, scaffold

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
TOOLS_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
TOOLS_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    f"{CALL_OPEN}{CALL_CLOSE} XML tags:\n{CALL_OPEN}\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n'
    f"{CALL_CLOSE}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A message whose content may hold scaffold of its own.

    Example:
        Turn(message=Message(role="user"), parts=(scaffold("<tool_response>\\n"), said("17"), scaffold("\\n</tool_response>")))
    """

    message: Message
    """The message; its content is not read."""
    parts: tuple[Part, ...]
    """Its content."""


def turns(messages: Sequence[Message]) -> list[Turn]:
    """Messages as they are."""
    return [Turn(message=message, parts=(said(message.content),)) for message in messages]


def flattened(messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[Turn]:
    """The conversation without tools: schemas behind the system's text (or as one), calls in the content, results of one message as the user's."""
    told = list(messages)
    if tools and (not told or told[0].role != "system"):
        told.insert(0, Message(role="system"))
    whole: list[Turn] = []
    for result, run in groupby(told, key=lambda message: message.role == "tool"):
        group = list(run)
        if result:
            parts = [part for index, message in enumerate(group) for part in _response(message, index)]
            whole.append(Turn(message=Message(role="user"), parts=tuple(parts)))
        else:
            whole += [_flat(message, tools if not whole and index == 0 else ()) for index, message in enumerate(group)]
    return whole


def _flat(message: Message, tools: Sequence[ToolSchema]) -> Turn:
    parts = [said(message.content)]
    if tools and message.role == "system":
        lines = [part for tool in plain_tools(tools) for part in (scaffold("\n"), said(json_text(tool)))]
        gap = "\n\n" if message.content else ""
        parts += [scaffold(gap + TOOLS_HEAD), *lines, scaffold(TOOLS_TAIL)]
    for index, call in enumerate(message.calls):
        parts += [scaffold("\n" if index or message.content else ""), *call_parts(call)]
    return Turn(
        message=Message(role=message.role, reasoning=message.reasoning, sampled=message.sampled), parts=tuple(parts)
    )


def call_parts(call: ToolCall) -> list[Part]:
    """One call."""
    text = json_text({"name": call.name, "arguments": dict(call.arguments)})
    return [scaffold(f"{CALL_OPEN}\n"), said(text), scaffold(f"\n{CALL_CLOSE}")]


def _response(message: Message, place: int) -> list[Part]:
    return [
        scaffold(("\n" if place else "") + "<tool_response>\n"),
        said(message.content),
        scaffold("\n</tool_response>"),
    ]
