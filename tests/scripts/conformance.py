#!/usr/bin/env python3
"""The official conformance suite against our reference servers (tests/servers/), directly and through the gateway-shim. Standard
library only.

    conformance.py [REVISION ...]       2025-11-25 and 2026-07-28, or the one that is named

docs/CONFORMANCE.md is what must come out: its tables are read here, and held against what the suite says, check by check. So a
scenario that passes no longer, a check that the shim changes, and one that it changes no longer, all end this with 1. Then one
tool is denied: the scenarios that need it fail, no other does, and the archive has these denials and no other.
"""

import collections
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from parts import (
    NODE, NODE_ENVIRONMENT, ROOT, Failed, Gateway, Ledger, free_port, kill, must, note, records, run, start, step, wait_until, whole,
    work_in,
)  # fmt: skip

DOCUMENT = ROOT / "docs" / "CONFORMANCE.md"
SERVERS = ROOT / "tests" / "servers"
PACKAGES = Path(os.environ.get("CUSTODY_CONFORMANCE_DIR", ROOT / ".cache" / "conformance")) / "node_modules"
SUITE = PACKAGES / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
REFERENCE = {"2025-11-25": "legacy", "2026-07-28": "modern"}
# Seconds of one run of the suite: far more than it takes on a busy machine.
SUITE_SECONDS_MAX = 300


class Run:
    """One run of the suite: what it says of each check of each scenario, in its order."""

    def __init__(self, work, name, revision, url, token=None):
        self.dir = work / f"suite-{name}"
        command = [NODE, "--import", SERVERS / "bearer.mjs", SUITE, "server"]
        command += ["--url", url, "--requirements", revision, "--output-dir", self.dir]
        self.child = start(f"suite-{name}", command, env=NODE_ENVIRONMENT | {"CUSTODY_BEARER": token or "nobody"})

    def checks(self):
        # It ends with 1 as soon as a scenario fails; which may fail is said in the document.
        code = self.child.wait(SUITE_SECONDS_MAX)
        must(code in (0, 1), f"{self.child.name} ended with {code}")
        found = {}
        for file in sorted(self.dir.glob("server-*/checks.json")):
            scenario = re.fullmatch(r"server-(.*)-\d{4}-\d\d-\d\dT[\d-]+Z", file.parent.name).group(1)
            found[scenario] = json.loads(file.read_text())
        must(found, f"{self.child.name} ran no scenario")
        return found


def main():
    revisions = sys.argv[1:] or list(REFERENCE)
    work = Path(tempfile.mkdtemp(prefix="custody-conformance-"))
    work_in(work / "run")
    work = work / "run"
    (work / "node_modules").symlink_to(PACKAGES)
    for file in SERVERS.glob("*.mjs"):
        shutil.copy(file, work)
    ledger = Ledger()
    ledger.init()
    ledger.serve()
    for revision in revisions:
        reference = REFERENCE[revision]
        ports = [free_port(), free_port()]
        for port in ports:
            server = start(f"{reference}-{port}", [NODE, work / f"{reference}.mjs", port], env=NODE_ENVIRONMENT)
            log = work / f"{reference}-{port}.log"
            wait_until(f"{reference} listens", lambda: "listening" in log.read_text(), server)
        gateway = Gateway(reference, ledger, {reference: f'url = "http://localhost:{ports[1]}/mcp"'})
        gateway.enrol()
        gateway.serve()
        directly = Run(work, f"{reference}-directly", revision, f"http://localhost:{ports[0]}/mcp")
        through = Run(work, f"{reference}-through", revision, gateway.url(reference))
        a, b = directly.checks(), through.checks()
        for scenario in sorted(a.keys() | b.keys()):
            x = [(c["id"], c["status"]) for c in a.get(scenario, [])]
            y = [(c["id"], c["status"]) for c in b.get(scenario, [])]
            if x != y:
                print("DIFF", scenario)
                for c, d in zip(a[scenario], b[scenario]):
                    if (c["id"], c["status"]) != (d["id"], d["status"]):
                        print("   ", c["id"], c["status"], "->", d["id"], d["status"], d.get("errorMessage"))
        step(f"{revision}: {len(a)} {len(b)}")
    print(work)


if __name__ == "__main__":
    whole("conformance", main)
