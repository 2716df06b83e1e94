"""The official client, unchanged, in both eras: `client.py URL TOKEN PATH...` prints what the server reads at each path."""

import asyncio
import sys

import httpx2
import mcp
from mcp.client.streamable_http import streamable_http_client


async def main(url: str, token: str, *paths: str) -> None:
    for mode in ("auto", "legacy"):
        async with httpx2.AsyncClient(headers={"Authorization": token}, timeout=60) as http:
            async with mcp.Client(streamable_http_client(url, http_client=http), mode=mode) as client:
                for path in paths:
                    result = await client.call_tool("look", {"path": path})
                    print(client.protocol_version, result.content[0].text)


asyncio.run(main(*sys.argv[1:]))
