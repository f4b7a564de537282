"""Messages and tools in the form that OpenAI's interface made common: objects of plain data, as files and templates have them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from samepath.model.text.conversation import JsonValue, Message, ToolCall, ToolSchema


def read_tool(value: Mapping[str, Any]) -> ToolSchema:
    """A tool of `{"type": "function", "function": {…}}`, or of the inner object alone."""
    return ToolSchema(function=dict(value.get("function", value)))


def read_message(value: Mapping[str, Any]) -> Message:
    """A message of an object with role, content, reasoning_content, tool_calls and so on. Raises ValueError, which names what is wrong."""
    known = {"role", "content", "reasoning_content", "tool_calls", "tool_call_id", "tools", "response_format", "name"}
    given = {key: entry for key, entry in value.items() if entry is not None}
    if unknown := sorted(set(given) - known):
        raise ValueError(f"a message may have {', '.join(sorted(known))}; got {', '.join(unknown)}")
    for key in ("content", "reasoning_content", "tool_call_id"):
        if not isinstance(given.get(key, ""), str):
            raise ValueError(f"{key} of a message must be text; got {given[key]!r:.80}")
    return Message(
        role=given.get("role", ""),
        content=given.get("content", ""),
        reasoning=given.get("reasoning_content", ""),
        calls=tuple(_read_call(call) for call in given.get("tool_calls", ())),
        call_id=given.get("tool_call_id", ""),
        tools=tuple(read_tool(tool) for tool in given.get("tools", ())),
        response_format=given.get("response_format"),
    )


def _read_call(value: Mapping[str, Any]) -> ToolCall:
    function = value.get("function", value)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(arguments, dict):
        raise ValueError(f"arguments of a tool call must be an object; got {arguments!r:.80}")
    return ToolCall(name=function.get("name", ""), arguments=arguments, call_id=value.get("id", ""))


def plain_tools(tools: Sequence[ToolSchema]) -> list[dict[str, JsonValue]]:
    """The tools as templates read them."""
    return [{"type": "function", "function": dict(tool.function)} for tool in tools]


def plain_message(message: Message) -> dict[str, Any]:
    """The message as templates read it; arguments of calls are objects. Keys that say nothing are left out."""
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        plain["reasoning_content"] = message.reasoning
    if message.calls:
        plain["tool_calls"] = [
            {
                "id": call.call_id or f"call-{index}",
                "type": "function",
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for index, call in enumerate(message.calls)
        ]
    if message.role == "tool" and message.call_id:
        plain["tool_call_id"] = message.call_id
    return plain
