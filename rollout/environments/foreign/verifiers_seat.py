"""The model's seat in an environment of `verifiers` 0.4: a harness that runs no program but hands every message over and takes the answer."""

import asyncio
import contextlib
import contextvars
import json
import time
from typing import Any

import mcp_types
import verifiers.v1 as vf
from mcp.shared.exceptions import MCPError
from verifiers.v1.graph import prepare_turn
from verifiers.v1.harnesses.utils.mcp import connect_mcp, mcp_content_to_chat_content
from verifiers.v1.session import hook_boundary
from verifiers.v1.utils.decorators import invoke

__all__ = ["RelayHarness"]

MAX_RESULT_CHARS = 2**18
"""Longest result of a tool that is handed over; a longer one is cut."""
IMAGE = "[an image, not shown]"
ENDED = "this conversation has ended: give your last answer"
"""What the model reads of a call behind a condition of the task that stops it."""


class RelayError(RuntimeError):
    """What cannot be, with the kind of failure that it is."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.failure_kind = kind


class Relay:
    """One conversation: what the episode says to the model, and what the model answers."""

    def __init__(self, task: Any) -> None:
        self.stops = [stop for stop in task.hooks("stop") if trace_alone(stop)]
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        """Lists of messages; None: the episode is over."""
        self.answers: asyncio.Queue[Any] = asyncio.Queue()
        """Text of the model; None: it says no more."""
        self.session: RelaySession | None = None


RELAY: "contextvars.ContextVar[Relay]" = contextvars.ContextVar("samepath_relay")
"""The conversation of the episode that runs."""


class RelayConfig(vf.HarnessConfig):
    """No knobs."""


class RelayHarness(vf.Harness[RelayConfig]):
    """The model's seat: no program runs, every message is handed to the parent."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_MCP = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def session(
        self, ctx: Any, trace: Any, runtime: Any, endpoint: str, secret: str, mcp_urls: Any, data: Any, **more: Any
    ) -> "RelaySession":
        """One conversation of one episode; a second one would need a second model."""
        relay = RELAY.get()
        if relay.session is not None:
            raise RelayError(
                "start", "this environment begins more than one conversation in an episode; that is not supported"
            )
        relay.session = RelaySession(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data)
        relay.session.relay = relay
        return relay.session

    async def launch(self, *given: Any, **more: Any) -> Any:
        """Never asked for: the session takes its place."""
        raise RelayError("protocol", "a conversation has no program")


