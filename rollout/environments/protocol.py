"""What an environment is: rows to ask, and for each sample a session with a user, tools and a judgement of its own.

An environment of your own is a class with these methods, named by its import path in `task.environment`; docs/environments.md shows one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from samepath.model.text.conversation import JsonValue, Message, ToolSchema
from samepath.rewards.score import Score
from samepath.rollout.types import ToolError

Split = Literal["train", "held_out"]
FailureKind = Literal["start", "died", "timeout", "protocol", "resource"]
"""A session that could not begin, ended by itself or raised, gave no answer in time, answered with what no session may, or lacked memory,
disk or processes."""


class EnvironmentFailure(RuntimeError):  # noqa: N818 (it says that the infrastructure failed, not the program)
    """The infrastructure failed, whatever the model did: the sample has no reward and is never trained on."""

    def __init__(self, kind: FailureKind, detail: str) -> None:
        """`detail` is for people."""
        super().__init__(detail)
        self.kind, self.detail = kind, detail

    def __reduce__(self) -> tuple[type["EnvironmentFailure"], tuple[FailureKind, str]]:
        return type(self), (self.kind, self.detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentRow:
    """One task of an environment. Crosses processes: plain data only.

    Example:
        EnvironmentRow(row_id="train-17", text="key3 plus key7, then key1 plus key2", data={"store": {"key3": 17}, "sums": [42, 51]})
    """

    row_id: str
    """Unique in its environment."""
    text: str
    """What is asked, for people, and to tell whether two rows ask the same: training and held-out rows must not share it."""
    data: Mapping[str, JsonValue] = field(default_factory=dict)
    """All that a session needs; the model never sees it."""
    dataset: str = ""
    """Where rows are of several kinds (domains, difficulties, the seat that the model takes in a game), the name of this one's, for metrics, alerts
    and `beta_by_dataset`; empty: the environment's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What the model reads of a tool call.

    Example:
        ToolResult(text="17")
    """

    text: str
    """Result, or what went wrong in words."""
    error: ToolError = ""
    """Empty, or why there is no result. The model's fault or the tool's own: the conversation goes on."""


class Session(Protocol):
    """One sample's conversation with its environment. Every method may raise EnvironmentFailure; one at a time is awaited, but for `call`:
    the calls of one message run side by side."""

    messages: Sequence[Message]
    """What the conversation begins with: the same for all samples of a row. The last is the user's."""
    tools: Sequence[ToolSchema]
    """Tools that the model may call."""

    async def call(self, name: str, arguments: Mapping[str, JsonValue], deadline_s: float) -> ToolResult:
        """Run a tool whose arguments fit its schema. It is given up `deadline_s` seconds from now."""
        ...

    async def reply(self, content: str) -> Message | None:
        """What the user says to an answer; None ends the conversation. A user sees contents only: no reasoning, no calls."""
        ...

    async def score(self) -> Score:
        """Judge the conversation as it stands; called once, when it is over for whatever reason. The first part says whether it is right."""
        ...

    async def close(self) -> None:
        """Give everything back; called once, also after a failure."""
        ...


class Environment(Protocol):
    """Rows, and a session for each sample. Built with the recipe's `options` as keyword arguments, once in each process."""

    def tasks(self, split: Split) -> Sequence[EnvironmentRow]:
        """Rows by index from 0, the same in every process; may make each one when it is asked for."""
        ...

    async def start(self, row: EnvironmentRow, seed: int) -> Session:
        """Begin a conversation. What is random in it follows from the row and the sample's 64-bit `seed` alone."""
        ...
