"""Sessions that live in children: which child a session is in, and what is asked of it there."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast, get_args

from samepath.model.text.conversation import JsonValue, Message, ToolSchema
from samepath.rollout.environments.child import Child, Program, RequestError
from samepath.rollout.environments.protocol import EnvironmentFailure, FailureKind, ToolResult
from samepath.rollout.types import ToolError

MAX_RESULT_CHARS = 2**18
"""Longest text that is taken over from a child; the budget of a conversation cuts it further."""
CLOSE_WAIT_S = 5.0
"""Longest wait for an orderly end of a session; then its child is killed as it is."""


@dataclass(slots=True, eq=False)
class Place:
    """A child that runs or is being started, and how many sessions are in it."""

    starting: "asyncio.Task[Child]"
    sessions: int = 0
    ending: bool = False
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    """Where it lives: sessions of another loop, as begins where one was blocked, have children of their own."""

    @property
    def child(self) -> Child:
        """The child, which runs."""
        return self.starting.result()

    @property
    def usable(self) -> bool:
        """True if another session can begin in it."""
        if self.ending or self.loop is not asyncio.get_running_loop():
            return False
        if not self.starting.done():
            return True
        return not self.starting.cancelled() and self.starting.exception() is None and self.child.alive


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """How many sessions share a child, and how long it may take for what it is asked; seconds."""

    sessions_per_child: int = 1
    """Sessions at once in one child."""
    start_timeout_s: float = 60.0
    """Longest time of starting a child, and of starting a session in it."""
    answer_timeout_s: float = 60.0
    """Longest time of a reply, of a judgement, and of the list of rows."""

    def __post_init__(self) -> None:
        if self.sessions_per_child < 1:
            raise ValueError(f"sessions_per_child must be at least 1; got {self.sessions_per_child}")
        for name in ("start_timeout_s", "answer_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0 seconds; got {getattr(self, name)}")


class Children:
    """The children of one program. A child ends with the last of its sessions, so that none outlives the conversations of a run."""

    def __init__(self, program: Program, limits: ChildLimits) -> None:
        self.program, self.limits = program, limits
        self._places: list[Place] = []

    async def take(self) -> Place:
        """A place in a child that has room, or in a new one. Raises EnvironmentFailure where it cannot be started."""
        room = self.limits.sessions_per_child
        place = next((place for place in self._places if place.sessions < room and place.usable), None)
        if place is None:
            place = Place(asyncio.ensure_future(Child.start(self.program, self.limits.start_timeout_s)))
            self._places.append(place)
        place.sessions += 1
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self.give_back, place)
            # Others may wait for the same child.
            await asyncio.shield(place.starting)
            undo.pop_all()
        return place

    async def give_back(self, place: Place) -> None:
        """Leave a place; the last one ends the child."""
        place.sessions -= 1
        if place.sessions:
            return
        place.ending = True
        self._places.remove(place)
        place.starting.cancel()
        await asyncio.wait([place.starting])
        if not place.starting.cancelled() and place.starting.exception() is None:
            await place.child.end()


@dataclass(slots=True, eq=False, kw_only=True)
class ChildSession:
    """What is asked of one session in its child; `reply` and `score` are the business of who uses it."""

    children: Children
    place: Place
    number: int
    """Name of the session in its child."""
    messages: Sequence[Message] = ()
    """As in `Session`."""
    tools: Sequence[ToolSchema] = ()
    """As in `Session`."""
    running: int = field(default=0, init=False)
    turn: int = field(default=0, init=False)

    async def ask(self, method: str, params: Mapping[str, Any], limit_s: float) -> Any:
        """The answer of the session. What raises there is a failure of kind `start` while it starts, else `died`."""
        try:
            return await self.place.child.ask(method, {"session": self.number, **params}, limit_s)
        except RequestError as error:
            otherwise: FailureKind = "start" if method == "start" else "died"
            raise failure_of(error, otherwise, f"{self.children.program.what}: {method}") from error

    async def call(self, name: str, arguments: Mapping[str, JsonValue], deadline_s: float) -> ToolResult:
        """Run a tool; see `Session`. Calls that overlap belong to one message of the model."""
        self.turn += self.running == 0
        self.running += 1
        params = {"name": name, "arguments": dict(arguments), "turn": self.turn}
        try:
            answer = await self.ask("call", params, deadline_s)
        except EnvironmentFailure as failure:
            if failure.kind != "timeout":
                raise
            return ToolResult(text=f"Error: {name} gave no result within {deadline_s:g} s.", error="timeout")
        finally:
            self.running -= 1
        return read_result(answer, self.children.program.what)

    async def close(self) -> None:
        """End the session, and its child with the last of them; a child that does not answer is ended for all of them."""
        child = self.place.child
        try:
            if child.alive:
                await self.ask("close", {}, CLOSE_WAIT_S)
        except EnvironmentFailure:
            # Nothing is lost: the conversation is over, and what is left of the session ends here.
            await child.end()
        finally:
            await self.children.give_back(self.place)


def read_result(answer: Any, what: str) -> ToolResult:
    """A tool's result as the child sends it. Raises EnvironmentFailure of kind `protocol` on anything else."""
    if isinstance(answer, dict) and isinstance(answer.get("text"), str) and answer.get("error") in get_args(ToolError):
        return ToolResult(text=clean(answer["text"]), error=answer["error"])
    raise EnvironmentFailure("protocol", f"{what}: a tool's result must be {{text, error}}; got {str(answer)[:200]}")


def read_tools(answer: Any, what: str) -> tuple[ToolSchema, ...]:
    """Tools as the child sends them. Raises EnvironmentFailure of kind `protocol`."""
    try:
        return tuple(
            ToolSchema(
                function={
                    "name": tool["name"],
                    "description": clean(tool["description"]),
                    "parameters": tool["parameters"],
                }
            )
            for tool in answer
        )
    except (TypeError, KeyError, ValueError) as error:
        raise EnvironmentFailure(
            "protocol", f"{what}: tools must have a name, a description and parameters: {error!r}"
        ) from error


def clean(text: str) -> str:
    """Text that can be encoded: half of a surrogate pair, which JSON can say, is replaced; what is too long is cut."""
    text = text.encode("utf-8", "replace").decode()
    return (
        text
        if len(text) <= MAX_RESULT_CHARS
        else f"{text[: MAX_RESULT_CHARS - 50]} … [cut: {len(text)} characters in all]"
    )


def failure_of(error: RequestError, otherwise: FailureKind, what: str) -> EnvironmentFailure:
    """The failure that an error of a request is: its own kind where it names one, else `otherwise`."""
    kind = cast(FailureKind, error.kind) if error.kind in get_args(FailureKind) else otherwise
    return EnvironmentFailure(kind, f"{what}: {error.text}")
