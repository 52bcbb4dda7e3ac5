"""Servers of the Model Context Protocol (https://modelcontextprotocol.io), and their tools as ours.

A server is somebody else's program. What it says - names, descriptions, schemas, results - is data, cut to size; it
sees none of the environment but what is configured, and it ends when we do. Whether a tool changes something is what
the server says of it, and so counts only where its answer is that it doesn't.
"""

from __future__ import annotations

import asyncio
import logging
import re
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING, Any

import msgspec

from timeline.cognition.tools import Tool, ToolResult, Workspace
from timeline.errors import ToolError

if TYPE_CHECKING:
    from mcp import Client
    from mcp.types import CallToolResult
    from mcp.types import Tool as Offered

    from timeline.config import ResolvedServer

__all__ = ["Connection", "McpTool", "serving"]

STARTING_SECONDS = 20.0
ENDING_SECONDS = 8.0
"""More than the SDK takes to end a process that doesn't want to."""
MOST_TOOLS = 100
LARGEST_SCHEMA = 50_000
"""Characters of a tool's JSON Schema: it goes to the model with every request."""
LONGEST_DESCRIPTION = 1_000
LONGEST_NAME = 64


class Connection:
    """A server, from when it is started until it is closed.

    Args:
        server: Its settings.
        starting_seconds: How long it may take to say what it offers.

    Attributes:
        name: As configured.
        tools: What it offers.
        problem: Why it can't be used, or what of it can't.
    """

    def __init__(self, server: ResolvedServer, *, starting_seconds: float = STARTING_SECONDS) -> None:
        self.name = server.name
        self.tools: tuple[McpTool, ...] = ()
        self.problem: str | None = None
        self._server = server
        self._starting_seconds = starting_seconds
        self._closing = asyncio.Event()
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start the server and ask what it offers; sets `problem` where that fails."""
        # The SDK wants to be entered and left by one and the same task.
        self._task = asyncio.create_task(self._serve())
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait((self._task, ready), timeout=self._starting_seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if not self._ready.is_set() and self.problem is None:
            self.problem = (
                f"it didn't say within {self._starting_seconds:g} seconds what it offers: check tools.mcp.{self.name}"
            )
            self._task.cancel()

    async def close(self) -> None:
        """End the server, or our part of it."""
        self._closing.set()
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=ENDING_SECONDS)
            self._task.cancel()

    async def _serve(self) -> None:
        with tempfile.TemporaryFile("w+", errors="replace") as said:
            task = asyncio.ensure_future(self._connected(said))
            try:
                await asyncio.wait((task,))
            except asyncio.CancelledError:
                task.cancel()
                await asyncio.wait((task,), timeout=ENDING_SECONDS)
                raise
            exc = None if task.cancelled() else task.exception()
            if exc is not None and not self._ready.is_set():
                self.problem = f"it can't be used ({_cause(exc)}{_last_words(said)}): check tools.mcp.{self.name}"

    async def _connected(self, said: IO[str]) -> None:
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(await _client(self._server, said, stack))
            self.tools, self.problem = _ours(self._server, client, await _offered(client))
            self._ready.set()
            await self._closing.wait()


@asynccontextmanager
async def serving(servers: Sequence[ResolvedServer]) -> AsyncIterator[list[Connection]]:
    """The servers, running; one that can't be used says why.

    Args:
        servers: Their settings.
    """
    connections = [Connection(server) for server in servers]
    if find_spec("mcp") is None:
        for connection in connections:
            connection.problem = "the SDK isn't installed: pip install 'llm-timeline[mcp]'"
        yield connections
        return
    try:
        await asyncio.gather(*(connection.open() for connection in connections))
        yield connections
    finally:
        await asyncio.gather(*(connection.close() for connection in connections))


async def _client(server: ResolvedServer, said: IO[str], stack: AsyncExitStack) -> Client:
    from mcp import Client, StdioServerParameters, stdio_client

    # Its warnings would go to the terminal; what fails is told by whoever asked.
    logging.getLogger("mcp").addHandler(logging.NullHandler())
    if server.command is not None:
        parameters = StdioServerParameters(
            command=server.command[0],
            args=list(server.command[1:]),
            env=server.env,
            cwd=server.cwd,
            encoding_error_handler="replace",
        )
        transport: Any = stdio_client(parameters, errlog=said)
    else:
        from mcp.client.streamable_http import streamable_http_client
        from mcp.shared._httpx_utils import create_mcp_http_client

        client = await stack.enter_async_context(create_mcp_http_client(headers=server.headers))
        transport = streamable_http_client(server.url or "", http_client=client)
    return Client(transport, read_timeout_seconds=server.timeout)


async def _offered(client: Client) -> list[Offered]:
    found: list[Offered] = []
    cursor = None
    while len(found) <= MOST_TOOLS:
        page = await client.list_tools(cursor=cursor)
        found += page.tools
        cursor = page.next_cursor
        if cursor is None:
            break
    return found


def _ours(server: ResolvedServer, client: Client, offered: Sequence[Offered]) -> tuple[tuple[McpTool, ...], str | None]:
    """The server's tools as ours, and which of them can't be."""
    tools: dict[str, McpTool] = {}
    left_out = [tool.name[:LONGEST_NAME] for tool in offered[MOST_TOOLS:]]
    for tool in offered[:MOST_TOOLS]:
        name = re.sub(r"[^a-zA-Z0-9_-]", "_", f"{server.name}_{tool.name}")[:LONGEST_NAME]
        schema = tool.input_schema
        try:
            size = len(msgspec.json.encode(schema))
        except (TypeError, ValueError, RecursionError):
            size = LARGEST_SCHEMA + 1
        if name in tools or size > LARGEST_SCHEMA or schema.get("type") != "object":
            left_out.append(tool.name[:LONGEST_NAME])
            continue
        tools[name] = McpTool(name, tool, client, server)
    problem = f"left out for their name, schema or number: {', '.join(left_out[:10])}" if left_out else None
    return tuple(tools.values()), problem


class McpTool(Tool):
    """A server's tool.

    Args:
        name: Beginning with the server's.
        offered: As the server describes it.
        client: Reaches the server.
        server: Its settings.
    """

    def __init__(self, name: str, offered: Offered, client: Client, server: ResolvedServer) -> None:
        self.name = name
        described = " ".join((offered.description or offered.title or offered.name)[: 4 * LONGEST_DESCRIPTION].split())
        self.description = described[:LONGEST_DESCRIPTION]
        self.parameters = offered.input_schema
        read_only = offered.annotations is not None and offered.annotations.read_only_hint is True
        self.changes = server.confirm and not read_only
        # The SDK's own limit ends it first, and tells the server.
        self.timeout_seconds = server.timeout + 1
        self._called = offered.name
        self._client = client
        self._server = server

    async def run(self, arguments: dict[str, Any], workspace: Workspace) -> ToolResult:  # noqa: ARG002 - it sees nothing of ours
        """Have the server do it."""
        from mcp import MCPError
        from pydantic import ValidationError

        try:
            result = await self._client.call_tool(self._called, arguments)
        except MCPError as exc:
            msg = f"the MCP server {self._server.name} answered with an error: {exc.message[:500]}"
            raise ToolError(msg) from None
        except (ValidationError, RuntimeError) as exc:
            msg = f"the MCP server {self._server.name} gave no sound answer ({type(exc).__name__}): try another tool"
            raise ToolError(msg) from None
        text = _text(result)
        if result.is_error:
            raise ToolError(text[:2_000] or f"{self.name} failed and didn't say why: try another tool")
        return ToolResult(text)


def _text(result: CallToolResult) -> str:
    """What a model is told of a result; of what isn't text, that it is there."""
    parts = []
    for block in result.content:
        if block.type == "text":
            parts.append(block.text)
        elif block.type == "resource" and hasattr(block.resource, "text"):
            parts.append(block.resource.text)
        else:
            parts.append(f"[{block.type} left out]")
    if not parts and result.structured_content is not None:
        return msgspec.json.encode(result.structured_content).decode()
    return "\n".join(parts)


def _cause(exc: BaseException) -> str:
    """The innermost reason, in a few words; of what isn't the system's or the protocol's, only the type."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    words = exc.strerror if isinstance(exc, OSError) else getattr(exc, "message", None)
    name = type(exc).__name__
    return f"{name}: {' '.join(words.split())[:200]}" if isinstance(words, str) and words else name


def _last_words(said: IO[str]) -> str:
    """The last line that a server's program wrote for people."""
    said.seek(0, 2)
    said.seek(max(0, said.tell() - 2_000))
    lines = [line.strip() for line in said.read().splitlines() if line.strip()]
    return f"; it said: {lines[-1][:200]}" if lines else ""
