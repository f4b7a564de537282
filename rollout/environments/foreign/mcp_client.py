"""The child's half of an MCP server as an environment: one connection, used by all sessions of the child. Needs the package `mcp`, 2.0 or later."""

import asyncio
import json
import sys
from collections.abc import Iterable
from typing import Any

import mcp_types
from mcp import Client, StdioServerParameters
from mcp.shared.exceptions import MCPError

MAX_RESULT_CHARS = 2**18
"""Longest result that is handed over; a longer one is cut."""
MAX_TOOLS_PAGES = 100
"""A server that lists more pages of tools than this has no end of them."""


class ServerGoneError(RuntimeError):
    """The server has ended or hung up: no result of a tool, but a failure of the environment."""

    failure_kind = "died"


class Connection:
    """A connection to a server, which opens and closes in a task of its own: no request is that long, and one task must do both."""

    def __init__(self, target: Any) -> None:
        self.sessions = 0
        self._stop = asyncio.Event()
        self._ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        self._holder = asyncio.ensure_future(self._hold(target))
        self._holder.add_done_callback(self._gone)

    async def _hold(self, target: Any) -> None:
        async with Client(target) as client:
            self._ready.set_result(client)
            await self._stop.wait()

    def _gone(self, holder: "asyncio.Task[None]") -> None:
        error = None if holder.cancelled() else holder.exception()
        if not self._ready.done():
            self._ready.set_exception(
                error or ServerGoneError("the connection to the server was closed before it stood")
            )
            # Whoever waits for it may have been cancelled.
            self._ready.exception()

    async def tools(self) -> "list[dict[str, Any]]":
        """The server's tools, once the connection stands."""
        return [described(tool) for tool in await listed(await asyncio.shield(self._ready))]

    async def call(self, name: str, arguments: "dict[str, Any]") -> "dict[str, str]":
        """Run a tool; errors of its own are results."""
        call = asyncio.ensure_future(self._ready.result().call_tool(name, arguments))
        try:
            await asyncio.wait([call, self._holder], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not call.done():
                call.cancel()
                await asyncio.wait([call])
        if call.cancelled():
            raise ServerGoneError(f"the connection to the server ended while {name} ran")
        error = call.exception()
        if isinstance(error, MCPError):
            if error.code == mcp_types.CONNECTION_CLOSED:
                raise ServerGoneError(f"the server ended while {name} ran: {error.message}")
            kind = "bad_arguments" if error.code in (mcp_types.INVALID_PARAMS, mcp_types.METHOD_NOT_FOUND) else "raised"
            return {"text": error.message, "error": kind}
        if error is not None:
            raise error
        result = call.result()
        return {"text": text_of(result.content), "error": "raised" if result.is_error else ""}

    async def close(self) -> None:
        """Close it; a server that was started for it ends."""
        if self._ready.done():
            self._stop.set()
        else:
            self._holder.cancel()
        await asyncio.wait([self._holder])


class Adapter:
    """Servers started by `command`, or one reached at `url`. `shared`: one connection for all sessions of this child, else one for each."""

    def __init__(self, command: "list[str]", url: str, environment: "dict[str, str]", shared: bool) -> None:
        self._command, self._url, self._environment, self._shared = command, url, environment, shared
        self._connections: dict[int, Connection] = {}

    async def start(self, session: int, row: Any, seed: int) -> "list[dict[str, Any]]":
        """Connect, or join the others, and list the tools."""
        others = list(self._connections.values())
        connection = others[0] if self._shared and others else Connection(self._target(row, seed))
        self._connections[session] = connection
        connection.sessions += 1
        return await connection.tools()

    def _target(self, row: Any, seed: int) -> Any:
        if self._url:
            return self._url
        own = {} if self._shared else {"SAMEPATH_ROW": json.dumps(row), "SAMEPATH_SEED": str(seed)}
        program, *arguments = self._command
        return StdioServerParameters(
            command=sys.executable if program == "{python}" else program,
            args=arguments,
            env={**self._environment, **own},
        )

    async def call(self, session: int, name: str, arguments: "dict[str, Any]", turn: int) -> "dict[str, str]":
        """Run a tool."""
        return await self._connections[session].call(name, arguments)

    async def close(self, session: int) -> None:
        """Leave the connection; the last one closes it."""
        connection = self._connections.pop(session, None)
        if connection is not None:
            connection.sessions -= 1
            if connection.sessions == 0:
                await connection.close()


async def listed(client: Client) -> "list[Any]":
    """All pages of the server's list of tools."""
    tools: list[Any] = []
    cursor = None
    for _ in range(MAX_TOOLS_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None:
            return tools
    raise ServerGoneError(f"the server's list of tools has no end: {len(tools)} on {MAX_TOOLS_PAGES} pages")


def described(tool: Any) -> "dict[str, Any]":
    """A tool as the model is shown it."""
    return {"name": tool.name, "description": tool.description or "", "parameters": dict(tool.input_schema)}


def text_of(blocks: "Iterable[Any]") -> str:
    """What a model can read of a result; of what is no text it is told the kind."""
    text = "\n".join(text_of_block(block) for block in blocks)
    return (
        text
        if len(text) <= MAX_RESULT_CHARS
        else f"{text[: MAX_RESULT_CHARS - 50]} … [cut: {len(text)} characters in all]"
    )


def text_of_block(block: Any) -> str:
    """One block of a result."""
    if block.type == "text":
        return str(block.text)
    if block.type == "resource" and hasattr(block.resource, "text"):
        return str(block.resource.text)
    if block.type == "resource_link":
        return f"[{block.name}: {block.uri}]"
    holder = block.resource if block.type == "resource" else block
    return f"[{block.type}, {getattr(holder, 'mime_type', None) or 'of unknown type'}, not shown]"