class RelaySession(vf.HarnessSession):
    """Keeps the trace as a program in the model's seat would, from the calls and answers of the parent."""

    relay: Relay

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._stack = contextlib.AsyncExitStack()
        self._conversation: list[Any] = []
        self._schemas: list[Any] = []
        self._dispatch: dict[str, Any] = {}
        self._servers: dict[str, Any] = {}
        self._wave: list[tuple[Any, list[str]]] = []
        self._turn, self._new_turn = 0, asyncio.Lock()
        self._begun = False

    async def turn(self, messages: Any = None) -> None:
        """One stretch of the model, up to its answer."""
        said = list(messages or [])
        if not self._begun:
            self._begun = True
            said = [*await self._begin(), *said]
        elif await self._stopped():
            return
        self._conversation += said
        self.relay.events.put_nowait(said)
        answer = await self.relay.answers.get()
        self._commit_wave()
        if await self._stopped() or answer is None:
            prepare_turn(self.trace, self._conversation, self.tools).commit_prompt()
            self.trace.stop("max_turns")
        else:
            self._commit(vf.AssistantMessage(content=answer), "stop")

    async def _begin(self) -> "list[Any]":
        """Connect to the tools; what the task itself says."""
        limit_s = self.harness.config.tool_timeout
        servers = {name: {"url": url, "timeout": limit_s} for name, url in self.mcp_urls.items()}
        self._schemas, self._dispatch, self._servers = await connect_mcp({"mcpServers": servers}, self._stack)
        system, prompt = self.harness.resolve_prompt(self.data)
        opening: list[Any] = [vf.SystemMessage(content=system)] if system else []
        return [*opening, vf.UserMessage(content=prompt)] if isinstance(prompt, str) else [*opening, *(prompt or [])]

    @property
    def tools(self) -> "list[Any]":
        """As the trace keeps them."""
        return [vf.Tool(**schema["function"]) for schema in self._schemas]

    @property
    def schemas(self) -> "list[Any]":
        """As the model is shown them."""
        return [schema["function"] for schema in self._schemas]

    async def call(self, name: str, arguments: "dict[str, Any]", turn: int) -> "dict[str, str]":
        """Run a tool; calls with one `turn` are of one message."""
        async with self._new_turn:
            if turn != self._turn:
                self._turn = turn
                self._commit_wave()
                await self._stopped()
        if self.trace.stop_condition is not None:
            return {"text": ENDED, "error": "raised"}
        if name not in self._dispatch:
            return {"text": f"there is no tool {name}", "error": "bad_arguments"}
        number = f"call-{turn}-{len(self._wave)}"
        # A call that is given up keeps this text.
        result = ["no result in time"]
        self._wave.append((vf.ToolCall(id=number, name=name, arguments=json.dumps(arguments)), result))
        answer = await self._called(name, arguments)
        result[0] = answer["text"]
        return answer

    async def _called(self, name: str, arguments: "dict[str, Any]") -> "dict[str, str]":
        server, bare = self._dispatch[name]
        # One attempt: a tool may not be asked twice for what it was asked once.
        task = asyncio.ensure_future(self._servers[server]._run(lambda client: client.call_tool(bare, arguments)))
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
        error = task.exception()
        if isinstance(error, MCPError) and error.code != mcp_types.CONNECTION_CLOSED:
            return {"text": error.message, "error": "raised"}
        if error is not None:
            raise RelayError("died", f"the tool server {server!r} failed: {type(error).__name__}: {error}")
        result = task.result()
        content = mcp_content_to_chat_content(result.content)
        text = content if isinstance(content, str) else "\n".join(part.get("text", IMAGE) for part in content)
        if len(text) > MAX_RESULT_CHARS:
            text = f"{text[: MAX_RESULT_CHARS - 50]} … [cut: {len(text)} characters in all]"
        return {"text": text, "error": "raised" if result.is_error else ""}

    def _commit_wave(self) -> None:
        """Keep one message with calls, and their results."""
        wave, self._wave = self._wave, []
        if wave:
            self._commit(vf.AssistantMessage(tool_calls=[call for call, _ in wave]), "tool_calls")
            self._conversation += [
                vf.ToolMessage(tool_call_id=call.id, content=result[0], name=call.name) for call, result in wave
            ]

    def _commit(self, message: Any, finish: Any) -> None:
        turn = prepare_turn(self.trace, self._conversation, self.tools)
        turn.commit(
            vf.Response(
                id="samepath", created=int(time.time()), model="samepath", message=message, finish_reason=finish
            )
        )
        self._conversation.append(message)

    async def _stopped(self) -> bool:
        """Whether a condition of the task says that the model has had its last word; asked before each of its messages, as the library does."""
        for stop in self.relay.stops:
            verdict = invoke(stop, {vf.Trace: self.trace})
            if asyncio.iscoroutine(verdict):
                verdict = await verdict
            if verdict and self.trace.stop_condition is None:
                self.trace.stop(stop.__name__)
        return self.trace.stop_condition is not None

    async def close(self) -> None:
        """Leave the tools."""
        await super().close()
        await self._stack.aclose()


def trace_alone(stop: Any) -> bool:
    """True for a condition on the trace; one on requests or responses has none here to look at."""
    if hook_boundary(stop, allow_trace=True) is vf.Trace:
        return True
    raise RelayError(
        "start",
        f"this task stops on a request or response ({stop.__name__}, @stop); only stops on the trace are supported",
    )
