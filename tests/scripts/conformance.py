#!/usr/bin/env python3
"""The official conformance suite against our reference servers (tests/servers/), directly and through the gateway-shim. Standard
library only.

    conformance.py [REVISION ...]       2025-11-25 and 2026-07-28, or the ones that are named

docs/CONFORMANCE.md is what must come out: its tables are read here and held against what the suite says, check by check. So a
scenario that no longer passes, a check that the shim changes, and one that it no longer changes all end this with 1. A member to
whom one tool is denied runs the suite as well: the scenarios that need the tool come out as the document says, no other changes, and the
archive has these refusals and no other.
"""

import collections
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from parts import (
    ALLOW_ALL, NODE, NODE_ENVIRONMENT, ROOT, Gateway, Ledger, Member, end_all, ended, free_port, must, note, start, step,
    wait_said, whole, work_in,
)  # fmt: skip

DOCUMENT = ROOT / "docs" / "CONFORMANCE.md"
SERVERS = ROOT / "tests" / "servers"
PACKAGES = Path(os.environ.get("CUSTODY_CONFORMANCE_DIR", ROOT / ".cache" / "conformance")) / "node_modules"
SUITE = PACKAGES / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
REFERENCE = {"2025-11-25": "legacy", "2026-07-28": "modern"}
# Seconds of one run of the suite: far more than it takes on a busy machine.
SUITE_SECONDS_MAX = 300
# Id of the rule by which one tool is denied.
NO_TOOL = "no-tool"


def table(heading, revision):
    """Rows of the document's table under this heading, without the column of the revision."""
    text = DOCUMENT.read_text()
    part = re.search(rf"(?ms)^## {re.escape(heading)}$(.*?)(?=^## |\Z)", text)
    must(part, f"{DOCUMENT.name} has no part `{heading}`")
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in part.group(1).splitlines() if line.startswith("|")]
    return [row[1:] for row in rows if row[0] == revision]


class Suite:
    """One run of the suite: what it says of each check of each scenario, in its order."""

    def __init__(self, work, name, revision, url, token=""):
        self.dir = work / f"suite-{name}"
        command = [NODE, "--import", SERVERS / "bearer.mjs", SUITE, "server"]
        command += ["--url", url, "--requirements", revision, "--output-dir", self.dir]
        # The suite can send no header of its own; bearer.mjs adds this one.
        self.child = start(f"suite-{name}", command, env=NODE_ENVIRONMENT | {"CUSTODY_BEARER": token})

    def checks(self):
        # It ends with 1 as soon as a scenario fails; which may fail is said in the document.
        code = self.child.wait(SUITE_SECONDS_MAX)
        must(code in (0, 1), f"{self.child.name} ended with {code}")
        found = {}
        for file in sorted(self.dir.glob("server-*/checks.json")):
            scenario = re.fullmatch(r"server-(.*)-\d{4}-\d\d-\d\dT[\d-]+Z", file.parent.name).group(1)
            found[scenario] = [(check["id"], check["status"]) for check in json.loads(file.read_text())]
        must(found, f"{self.child.name} ran no scenario")
        return found


def differing(one, other):
    """Scenario, check and both statuses, of every check that two runs do not agree on."""
    found = []
    for scenario in sorted(one.keys() | other.keys()):
        ours, theirs = one.get(scenario, []), other.get(scenario, [])
        if ours == theirs:
            continue
        # By name and count, because a failed check may be the last of its scenario.
        statuses = [collections.Counter(), collections.Counter()]
        for counted, checks in zip(statuses, (ours, theirs)):
            counted.update(checks)
        for check in sorted({name for name, _ in ours + theirs}):
            left, right = (
                " ".join(sorted(status for (name, status), times in counted.items() for _ in range(times) if name == check)) or "absent"
                for counted in statuses
            )
            if left != right:
                found.append([scenario, check, left, right])
    return found


def must_be(what, said, found):
    """What the document says, and what came out."""
    missing, more = ([row for row in one if row not in other] for one, other in ((said, found), (found, said)))
    must(said == found, f"{what}: {DOCUMENT.name} has {missing}, which is not so, and lacks {more}")


def directly(revision, checks):
    """Every scenario passes at the reference server itself."""
    failed = [(scenario, check) for scenario, of in checks.items() for check in of if check[1] in ("FAILURE", "WARNING")]
    must(not failed, f"{revision}: the reference server itself fails {failed}")
    passed = [[scenario, str(sum(status == "SUCCESS" for _, status in of))] for scenario, of in checks.items()]
    must_be(f"scenarios of {revision}", sorted(row[:2] for row in table("Scenarios", revision)), sorted(passed))
    return sum(int(count) for _, count in passed)


