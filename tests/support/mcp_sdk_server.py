"""A server of the SDK's own by streamable HTTP: `python mcp_sdk_server.py PORT`."""

from __future__ import annotations

import sys

from mcp.server.mcpserver import MCPServer

server = MCPServer("sdk")


@server.tool()
def greet(who: str) -> str:
    """Greets somebody."""
    return f"Hello {who}!"


if __name__ == "__main__":
    server.run("streamable-http", port=int(sys.argv[1]))
