"""A server on the official SDK that tells what it can read. It speaks both eras over stdio."""

from mcp.server import MCPServer

server = MCPServer("confined")


@server.tool()
def look(path: str) -> str:
    """What stands in a file, or why it cannot be read."""
    try:
        with open(path) as file:
            return file.read()
    except OSError as why:
        return type(why).__name__


server.run("stdio")
