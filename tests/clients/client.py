"""The official Python client. What it does, and what it prints, is in tests/scripts/official.py.

    client.py PLAN, with the token in CUSTODY_TOKEN
"""

import asyncio
import json
import os
import sys

from mcp import Client
from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client
from mcp.shared.exceptions import MCPError

# Seconds: more than the slowest call takes on a busy machine.
CALL_SECONDS_MAX = 60


def say(**line):
    print(json.dumps(line), flush=True)


async def call(client, server, tool, arguments):
    steps = []

    async def progressed(progress, total, _message):
        steps.append([progress, total])

    try:
        result = await client.call_tool(tool, arguments, CALL_SECONDS_MAX, progressed)
        ended = "tool_error" if result.is_error else "ok"
    except MCPError:
        ended = "rpc_error"
    say(server=server, tool=tool, ended=ended, progress=steps)


async def visit(server, todo):
    headers = {"Authorization": f"Bearer {os.environ['CUSTODY_TOKEN']}"}
    async with create_mcp_http_client(headers=headers) as http:
        transport = streamable_http_client(todo["url"], http_client=http)
        async with Client(transport, read_timeout_seconds=CALL_SECONDS_MAX) as client:
            tools = (await client.list_tools()).tools
            say(server=server, protocol=str(client.protocol_version), tools=sorted(tool.name for tool in tools))
            for tool, arguments in todo["calls"]:
                await call(client, server, tool, arguments)


async def main():
    plan = json.loads(sys.argv[1])
    await asyncio.gather(*(visit(server, todo) for server, todo in plan.items()))


asyncio.run(main())
