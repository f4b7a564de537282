"""What a conversation is made of: messages, tools and their calls, and what was read from sampled tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
"""What JSON can say: no NaN and no infinity."""
Role = Literal["system", "user", "developer", "assistant", "tool"]
ProblemKind = Literal[
    "reasoning_unclosed",
    "empty_reasoning",
    "call_before_close",
    "answer_unclosed",
    "call_unclosed",
    "block_separator",
    "block_empty",
    "tag_misspelt",
    "invoke_form",
    "parameter_form",
    "duplicate_parameter",
    "value_not_json",
    "text_after_calls",
    "text_after_end",
    "special_in_text",
    "unknown_tool",
    "missing_parameter",
    "unknown_parameter",
    "wrong_type",
]
SCHEMA_KINDS = frozenset(["unknown_tool", "missing_parameter", "unknown_parameter", "wrong_type"])
"""Problems of calls that are well formed and do not fit the tools."""
FORM_KINDS = frozenset(get_args(ProblemKind)) - SCHEMA_KINDS - {"empty_reasoning"}
"""Problems that break the form: what was drawn cannot be read as it stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSchema:
    """A tool that the model may call.

    Example:
        ToolSchema(function={"name": "get", "description": "Value of a key", "parameters":
                             {"type": "object", "properties": {"key": {"type": "string"}}, "required": ["key"]}})
    """

    function: Mapping[str, JsonValue]
    """`name`, `description` and `parameters` (JSON Schema of an object), as the model reads them: in this order, with these keys."""

    def __post_init__(self) -> None:
        name = self.function.get("name")
        if not isinstance(name, str) or not name:
            raise ValueError(f"a tool must have a name, which is text; got {name!r} in {dict(self.function)!r:.200}")

    @property
    def name(self) -> str:
        """Name that calls use."""
        return str(self.function["name"])

    @property
    def parameters(self) -> Mapping[str, JsonValue]:
        """JSON Schema of the arguments, an object; empty if the tool declares none."""
        schema = self.function.get("parameters")
        return schema if isinstance(schema, dict) else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call of a tool.

    Example:
        ToolCall(name="add", arguments={"a": 17, "b": 25})
    """

    name: str
    """Name of the tool."""
    arguments: Mapping[str, JsonValue] = field(default_factory=dict)
    """Values by name, in the order in which they were written."""
    call_id: str = field(default="", compare=False)
    """Ties results to it, among the calls of one message; empty: results come in the order of the calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation.

    Example:
        Message(role="user", content="What is 12 + 34?")
    """

    role: Role
    """Who says it; `developer` speaks as the user does, with tools of its own."""
    content: str = ""
    """Text; names of control tokens in it are text too."""
    reasoning: str = ""
    """What an assistant thought before the answer or the calls."""
    calls: tuple[ToolCall, ...] = ()
    """Tools that an assistant calls, together."""
    call_id: str = ""
    """Of a tool's message: the call that it answers; empty: the next one."""
    tools: tuple[ToolSchema, ...] = ()
    """Tools that a system or developer message declares by itself, beside those of the conversation."""
    response_format: Mapping[str, JsonValue] | None = None
    """JSON Schema of the answer that a system or developer message asks for."""
    sampled: tuple[int, ...] = ()
    """Ids that the model drew as this message, from behind the prompt: they are used as they are and the text is not encoded again."""

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise ValueError(f"role must be {', '.join(get_args(Role))}; got {self.role!r}")
        for name, roles in ALLOWED.items():
            if getattr(self, name) and self.role not in roles:
                raise ValueError(f"only {' and '.join(roles)} messages have {name}; got a {self.role} message")


ALLOWED: Mapping[str, tuple[Role, ...]] = {
    "reasoning": ("assistant",),
    "calls": ("assistant",),
    "sampled": ("assistant",),
    "call_id": ("tool",),
    "tools": ("system", "developer"),
    "response_format": ("system", "developer"),
}
"""Roles that may give a field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A finished conversation, as traces for a supervised start are written.

    Example:
        Conversation(messages=(Message(role="user", content="12 + 34?"), Message(role="assistant", content="46")), tools=())
    """

    messages: tuple[Message, ...]
    """In order; the last is the assistant's."""
    tools: tuple[ToolSchema, ...] = ()
    """Tools that the model may call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something in sampled tokens that is not as it must be.

    Example:
        Problem(kind="value_not_json", detail="argument 'a' of 'add': 1,5")
    """

    kind: ProblemKind
    """What is wrong."""
    detail: str
    """For people: where, and what was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What was read from the ids that the model drew as one message.

    Example:
        Completion(reasoning="17 + 25 …", content="", calls=(ToolCall(name="add", arguments={"a": 17, "b": 25}),), problems=())
    """

    reasoning: str
    """Text up to the end of reasoning, which does not count; empty without reasoning."""
    content: str
    """The answer, or what stands before the calls."""
    calls: tuple[ToolCall, ...]
    """Calls that could be read, in order, with ids `call-0`, `call-1` …"""
    problems: tuple[Problem, ...]
    """Everything that is wrong, in the order of the text, problems with the tools' schemas last."""

    @property
    def malformed(self) -> bool:
        """True if the form is broken. Reasoning may be empty, and a well-formed call may not fit its tool."""
        return any(problem.kind in FORM_KINDS for problem in self.problems)

    def message(self, sampled: tuple[int, ...]) -> Message:
        """The message that the drawn ids are in the conversation from here on."""
        return Message(
            role="assistant", content=self.content, reasoning=self.reasoning, calls=self.calls, sampled=sampled
        )
