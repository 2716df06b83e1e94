#!/usr/bin/env python3
"""The chain of custody, end to end, on real calls: what `make demo` runs. Standard library only.

One ledger and two gateways, a workspace each, stand in front of two real MCP servers; an official client calls them; the
ledger is killed and comes back; then a stranger, who has the copied archive and the audit policy and nothing else, checks.
The demo believes nobody: what the client saw is compared, call by call, with what the archive says.

Leaves demo-run/archive/, demo-run/policy.json, demo-run/known-checkpoint, demo-run/evidence/ and demo-run/report.txt. Ends by
itself, and ends what it started.
"""

import collections
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from parts import (
    ALLOW_ALL, BIN, NODE, NODE_ENVIRONMENT, NODE_MODULES, PATIENCE_S, PYTHON, ROOT, Gateway, Ledger, Member, accepts, asked, free_port, kill,
    must, note, records, run, start, step, wait_until, whole, work_in,
)  # fmt: skip

RUN = ROOT / "demo-run"
WORK = RUN / "work"
# Calls of the stream during which the ledger dies: killed after the first third, started again after the second.
STREAM = 300
# Stands in the arguments of calls, and so in results; it must stand nowhere else.
MARK = "only-the-tool-may-know"
# Nobody reads the environment of a server, which may hold secrets.
NO_ENVIRONMENT = """[[rules]]
id = "no-environment"
effect = "deny"
everyone = true
tools = ["everything/get-env"]

"""
# Of the call that outlives its client: after this much progress of three its client is killed.
PROGRESS = 2


class Client:
    """A process of tests/demo/client.py, and what it saw."""

    seen = collections.defaultdict(collections.Counter)

    def __init__(self, gateway, plan, *arguments):
        self.gateway = gateway
        command = [PYTHON, ROOT / "tests" / "demo" / "client.py", plan, gateway.url(gateway.name), *arguments]
        environment = os.environ | {"MARK": MARK, "CUSTODY_TOKEN": gateway.members[0].token}
        self.child = start(f"client-{plan}", command, stdout=subprocess.PIPE, text=True, env=environment)

    def lines(self):
        for line in self.child.stdout:
            said = json.loads(line)
            if "ended" in said:
                Client.seen[self.gateway.name][said.get("tool", said.get("method")), said["ended"]] += 1
            yield said

    def finish(self):
        calls = sum("ended" in said for said in self.lines())
        must(self.child.wait(PATIENCE_S) == 0, f"{self.child.name} failed; see {WORK}/{self.child.name}.log")
        return calls


# ------------------------------------------------------------------------------------------------ what is shown


def calls(ledger, everything, files, folder):
    step("1. Calls: an official client (Python `mcp`) calls both servers, each through its gateway")
    clients = [Client(everything, "everything"), Client(files, "files", folder)]
    made = sum(client.finish() for client in clients)
    note(f"{made} calls ended: good ones, failing ones, and one of 3 s that reported its progress")
    tried = Client(everything, "refused").finish()
    note(f"an agent tried {tried} times to read the server's environment, which the policy forbids")

    step("2. A client dies: SIGKILL in the middle of a call of 6 s")
    client = Client(everything, "hang")
    must(any(said.get("progress") == PROGRESS for said in client.lines()), "the slow call made no progress")
    kill(client.child)
    note("a disconnect is no cancellation, so the call goes on; that it has begun is with the ledger already")

    step("3. Cut: somebody wants evidence now, so the open segments are sealed and archived")
    note(ledger.command("cut").strip())
    shutil.copytree(ledger.dir / "archive", WORK / "older")

    step("4. The ledger dies: SIGKILL in the middle of calls, which go on without it, and it comes back")
    client = Client(files, "files", folder)
    stream = Client(everything, "stream", STREAM)
    without = 0
    for said in stream.lines():
        count = Client.seen[everything.name]["echo", "ok"]
        if "ended" not in said:
            continue
        without += ledger.child.poll() is not None
        if count == 6 + STREAM // 3:
            kill(ledger.child)
        if count == 6 + 2 * STREAM // 3:
            ledger.serve()
    must(stream.child.wait(PATIENCE_S) == 0, "the client saw the ledger's death")
    client.finish()
    note(f"{without} calls ended while there was no ledger; the gateways kept their records, signed, on their own disks")


