#!/usr/bin/env python3
"""Official clients, unchanged, call official servers through one gateway-shim. Standard library only.

Every client of `CLIENTS` visits every server of `plan`, and all of them at once at the one address that they have together: it begins, lists the tools, calls some (one of them slow, with progress),
and says what it saw, a JSON line each: {server, protocol, tools} and {server, tool, ended, progress}. What they saw is then held
against the archive, call by call: by member, server, tool and end; and the other way round, so that no record is of a call that
nobody made. Ends with 1 if they differ.
"""

import collections
import concurrent.futures
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from parts import (
    NODE, NODE_ENVIRONMENT, NODE_MODULES, PYTHON, ROOT, Gateway, Ledger, Member, end_all, ended, free_port, must, note, start, step,
    wait_said, whole, work_in,
)  # fmt: skip

PACKAGES = Path(os.environ.get("CUSTODY_CONFORMANCE_DIR", ROOT / ".cache" / "conformance")) / "node_modules"
INSPECTOR = PACKAGES / "@modelcontextprotocol" / "inspector" / "clients" / "launcher" / "build" / "index.js"
# Seconds of one client: far more than it takes on a busy machine.
CLIENT_SECONDS_MAX = 120
# Inspectors at a time: each is a process for one request.
INSPECTORS_MAX = 4
# Stands in the arguments of calls, and so in results; it must stand in no record.
MARK = "only-the-tool-may-know"
# The one address of all servers; tools are named `SERVER__TOOL` there.
ALL = "all"
BETWEEN = "__"
# Which revision a client speaks with a server that knows both.
NEWEST = {"python": "2026-07-28", "v1": "2025-11-25", "v2": "2026-07-28"}
# Servers that know both; the others know 2025-11-25 alone.
BOTH = {"python-both"}


def plan(gateway, folder):
    """What there is to be done at each server. The first call is what the Inspector does as well."""
    everything = [
        ["echo", {"message": MARK}],
        ["trigger-long-running-operation", {"duration": 1, "steps": 2}],
        ["get-structured-content", {"location": "Atlantis"}],
        ["no-such-tool", {}],
    ]
    files = [
        ["list_directory", {"path": str(folder)}],
        ["read_text_file", {"path": str(folder / "note.txt")}],
        ["read_text_file", {"path": "/etc/passwd"}],
    ]
    python = [["add", {"a": 1, "b": 2}], ["work", {"steps": 3}], ["fail", {}]]
    calls = {
        "everything-http": everything,
        "everything-stdio": everything,
        "files": files,
        "python-both": python,
        "python-legacy": python,
    }
    todo = {server: {"url": gateway.url(server), "calls": todo} for server, todo in calls.items()}
    some = ["everything-http", "files", "python-both"]
    together = [[f"{server}{BETWEEN}{tool}", given] for server in some for tool, given in calls[server]]
    return todo | {ALL: {"url": gateway.url("").rstrip("/"), "calls": together}}


def at(line):
    """Server and tool of a call, as the server's own."""
    return tuple(line["tool"].split(BETWEEN, 1)) if line["server"] == ALL else (line["server"], line["tool"])


# Offered to clients alone that have roots.
OF_ROOTS = {"get-roots-list"}
# Steps that a client is told of, of the tools that say how far they are.
STEPS = {"trigger-long-running-operation": [[1, 2], [2, 2]], "work": [[1, 3], [2, 3], [3, 3]]}


class Client:
    """A process that does the whole plan, and what it saw."""

    def __init__(self, name, command, todo, **options):
        self.name, self.member, self.todo, self.command, self.options = name, Member(), todo, command, options

    def visit(self):
        environment = self.options.get("env", dict(os.environ)) | {"CUSTODY_TOKEN": self.member.token}
        child = start(
            f"client-{self.name}", [*self.command, json.dumps(self.todo)], stdout=subprocess.PIPE, text=True, env=environment
        )
        said, _ = child.communicate(timeout=CLIENT_SECONDS_MAX)
        must(child.returncode == 0, f"the client {self.name} failed; see its log")
        return [json.loads(line) for line in said.splitlines()]


