#!/usr/bin/env python3
"""The chain of custody, end to end, on real calls: what `make demo` runs. Standard library only.

One ledger and two gateways, a workspace each, stand in front of two real MCP servers; an official client calls them; the
ledger is killed and comes back; then a stranger, who has the copied archive and the audit policy and nothing else, checks.
The demo believes nobody: what the client saw is compared, call by call, with what the archive says.

Leaves demo-run/archive/, demo-run/policy.json, demo-run/known-checkpoint, demo-run/evidence/ and demo-run/report.txt. Ends by
itself, and ends what it started.
"""

import atexit
import collections
import datetime
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "demo-run"
WORK = RUN / "work"
BIN = Path(os.environ.get("CUSTODY_BIN", ROOT / "target" / "debug"))
PYTHON = os.environ.get("CUSTODY_PYTHON", sys.executable)
NODE = Path(os.environ.get("CUSTODY_NODE_DIR", ROOT / ".cache" / "node")) / "node_modules"
ORIGIN = "demo.example/custody"
# Seconds until something that should come is given up, and with it the demo.
PATIENCE_S = 60
# Calls of the stream during which the ledger dies: killed after the first third, started again after the second.
STREAM = 300
# Stands in the arguments of calls, and so in results; it must stand nowhere else.
MARK = "only-the-tool-may-know"
# Of the call that outlives its client: after this much progress of three its client is killed.
PROGRESS = 2

STARTED = time.monotonic()
children = []


class Failed(Exception):
    """What the demo promises does not hold."""


def step(text):
    print(f"[{time.monotonic() - STARTED:5.1f} s] {text}", flush=True)


def note(text):
    print(f"          {text}", flush=True)


def must(condition, text):
    if not condition:
        raise Failed(text)


# ------------------------------------------------------------------------------------------------ processes


def start(name, command, **options):
    """A process in a group of its own, so that whatever it starts ends with it. Its words go to work/<name>.log."""
    with open(WORK / f"{name}.log", "ab") as log:
        child = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=options.pop("stdout", log),
            stderr=log,
            start_new_session=True,
            **options,
        )
    child.name = name
    children.append(child)
    return child


def kill(child, number=signal.SIGKILL):
    """Ends one process that this demo started, and waits until it has ended."""
    if child.poll() is None:
        os.kill(child.pid, number)
        try:
            child.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise Failed(f"{child.name} did not end within {PATIENCE_S} s of signal {number}") from None
    return child.returncode


def end_all():
    for child in reversed(children):
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()