def searches(ledger, everything):
    step("6. Four questions to the ledger, with an analyst's token; each is on record before it is answered")
    token = WORK / "analyst.token"
    ledger.command("token", "add", "analyst", "--role", "analyst", "--out", token)
    os.environ["CUSTODY_API_TOKEN"] = token.read_text().strip()
    seen = sum(count for (tool, _), count in Client.seen[everything.name].items() if tool == "echo")
    member = everything.members[0].id
    echoed = ledger.command("search", f"workspace:everything tool:echo member:{member}", "--count").strip()
    note(f"how often did this member call echo?  {echoed}")
    must(echoed == str(seen), f"the client called echo {seen} times")
    failed = ledger.command("search", "kind:call -outcome:ok", "--facet", "outcome", "--facet", "tool")
    note("what did not end well, and where?\n" + failed.strip())
    slow = ledger.command("search", "kind:call duration:>1s", "--limit", "3")
    note("what took more than a second?\n" + slow.strip())
    alarms = ("search", "alarm:denied-burst since:1h", "--alarms")
    wait_until("the refused calls raise an alarm", lambda: member in ledger.command(*alarms), ledger.child)
    note("what is out of the ordinary?\n" + ledger.command(*alarms).strip())
    alarm = json.loads(ledger.command(*alarms, "--json").splitlines()[0])
    note(ledger.command("replay").strip())

    auditor = WORK / "auditor.token"
    ledger.command("token", "add", "auditor", "--role", "auditor", "--out", auditor)
    os.environ["CUSTODY_API_TOKEN"] = auditor.read_text().strip()
    causes, file = RUN / "evidence" / "refused-calls", RUN / "evidence" / "alarm.tlog-proof"
    proven = ledger.command("search", f"workspace:everything decision:denied member:{member}", "--evidence", causes)
    note("evidence of the refused calls, and of the alarm itself:\n" + proven.splitlines()[0])
    note(ledger.command("show", f"ledger/{alarm['position']}", "--evidence", file).strip().splitlines()[-1])
    del os.environ["CUSTODY_API_TOKEN"]


def hand_over(ledger, gateways):
    step("5. The gateways end: they sign what they hold, ship it, and close their epochs")
    for gateway in gateways:
        gateway.end()
    note(ledger.command("cut").strip())
    searches(ledger, gateways[0])
    status = json.loads(ledger.command("status", "--json"))
    must(status["alarms"] == [], f"alarms: {status['alarms']}")
    with urllib.request.urlopen(f"http://127.0.0.1:{ledger.http}/log/checkpoint", timeout=PATIENCE_S) as answer:
        (RUN / "known-checkpoint").write_bytes(answer.read())
    shutil.copytree(ledger.dir / "archive", RUN / "archive")
    shutil.copy(ledger.dir / "policy.json", RUN / "policy.json")
    step("7. Archive, audit policy and the log's checkpoint are copied away; the ledger ends, and nobody of ours is asked any more")
    code = kill(ledger.child, signal.SIGTERM)
    must(code == 0, f"the ledger ended with {code}; see {WORK}/ledger.log")
    return {workspace["name"]: workspace["positions"] for workspace in status["workspaces"]}


def verify(archive, expect, known=()):
    more = [word for file in known for word in ("--known", file)]
    done = run(BIN / "verifier", "verify", archive, "--policy", RUN / "policy.json", "--json", *more, expect=(0, 1, 2))
    report = json.loads(done.stdout)
    must(done.returncode == expect, f"verifier ended with {done.returncode}, not {expect}:\n{done.stdout}{done.stderr}")
    return report


def conclusion(text):
    return " ".join(re.search(r"CONCLUSION\n(.*?)\n\n", text, re.S).group(1).split())


def stranger(gateways, positions):
    step("8. A stranger verifies the copy, offline: verifier verify demo-run/archive --policy ... --known ...")
    known = ["--known", RUN / "known-checkpoint"]
    text = run(BIN / "verifier", "verify", RUN / "archive", "--policy", RUN / "policy.json", *known).stdout
    (RUN / "report.txt").write_text(text)
    note(conclusion(text))
    report = verify(RUN / "archive", 0, [RUN / "known-checkpoint"])
    for claim in report["claims"]:
        because = "" if claim["state"] == "verified" else f" ({claim['reason']})"
        note(f"{claim['state']:10} {claim['claim']}{because}")
    must(report["faults"] == [], "a fault in an archive that nobody touched")

    step("9. Nothing is missing: every call that a client saw end is in the archive, with the same end")
    return {gateway.name: compare(gateway, positions[gateway.name]) for gateway in gateways}


def compare(gateway, count):
    """Compares what clients saw with what the archive says of this gateway; the records."""
    found, shown = records(RUN / "archive", RUN / "policy.json", gateway.name)
    must(len(found) == count, "the archive has not the positions that the ledger gave")
    must(MARK not in shown, "an argument of a call stands in the records")
    ended = collections.Counter()
    intents, outcomes = set(), set()
    for record in found:
        call = record["record"]
        if record["kind"] != "call":
            continue
        name = (record["epoch"], call["call_number"])
        if call["phase"] == "intent":
            intents.add(name)
            continue
        outcomes.add(name)
        ended[asked(call), call["outcome"]] += 1
    missing = Client.seen[gateway.name] - ended
    must(not missing, f"{gateway.name}: the archive lacks {dict(missing)}; it has {dict(ended)}")
    must(intents <= outcomes, f"{gateway.name}: calls begun and never ended: {sorted(intents - outcomes)}")
    others = ended - Client.seen[gateway.name]
    note(
        f"{gateway.name}: {len(found)} records; {sum(Client.seen[gateway.name].values())} calls as their clients saw them, "
        f"{sum(others.values())} more (sessions, listings, the killed call), {len(intents)} of them recorded as begun before they ended"
    )
    return found


