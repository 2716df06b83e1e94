"""The AI client of the demo: the official Python SDK, which knows nothing of Custody.

    client.py PLAN URL [ARGUMENT], with the member's token in CUSTODY_TOKEN

Prints one JSON line a call, when it ends: the tool, and how it ended for the client. run.py compares them with what the
ledger's archive says. Plans: everything, files ROOT, stream COUNT, refused, hang.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

from mcp import Client
from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client
from mcp.shared.exceptions import MCPError

# Seconds: more than the slowest call of the demo takes, so that a hanging gateway ends the demo with an error.
CALL_SECONDS_MAX = 30
# Goes into arguments: run.py looks for it where it must not be.
MARK = os.environ.get("MARK", "")


def say(**line):
    print(json.dumps(line), flush=True)


class Caller:
    """Calls tools and says how each call ended."""

    def __init__(self, client):
        self.client = client

    async def call(self, tool, **arguments):
        try:
            result = await self.client.call_tool(tool, arguments, read_timeout_seconds=CALL_SECONDS_MAX)
            ended = "tool_error" if result.is_error else "ok"
        except MCPError:
            ended = "rpc_error"
        say(tool=tool, ended=ended)

    async def read(self, resource):
        try:
            await self.client.read_resource(resource)
            ended = "ok"
        except MCPError:
            ended = "rpc_error"
        say(method="resources/read", ended=ended)


async def everything(caller):
    """Good calls, some of them at once; calls that fail in four ways; a slow one that reports its progress."""
    for number in range(6):
        await caller.call("echo", message=f"hello {MARK} {number}")
    await asyncio.gather(*(caller.call("get-sum", a=number, b=number + 1) for number in range(6)))
    await caller.call("get-sum", a="seven", b=1)
    await caller.call("no-such-tool")
    await caller.call("get-structured-content", location="Atlantis")
    await caller.read("demo://no/such/resource")

    async def progressed(progress, total, _message):
        say(progress=progress, total=total)

    result = await caller.client.call_tool(
        "trigger-long-running-operation", {"duration": 3, "steps": 3}, CALL_SECONDS_MAX, progressed
    )
    say(tool="trigger-long-running-operation", ended="tool_error" if result.is_error else "ok")


async def files(caller, root):
    """Reads, writes and lists in a folder; asks for a file that is not there, and for one that is not allowed."""
    for number in range(5):
        path = str(Path(root) / f"note-{number}.txt")
        await caller.call("write_file", path=path, content=f"note {MARK} {number}\n")
        await caller.call("read_text_file", path=path)
    await caller.call("list_directory", path=root)
    await caller.call("read_text_file", path=str(Path(root) / "missing.txt"))
    await caller.call("read_text_file", path="/etc/passwd")
    await caller.call("directory_tree", path=root)


async def stream(caller, count):
    """One call after the other: what goes on while the ledger dies and comes back."""
    for number in range(int(count)):
        await caller.call("echo", message=f"call {MARK} {number}")


async def refused(caller):
    """An agent that tries again and again what the policy forbids."""
    for _ in range(6):
        try:
            result = await caller.client.call_tool("get-env", {}, read_timeout_seconds=CALL_SECONDS_MAX)
            ended = "denied" if result.is_error else "ok"
        except MCPError:
            ended = "denied"
        say(tool="get-env", ended=ended)


async def hang(caller):
    """A call that this process does not live to see the end of."""

    async def progressed(progress, total, _message):
        say(progress=progress, total=total)

    await caller.client.call_tool(
        "trigger-long-running-operation", {"duration": 6, "steps": 3}, CALL_SECONDS_MAX, progressed
    )
    say(tool="trigger-long-running-operation", ended="ok")


async def main():
    plan, url, *rest = sys.argv[1:]
    headers = {"Authorization": f"Bearer {os.environ['CUSTODY_TOKEN']}"}
    async with create_mcp_http_client(headers=headers) as http:
        transport = streamable_http_client(url, http_client=http)
        async with Client(transport, read_timeout_seconds=CALL_SECONDS_MAX) as client:
            tools = await client.list_tools()
            say(protocol=str(client.protocol_version), tools=len(tools.tools))
            await {"everything": everything, "files": files, "stream": stream, "refused": refused, "hang": hang}[
                plan
            ](Caller(client), *rest)


asyncio.run(main())