def run(*command, expect=(0,)):
    """A command that ends by itself; its output. Anything but an expected exit code ends the demo."""
    words = [str(word) for word in command]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S)
    if done.returncode not in expect:
        shown = " ".join([Path(words[0]).name, *words[1:]])
        raise Failed(f"`{shown}` ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def wait_until(what, check, child=None):
    deadline = time.monotonic() + PATIENCE_S
    while not check():
        must(child is None or child.poll() is None, f"{what}: {child and child.name} ended; see {WORK}")
        must(time.monotonic() < deadline, f"{what}: not within {PATIENCE_S} s")
        time.sleep(0.05)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def accepts(port):
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answers_ok(url):
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


# ------------------------------------------------------------------------------------------------ the parts


class Ledger:
    """A ledger of its own keys, ports and folder."""

    def __init__(self):
        self.dir = WORK / "ledger"
        self.root_key = WORK / "root" / "root.key"
        self.config = self.dir / "ledger.toml"
        self.grpc, self.http = free_port(), free_port()
        self.child = None

    def init(self):
        made = run(BIN / "ledger", "init", "--dir", self.dir, "--origin", ORIGIN, "--root-key-out", self.root_key)
        self.configure(
            {"grpc": f'"127.0.0.1:{self.grpc}"', "http": f'"127.0.0.1:{self.http}"', "url": f'"https://localhost:{self.grpc}"'}
        )
        return made.stdout

    def configure(self, values):
        text = self.config.read_text()
        for key, value in values.items():
            text, count = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
            must(count == 1, f"the configuration has {count} lines for {key}")
        self.config.write_text(text)

    def serve(self):
        self.child = start("ledger", [BIN / "ledger", "serve", "--config", self.config])
        wait_until("the ledger is ready", lambda: answers_ok(f"http://127.0.0.1:{self.http}/readyz"), self.child)

    def command(self, *words):
        return run(BIN / "ledger", *words, "--config", self.config).stdout


class Gateway:
    """A gateway-shim in front of one MCP server, writing into one workspace."""

    def __init__(self, name, ledger, serve):
        self.name, self.ledger, self.serve_lines = name, ledger, serve
        self.dir = WORK / f"gateway-{name}"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/mcp/{self.name}"
        self.child = None

    def enrol(self):
        """The root signs the workspace and the gateway's key; the private key never leaves the gateway's folder."""
        self.dir.mkdir()
        said = self.ledger.command("workspace", "add", self.name, "--root-key", self.ledger.root_key)
        self.workspace = re.search(r"has the id ([0-9a-f]{32})", said).group(1)
        self.id = os.urandom(16).hex()
        (self.dir / "shim.toml").write_text(self.config())
        (self.dir / "access.toml").write_text(self.access())
        keys = ["--key", self.dir / "gateway.key", "--tls-key", self.dir / "tls.key"]
        run(BIN / "gateway-shim", "key", "new", *keys)
        run(BIN / "gateway-shim", "request", "--config", self.dir / "shim.toml", "--out", self.dir / "request.json")
        self.ledger.command(
            "gateway", "enrol", self.dir / "request.json", "--name", self.name,
            "--root-key", self.ledger.root_key, "--out", self.dir / "enrolment.json",
        )  # fmt: skip

    def access(self):
        """One member, who may call everything; of the token only the SHA-256 of its secret part is kept."""
        token, secret, self.member, agent = (os.urandom(size) for size in (16, 32, 16, 16))
        self.member, agent = self.member.hex(), agent.hex()
        self.token = f"cst_{token.hex()}_{secret.hex()}"
        now = datetime.datetime.now(datetime.timezone.utc)
        expires = now + datetime.timedelta(days=1)
        return f"""version = 1
[members.{self.member}]
[agents.{agent}]

[[rules]]
id = "everything"
effect = "allow"
members = ["{self.member}"]
tools = ["*"]
methods = ["*"]

[[tokens]]
id = "{token.hex()}"
sha256 = "{hashlib.sha256(secret).hexdigest()}"
member = "{self.member}"
agent = "{agent}"
issued_at = {now:%Y-%m-%dT%H:%M:%SZ}
expires_at = {expires:%Y-%m-%dT%H:%M:%SZ}
"""

    def config(self):
        return f"""[gateway]
origin = "{ORIGIN}"
workspace = "{self.workspace}"
id = "{self.id}"
name = "{self.name}"
key = "gateway.key"
tls_key = "tls.key"
enrolment = "enrolment.json"

[ledger]
endpoint = "https://localhost:{self.ledger.grpc}"

[spool]
dir = "spool"

[fork]
dir = "forks"

[serve]
listen = "127.0.0.1:{self.port}"
[servers.{self.name}]
{self.serve_lines}
"""

    def serve(self):
        self.child = start(f"gateway-{self.name}", [BIN / "gateway-shim", "serve", "--config", self.dir / "shim.toml"])
        wait_until(f"the gateway {self.name} listens", lambda: accepts(self.port), self.child)


class Client:
    """A process of tests/demo/client.py, and what it saw."""

    seen = collections.defaultdict(collections.Counter)

    def __init__(self, gateway, plan, *arguments):
        self.gateway = gateway
        command = [PYTHON, ROOT / "tests" / "demo" / "client.py", plan, gateway.url, *arguments]
        environment = os.environ | {"MARK": MARK, "TOKEN": gateway.token}
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


def hand_over(ledger, gateways):
    step("5. The gateways end: they sign what they hold, ship it, and close their epochs")
    for gateway in gateways:
        code = kill(gateway.child, signal.SIGTERM)
        must(code == 0, f"gateway {gateway.name} ended with {code}; see {WORK}/gateway-{gateway.name}.log")
    note(ledger.command("cut").strip())
    status = json.loads(ledger.command("status", "--json"))
    must(status["alarms"] == [], f"alarms: {status['alarms']}")
    with urllib.request.urlopen(f"http://127.0.0.1:{ledger.http}/log/checkpoint", timeout=PATIENCE_S) as answer:
        (RUN / "known-checkpoint").write_bytes(answer.read())
    shutil.copytree(ledger.dir / "archive", RUN / "archive")
    shutil.copy(ledger.dir / "policy.json", RUN / "policy.json")
    step("6. Archive, audit policy and the log's checkpoint are copied away; the ledger ends, and nobody of ours is asked any more")
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
    step("7. A stranger verifies the copy, offline: verifier verify demo-run/archive --policy ... --known ...")
    known = ["--known", RUN / "known-checkpoint"]
    text = run(BIN / "verifier", "verify", RUN / "archive", "--policy", RUN / "policy.json", *known).stdout
    (RUN / "report.txt").write_text(text)
    note(conclusion(text))
    report = verify(RUN / "archive", 0, [RUN / "known-checkpoint"])
    for claim in report["claims"]:
        because = "" if claim["state"] == "verified" else f" ({claim['reason']})"
        note(f"{claim['state']:10} {claim['claim']}{because}")
    must(report["faults"] == [], "a fault in an archive that nobody touched")

    step("8. Nothing is missing: every call that a client saw end is in the archive, with the same end")
    return {gateway.name: compare(gateway, positions[gateway.name]) for gateway in gateways}


def compare(gateway, count):
    """Compares what clients saw with what the archive says of this gateway; the records."""
    whole = f"{gateway.name}/0..{count}"
    shown = run(BIN / "verifier", "show", RUN / "archive", whole, "--policy", RUN / "policy.json", "--json").stdout
    must(MARK not in shown, "an argument of a call stands in the records")
    records = [json.loads(line) for line in shown.splitlines()]
    must([record["position"] for record in records] == list(range(count)), "the positions are not those that the ledger gave")
    ended = collections.Counter()
    intents, outcomes = set(), set()
    for record in records:
        call = record["record"]
        if record["kind"] != "call":
            continue
        name = (record["epoch"], call["call_number"])
        if call["phase"] == "intent":
            intents.add(name)
            continue
        outcomes.add(name)
        ended[call.get("tool", call.get("method")), call["outcome"]] += 1
    missing = Client.seen[gateway.name] - ended
    must(not missing, f"{gateway.name}: the archive lacks {dict(missing)}; it has {dict(ended)}")
    must(intents <= outcomes, f"{gateway.name}: calls begun and never ended: {sorted(intents - outcomes)}")
    others = ended - Client.seen[gateway.name]
    note(
        f"{gateway.name}: {len(records)} records; {sum(Client.seen[gateway.name].values())} calls as their clients saw them, "
        f"{sum(others.values())} more (sessions, listings, the killed call), {len(intents)} of them recorded as begun before they ended"
    )
    return records


def survivor(records):
    """The call whose client was killed: the second slow one."""
    phases = collections.defaultdict(dict)
    for record in records:
        if record["record"].get("tool") == "trigger-long-running-operation":
            phases[record["epoch"], record["record"]["call_number"]][record["record"]["phase"]] = record
    killed = sorted(phases.values(), key=lambda of_call: of_call["intent"]["position"])[-1]
    begun, ended = killed["intent"], killed["outcome"]
    note(
        f"the call whose client was killed: begun at position {begun['position']}, ended at {ended['position']} as "
        f"`{ended['record']['outcome']}`"
    )


def evidence(gateway, records):
    slow = [
        record
        for record in records
        if record["record"].get("tool") == "trigger-long-running-operation" and record["record"]["phase"] != "intent"
    ]
    must(slow, "no record of the slow call")
    position = slow[0]["position"]
    what = f"{gateway.name}/{position}"
    step(f"9. Evidence of one call, the slow one at {what}: one file, which shows no other record")
    (RUN / "evidence").mkdir()
    file = RUN / "evidence" / f"{gateway.name}-{position}.evidence"
    run(BIN / "verifier", "evidence", "make", RUN / "archive", "--policy", RUN / "policy.json", what, "--out", file)
    checked = run(BIN / "verifier", "evidence", "check", file, "--policy", RUN / "policy.json").stdout
    note(f"{file.relative_to(ROOT)}, {file.stat().st_size} bytes: {conclusion(checked)}")


def lies():
    step("10. A lie: one bit of one byte in a copy of the archive is changed")
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

    step("11. Another lie: an older copy, valid in itself, is shown as if it were all there is")
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
    WORK.mkdir(parents=True)
    folder = WORK / "files"
    folder.mkdir()

    step("0. A ledger with its own keys; two workspaces; a gateway in each, before a real MCP server")
    ledger = Ledger()
    note(next(line for line in ledger.init().splitlines() if "ingerprint" in line).strip())
    ledger.serve()
    node = NODE / "node" / "bin" / "node"
    servers = NODE / "@modelcontextprotocol"
    path = {"PATH": f"{node.parent}:/usr/bin:/bin"}
    port = free_port()
    server = start(
        "server-everything",
        [node, servers / "server-everything" / "dist" / "index.js", "streamableHttp"],
        env=path | {"PORT": str(port)},
    )
    stdio = json.dumps([str(node), str(servers / "server-filesystem" / "dist" / "index.js"), str(folder)])
    everything = Gateway("everything", ledger, f'url = "http://127.0.0.1:{port}/mcp"')
    files = Gateway("files", ledger, f"command = {stdio}")
    for gateway in (everything, files):
        gateway.enrol()
    wait_until("server-everything listens", lambda: accepts(port), server)
    for gateway in (everything, files):
        gateway.serve()
        note(f"workspace {gateway.workspace} `{gateway.name}`: gateway {gateway.id}")

    calls(ledger, everything, files, folder)
    positions = hand_over(ledger, (everything, files))
    records = stranger((everything, files), positions)
    survivor(records["everything"])
    evidence(everything, records["everything"])
    lies()
    silent()
    shutil.rmtree(WORK)
    step("Done. demo-run/ has archive/, policy.json, known-checkpoint, evidence/ and report.txt, for somebody who does not trust you")


if __name__ == "__main__":
    atexit.register(end_all)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    try:
        main()
    except (Failed, subprocess.TimeoutExpired) as why:
        print(f"demo: FAILED: {why}\nhint: what every process said is in {WORK}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