def survivor(found):
    """The call whose client was killed: the second slow one."""
    phases = collections.defaultdict(dict)
    for record in found:
        if record["kind"] == "call" and record["record"].get("tool") == "trigger-long-running-operation":
            phases[record["epoch"], record["record"]["call_number"]][record["record"]["phase"]] = record
    killed = sorted(phases.values(), key=lambda of_call: of_call["intent"]["position"])[-1]
    begun, ended = killed["intent"], killed["outcome"]
    note(
        f"the call whose client was killed: begun at position {begun['position']}, ended at {ended['position']} as "
        f"`{ended['record']['outcome']}`"
    )


def evidence(gateway, found):
    slow = [
        record
        for record in found
        if record["kind"] == "call"
        and record["record"].get("tool") == "trigger-long-running-operation"
        and record["record"]["phase"] != "intent"
    ]
    must(slow, "no record of the slow call")
    position = slow[0]["position"]
    what = f"{gateway.name}/{position}"
    step(f"10. Evidence of one call, the slow one at {what}: one file, which shows no other record")
    file = RUN / "evidence" / f"{gateway.name}-{position}.evidence"
    run(BIN / "verifier", "evidence", "make", RUN / "archive", "--policy", RUN / "policy.json", what, "--out", file)
    checked = run(BIN / "verifier", "evidence", "check", file, "--policy", RUN / "policy.json").stdout
    note(f"{file.relative_to(ROOT)}, {file.stat().st_size} bytes: {conclusion(checked)}")
    for handed in ("refused-calls", "alarm.tlog-proof"):
        run(BIN / "verifier", "evidence", "check", RUN / "evidence" / handed, "--policy", RUN / "policy.json")
    note("so is what the ledger handed out about the alarm and the calls that raised it: VERIFIED by the same policy")


def lies():
    step("11. A lie: one bit of one byte in a copy of the archive is changed")
    copy = WORK / "changed"
    shutil.copytree(RUN / "archive", copy)
    segments = sorted(copy.glob("workspaces/*/segments/*"), key=lambda path: path.stat().st_size)
    target = segments[-1]
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 1
    os.chmod(target, 0o644)
    target.write_bytes(data)
    report = verify(copy, 1)
    fault = report["faults"][0]
    must(report["first_failing_check"], "no check is named")
    note(f"REFUTED, exit code 1: {report['first_failing_check']} in {fault['place']}")
    note(f"expected {fault['expected']}")
    note(f"found    {fault['found']}")

    step("12. Another lie: an older copy, valid in itself, is shown as if it were all there is")
    verify(WORK / "older", 0)
    report = verify(WORK / "older", 1, [RUN / "known-checkpoint"])
    note(f"REFUTED by the checkpoint that the stranger holds, exit code 1: {report['first_failing_check']}")


def silent():
    """No program of ours wrote an argument or a result of a call anywhere: store, spools, logs."""
    theirs = ("files", "server-everything.log")
    for path in WORK.rglob("*"):
        if path.is_file() and path.relative_to(WORK).parts[0] not in theirs:
            must(MARK.encode() not in path.read_bytes(), f"an argument of a call stands in {path}")


def main():
    shutil.rmtree(RUN, ignore_errors=True)
    work_in(WORK)
    folder = WORK / "files"
    folder.mkdir()

    step("0. A ledger with its own keys; two workspaces; a gateway in each, before a real MCP server")
    ledger = Ledger()
    note(next(line for line in ledger.init().splitlines() if "ingerprint" in line).strip())
    ledger.serve()
    servers = NODE_MODULES / "@modelcontextprotocol"
    port = free_port()
    server = start(
        "server-everything",
        [NODE, servers / "server-everything" / "dist" / "index.js", "streamableHttp"],
        env=NODE_ENVIRONMENT | {"PORT": str(port)},
    )
    stdio = json.dumps([str(NODE), str(servers / "server-filesystem" / "dist" / "index.js"), str(folder)])
    member = Member()
    everything = Gateway("everything", ledger, {"everything": f'url = "http://127.0.0.1:{port}/mcp"'}, [member])
    files = Gateway("files", ledger, {"files": f"command = {stdio}"}, [member])
    everything.allow([member], NO_ENVIRONMENT + ALLOW_ALL)
    for gateway in (everything, files):
        gateway.enrol()
    wait_until("server-everything listens", lambda: accepts(port), server)
    for gateway in (everything, files):
        gateway.serve()
        note(f"workspace {gateway.workspace} `{gateway.name}`: gateway {gateway.id}")

    calls(ledger, everything, files, folder)
    positions = hand_over(ledger, (everything, files))
    found = stranger((everything, files), positions)
    survivor(found["everything"])
    evidence(everything, found["everything"])
    lies()
    silent()
    shutil.rmtree(WORK)
    step("Done. demo-run/ has archive/, policy.json, known-checkpoint, evidence/ and report.txt, for somebody who does not trust you")


if __name__ == "__main__":
    whole("demo", main)