class Inspector:
    """The Inspector's command line, a process for each request."""

    name = "inspector"

    def __init__(self, work, todo):
        self.member, self.todo = Member(), todo
        # It keeps a file of the servers that it knows in its home.
        self.environment = NODE_ENVIRONMENT | {"HOME": str(work)}

    def ask(self, server, *words):
        command = [NODE, INSPECTOR, "--cli", self.todo[server]["url"], "--transport", "http"]
        command += ["--header", f"Authorization: Bearer {self.member.token}", *words]
        done = subprocess.run(
            [str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=CLIENT_SECONDS_MAX, env=self.environment,
        )  # fmt: skip
        must(done.returncode == 0, f"the Inspector at {server}: {done.stdout}{done.stderr}")
        return json.loads(done.stdout)

    def look(self, server):
        tools = self.ask(server, "--method", "tools/list")["tools"]
        tool, given = self.todo[server]["calls"][0]
        pairs = [word for name, value in given.items() for word in ("--tool-arg", f"{name}={value}")]
        result = self.ask(server, "--method", "tools/call", "--tool-name", tool, *pairs)
        how = "tool_error" if result.get("isError") else "ok"
        return [
            {"server": server, "tools": sorted(each["name"] for each in tools)},
            {"server": server, "tool": tool, "ended": how},
        ]

    def visit(self):
        with concurrent.futures.ThreadPoolExecutor(INSPECTORS_MAX) as several:
            return [line for lines in several.map(self.look, self.todo) for line in lines]


def servers(folder):
    """Starts those that are reached by address. The lines of the shim's configuration for each, and what to wait for."""
    theirs = NODE_MODULES / "@modelcontextprotocol"
    everything = theirs / "server-everything" / "dist" / "index.js"
    ports = {name: free_port() for name in ("everything-http", "python-both", "python-legacy")}
    environment = NODE_ENVIRONMENT | {"PORT": str(ports["everything-http"])}
    awaited = [(start("everything-http", [NODE, everything, "streamableHttp"], env=environment), "listening on port")]
    for era in ("both", "legacy"):
        reference = [PYTHON, ROOT / "tests" / "servers" / "reference.py", era, ports[f"python-{era}"]]
        awaited.append((start(f"python-{era}", reference), "Uvicorn running"))
    lines = {name: f'url = "http://127.0.0.1:{port}/mcp"' for name, port in ports.items()}
    for name, command in {
        "everything-stdio": [NODE, everything, "stdio"],
        "files": [NODE, theirs / "server-filesystem" / "dist" / "index.js", folder],
    }.items():
        lines[name] = f"command = {json.dumps([str(word) for word in command])}"
    return lines, awaited


def judge(client, said):
    """What a client saw, held against what must hold of any client."""
    calls = collections.Counter()
    for line in said:
        server = line["server"]
        if "tools" in line:
            must(line["tools"], f"{client.name} saw no tool at {server}")
            newest = NEWEST.get(client.name, line.get("protocol"))
            expected = newest if server in BOTH else line.get("protocol") and "2025-11-25"
            must(line.get("protocol") == expected, f"{client.name} spoke {line.get('protocol')} with {server}, not {expected}")
            continue
        server, tool = at(line)
        calls[server, tool, line["ended"]] += 1
        steps = STEPS.get(tool, []) if "progress" in line else line.get("progress")
        must(line.get("progress") == steps, f"{client.name} saw the progress {line.get('progress')} of {line['tool']} at {server}")
    asked = sum(len(todo["calls"]) for todo in client.todo.values()) if client.name != "inspector" else len(client.todo)
    must(sum(calls.values()) == asked, f"{client.name} made {sum(calls.values())} calls of {asked}")
    return calls


def compare(client, said, calls):
    """What a client saw, held against the records of its member."""
    seen = judge(client, said)
    tools = [call for call in calls if call["method"] == "tools/call"]
    recorded = collections.Counter((call["server"], call["tool"], call["outcome"]) for call in tools)
    must(recorded == seen, f"{client.name}: on record are {recorded - seen}, which it did not see; it saw {seen - recorded}")
    # What was answered without a server is of none.
    begun = {(call.get("server", ALL), call["method"]) for call in calls if call["outcome"] == "ok"}
    for server in client.todo:
        must((server, "tools/list") in begun, f"{client.name} listed the tools of {server}, which is on no record")
        began = {(server, "initialize"), (server, "server/discover")} & begun
        must(began, f"{client.name} began at {server}, which is on no record")
    for line in [line for line in said if line["server"] != ALL]:
        spoken = {call["protocol"] for call in tools if call["server"] == line["server"]}
        protocol = line.get("protocol")
        # At the one address, where not all servers know both, a session speaks for it.
        known = protocol in spoken and spoken <= {protocol, "2025-11-25"}
        must(protocol is None or known, f"{client.name} at {line['server']}: {protocol}, on record {spoken}")


def main():
    temporary = Path(tempfile.mkdtemp(prefix="custody-official-"))
    work = temporary / "run"
    work_in(work)
    folder = work / "files"
    folder.mkdir()
    (folder / "note.txt").write_text(f"{MARK}\n")
    (work / "node_modules").symlink_to(PACKAGES)
    shutil.copy(ROOT / "tests" / "clients" / "client.mjs", work)
    lines, awaited = servers(folder)
    ledger = Ledger()
    ledger.init()
    ledger.serve()
    gateway = Gateway("official", ledger, lines)
    todo = plan(gateway, folder)
    python = [PYTHON, ROOT / "tests" / "clients" / "client.py"]
    typescript = [NODE, work / "client.mjs"]
    clients = [
        Client("python", python, todo),
        Client("v1", [*typescript, "v1"], todo, env=NODE_ENVIRONMENT),
        Client("v2", [*typescript, "v2"], todo, env=NODE_ENVIRONMENT),
        Inspector(work, todo),
    ]
    gateway.allow([client.member for client in clients])
    gateway.enrol()
    for child, words in awaited:
        wait_said(child, words)
    gateway.serve()
    step(f"{len(clients)} clients visit {len(todo)} servers")
    with concurrent.futures.ThreadPoolExecutor(len(clients)) as at_once:
        said = list(at_once.map(lambda client: client.visit(), clients))
    gateway.end()
    found, shown = ledger.records(gateway.name)
    must(MARK not in shown, "an argument of a call stands in the records")
    for client, seen in zip(clients, said):
        compare(client, seen, [call for call in ended(found) if call.get("member") == client.member.id])
        note(f"{client.name}: {len(seen)} lines as on record")
    offered = {(line["server"], tuple(sorted(tool for tool in line["tools"] if tool.split(BETWEEN)[-1] not in OF_ROOTS))) for lines in said for line in lines if "tools" in line}
    must(len(offered) == len(todo), f"not all clients were shown the same tools: {offered}")
    step("done")
    # What runs writes on.
    end_all()
    shutil.rmtree(temporary)


if __name__ == "__main__":
    whole("official", main)