def refused(revision, allowed, denied, calls, members):
    """One tool is denied to one member: what changes for it, and which refusals are on record."""
    tool = denied_tool(revision)
    rows = table("One tool denied", revision)
    changed = differing(allowed, denied)
    fails = sorted({scenario for scenario, *_ in changed})
    must_be(f"scenarios of {revision} without {tool}", sorted([row[1]] for row in rows if row[2] == "fails"), [[name] for name in fails])
    better = [row for row in changed if not any(bad in row[3] for bad in ("FAILURE", "WARNING", "absent"))]
    must(not better, f"a refusal made these checks pass: {better}")
    of_rule = [call for call in calls if call.get("rule") == NO_TOOL]
    wrong = [call for call in of_rule if (call["decision"], call["member"], call["tool"]) != ("denied", members[1].id, tool)]
    must(not wrong, f"refused by the rule, and not as it says: {wrong}")
    must(len(of_rule) == sum(int(row[3]) for row in rows), f"{len(of_rule)} calls of {tool} were refused, not as {DOCUMENT.name} says")
    reached = [call for call in calls if call.get("tool") == tool and call["member"] == members[1].id and call["rule"] != NO_TOOL]
    must(not reached, f"a call of {tool} was not refused: {reached}")
    others = [
        collections.Counter((call.get("method"), call.get("tool"), call["rule"]) for call in calls if is_refusal(call, member))
        for member in members
    ]
    must(others[0] == others[1], f"what is denied anyway differs: {others[0] - others[1]}, {others[1] - others[0]}")
    return len(of_rule), sum(others[0].values())


def is_refusal(call, member):
    return call["decision"] == "denied" and call.get("member") == member.id and call["rule"] != NO_TOOL


def denied_tool(revision):
    tools = {row[0] for row in table("One tool denied", revision)}
    must(len(tools) == 1, f"{DOCUMENT.name} denies {tools} in {revision}, and must deny one tool")
    return tools.pop()


class Revision:
    """All that runs for one revision: three servers, of which two stand behind a gateway, and the suite at each."""

    def __init__(self, work, ledger, revision):
        self.name, self.reference = revision, REFERENCE[revision]
        self.work, self.ledger = work, ledger
        self.ports = [free_port() for _ in range(3)]
        self.children = [
            start(f"{self.reference}-{port}", [NODE, work / f"{self.reference}.mjs", port], env=NODE_ENVIRONMENT) for port in self.ports
        ]
        # Each run has a server of its own, because a change that one makes is told to all who listen.
        servers = {at: f'url = "http://localhost:{port}/mcp"' for at, port in zip(("allowed", "denied"), self.ports[1:])}
        self.gateway = Gateway(self.reference, ledger, servers)
        self.members = [Member(), Member()]

    def begin(self):
        rule = f'[[rules]]\nid = "{NO_TOOL}"\neffect = "deny"\nmembers = ["{self.members[1].id}"]\n'
        self.gateway.allow(self.members, f'{rule}tools = ["*/{denied_tool(self.name)}"]\n\n{ALLOW_ALL}')
        self.gateway.enrol()
        for child in self.children:
            wait_said(child, "listening")
        self.gateway.serve()
        urls = [f"http://localhost:{self.ports[0]}/mcp", self.gateway.url("allowed"), self.gateway.url("denied")]
        tokens = ["", *(member.token for member in self.members)]
        names = [f"{self.reference}-{how}" for how in ("directly", "allowed", "denied")]
        self.suites = [Suite(self.work, name, self.name, url, token) for name, url, token in zip(names, urls, tokens)]

    def log(self, port):
        return (self.work / f"{self.reference}-{port}.log").read_text()

    def judge(self):
        direct, allowed, denied = (suite.checks() for suite in self.suites)
        self.gateway.end()
        found, _ = self.ledger.records(self.gateway.name)
        passed = directly(self.name, direct)
        said = [row[:4] for row in table("Differences", self.name)]
        must_be(f"differences of {self.name}", sorted(said), differing(direct, allowed))
        refusals, others = refused(self.name, allowed, denied, ended(found), self.members)
        # The servers' own word: of the denied tool a call reached the one, and none the other.
        reached = [f"called {denied_tool(self.name)}\n" in self.log(port) for port in self.ports[1:]]
        must(reached == [True, False], f"a call of {denied_tool(self.name)} reached the servers before which it is allowed, denied: {reached}")
        step(f"{self.name}: {len(direct)} scenarios, {passed} checks; {len(said)} of them come out otherwise through the shim")
        note(f"{denied_tool(self.name)} denied: {refusals} refusals on record, and {others} of what is refused to everybody")


def main():
    work = Path(tempfile.mkdtemp(prefix="custody-conformance-")) / "run"
    work_in(work)
    (work / "node_modules").symlink_to(PACKAGES)
    for file in SERVERS.glob("*.mjs"):
        shutil.copy(file, work)
    ledger = Ledger()
    revisions = [Revision(work, ledger, revision) for revision in sys.argv[1:] or REFERENCE]
    ledger.init()
    ledger.serve()
    for revision in revisions:
        revision.begin()
    for revision in revisions:
        revision.judge()
    # What runs writes on.
    end_all()
    shutil.rmtree(work.parent)


if __name__ == "__main__":
    whole("conformance", main)
