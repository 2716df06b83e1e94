"""A server on the official Python SDK: a sum, a failing tool, and a slow one that reports its progress.

    reference.py both PORT      2026-07-28 and 2025-11-25, at http://localhost:PORT/mcp
    reference.py legacy PORT    as a server that knows 2025-11-25 alone
"""

import asyncio
import sys

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.shared.exceptions import MCPError
from mcp.types import METHOD_NOT_FOUND


async def knows_no_discovery(context, call_next):
    """What begins the newer revision is an unknown method to a server of the older one."""
    if context.method == "server/discover":
        raise MCPError(METHOD_NOT_FOUND, "there is no such method")
    return await call_next(context)


era, port = sys.argv[1:]
server = MCPServer(f"custody-reference-{era}", middleware=[knows_no_discovery] if era == "legacy" else [])


@server.tool()
def add(a: int, b: int) -> int:
    """The sum."""
    return a + b


@server.tool()
def fail() -> str:
    """Fails."""
    raise ValueError("this tool fails")


@server.tool()
async def work(steps: int, context: Context) -> str:
    """Says after each step that it is done."""
    for step in range(steps):
        await asyncio.sleep(0.05)
        await context.report_progress(step + 1, steps)
    return f"{steps} steps"


server.run("streamable-http", host="127.0.0.1", port=int(port))
