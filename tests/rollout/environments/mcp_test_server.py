"""A real MCP server with good tools and bad ones: over its standard streams, or with `http` over a free port, which it prints."""

import asyncio
import json
import os
import signal
import socket
import sys

if json.loads(os.environ.get("SAMEPATH_ROW", "{}")).get("shop") == "closed":
    sys.exit("this shop is closed")

from mcp.server.mcpserver import MCPServer
from mcp_types import ImageContent, TextContent

server = MCPServer("shop")
prices = {"apple": 3, "pear": 4}


@server.tool()
def price(item: str) -> int:
    """Price of one item."""
    return prices[item]


@server.tool()
def set_price(item: str, value: int) -> str:
    """Change a price."""
    prices[item] = value
    return "done"


@server.tool()
def variable(key: str) -> str:
    """A variable of the server."""
    return os.environ.get(key, "not set")


@server.tool()
async def hang() -> str:
    """Never returns."""
    await asyncio.Event().wait()
    return ""


@server.tool()
async def die() -> str:
    """Ends the server."""
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


@server.tool()
def flood(length: int) -> str:
    """A long result, and as much on the error stream."""
    sys.stderr.write("e" * length)
    return "x" * length


@server.tool()
def picture() -> list[TextContent | ImageContent]:
    """Text and bytes."""
    return [TextContent(type="text", text="a dot:"), ImageContent(type="image", data="AAAA", mime_type="image/png")]


if sys.argv[1:] == ["http"]:
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    asyncio.run(uvicorn.Server(uvicorn.Config(server.streamable_http_app(), log_level="critical")).serve([listener]))
else:
    server.run("stdio")
