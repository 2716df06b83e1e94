"""The parts that the demo and the tests in Python put together: processes that end with whoever started them, a ledger with its
own keys, gateways in front of MCP servers, and the records as the archive shows them. Standard library only.

Whoever uses this names its folder with `work_in` first, and runs in `whole`, which ends all that was started.
"""

import atexit
import datetime
import hashlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("CUSTODY_BIN", ROOT / "target" / "debug"))
PYTHON = os.environ.get("CUSTODY_PYTHON", sys.executable)
# Node 22, and the MCP servers of other people.
NODE_MODULES = Path(os.environ.get("CUSTODY_NODE_DIR", ROOT / ".cache" / "node")) / "node_modules"
NODE = NODE_MODULES / "node" / "bin" / "node"
# All of the environment that a program of Node is given.
NODE_ENVIRONMENT = {"PATH": f"{NODE.parent}:/usr/bin:/bin"}
ORIGIN = "demo.example/custody"
# Seconds until something that should come is given up, and with it the run.
PATIENCE_S = 60

# Those of a process are not those of another that runs at the same time.
_ports = itertools.islice(itertools.cycle(range(20_000, 32_000)), os.getpid() * 41 % 12_000, None)

STARTED = time.monotonic()
children = []
_work = None


def work_in(folder):
    """All that is started here keeps its files in this folder, and what it says in a file of its name there."""
    global _work
    _work = folder
    folder.mkdir(parents=True)


class Failed(Exception):
    """What was promised does not hold."""


def step(text):
    print(f"[{time.monotonic() - STARTED:5.1f} s] {text}", flush=True)


def note(text):
    print("\n".join(f"          {line}".rstrip() for line in text.splitlines()), flush=True)


def must(condition, text):
    if not condition:
        raise Failed(text)


# ------------------------------------------------------------------------------------------------ processes


def start(name, command, **options):
    """A process in a group of its own, so that whatever it starts ends with it. Its words go to work/<name>.log."""
    with open(_work / f"{name}.log", "ab") as log:
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
    """Ends one process that was started here, and waits until it has ended."""
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
    """A command that ends by itself; its output. Anything but an expected exit code ends the run."""
    words = [str(word) for word in command]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S)
    if done.returncode not in expect:
        shown = " ".join([Path(words[0]).name, *words[1:]])
        raise Failed(f"`{shown}` ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def wait_said(child, words):
    """Until a process has said this, as servers do when they serve."""
    wait_until(f"{child.name} says `{words}`", lambda: words in (_work / f"{child.name}.log").read_text(), child)


def wait_until(what, check, child=None):
    deadline = time.monotonic() + PATIENCE_S
    while not check():
        must(child is None or child.poll() is None, f"{what}: {child and child.name} ended; see {_work}")
        must(time.monotonic() < deadline, f"{what}: not within {PATIENCE_S} s")
        time.sleep(0.05)


def free_port():
    """A port of the loopback address that nobody listens on, below the range that systems give to outgoing connections."""
    for port in _ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Failed("no port is free")


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
        self.dir = _work / "ledger"
        self.root_key = _work / "root" / "root.key"
        self.config = self.dir / "ledger.toml"
        self.grpc, self.http, self.ask = free_port(), free_port(), free_port()
        self.child = None

    def init(self):
        made = run(BIN / "ledger", "init", "--dir", self.dir, "--origin", ORIGIN, "--root-key-out", self.root_key)
        ports = {"grpc": self.grpc, "http": self.http, "ask": self.ask}
        values = {name: f'"127.0.0.1:{port}"' for name, port in ports.items()}
        urls = {"url": self.grpc, "ask_url": self.ask}
        self.configure(values | {name: f'"https://localhost:{port}"' for name, port in urls.items()})
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

    def records(self, workspace):
        """All that is archived of a workspace."""
        self.command("cut")
        return records(self.dir / "archive", self.dir / "policy.json", workspace)


class Member:
    """Who calls, with a token of an agent of its own."""

    def __init__(self):
        self.id, self.agent, self._token_id, secret = (os.urandom(size) for size in (16, 16, 16, 32))
        self.token = f"cst_{self._token_id.hex()}_{secret.hex()}"
        self._sha256 = hashlib.sha256(secret).hexdigest()
        self.id = self.id.hex()

    def lines(self):
        """What an access policy says of it."""
        issued = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
        expires = issued + datetime.timedelta(days=1)
        return f"""[members.{self.id}]

[agents.{self.agent.hex()}]

[[tokens]]
id = "{self._token_id.hex()}"
sha256 = "{self._sha256}"
member = "{self.id}"
agent = "{self.agent.hex()}"
issued_at = {issued.isoformat()}
expires_at = {expires.isoformat()}

"""


# Everybody may ask for everything.
ALLOW_ALL = """[[rules]]
id = "everything"
effect = "allow"
everyone = true
tools = ["*"]
methods = ["*"]

"""


class Gateway:
    """A gateway-shim in front of MCP servers, writing into one workspace. Of each server: its name, and the lines of its section."""

    def __init__(self, name, ledger, servers, members=()):
        self.name, self.ledger, self.servers = name, ledger, servers
        self.allow(members)
        self.dir = _work / f"gateway-{name}"
        self.port = free_port()
        self.child = None

    def allow(self, members, rules=ALLOW_ALL):
        """The access policy of the first start."""
        self.members = members
        self.access = "version = 1\n\n" + "".join(member.lines() for member in members) + rules

    def url(self, server):
        return f"http://localhost:{self.port}/mcp/{server}"

    def enrol(self):
        """The root signs the workspace and the gateway's key; the private key never leaves the gateway's folder."""
        self.dir.mkdir()
        said = self.ledger.command("workspace", "add", self.name, "--root-key", self.ledger.root_key)
        self.workspace = re.search(r"has the id ([0-9a-f]{32})", said).group(1)
        self.id = os.urandom(16).hex()
        (self.dir / "shim.toml").write_text(self.config())
        (self.dir / "access.toml").write_text(self.access)
        keys = ["--key", self.dir / "gateway.key", "--tls-key", self.dir / "tls.key"]
        run(BIN / "gateway-shim", "key", "new", *keys)
        run(BIN / "gateway-shim", "request", "--config", self.dir / "shim.toml", "--out", self.dir / "request.json")
        self.ledger.command(
            "gateway", "enrol", self.dir / "request.json", "--name", self.name,
            "--root-key", self.ledger.root_key, "--out", self.dir / "enrolment.json",
        )  # fmt: skip

    def config(self):
        servers = "".join(f"[servers.{name}]\n{lines}\n" for name, lines in self.servers.items())
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

{servers}"""

    def end(self):
        """In peace: what it holds is signed and shipped."""
        code = kill(self.child, signal.SIGTERM)
        must(code == 0, f"gateway {self.name} ended with {code}; see {_work}/gateway-{self.name}.log")

    def serve(self):
        self.child = start(f"gateway-{self.name}", [BIN / "gateway-shim", "serve", "--config", self.dir / "shim.toml"])
        wait_until(f"the gateway {self.name} listens", lambda: accepts(self.port), self.child)


def records(archive, policy, workspace):
    """The records of a workspace, as `verifier show` says them, and the text that it said."""
    shown = run(BIN / "verifier", "show", archive, f"{workspace}/0..", "--policy", policy, "--json").stdout
    found = [json.loads(line) for line in shown.splitlines()]
    must([record["position"] for record in found] == list(range(len(found))), "the positions have a gap")
    return found, shown


def ended(found):
    """Of each call among these records the one that says how it ended."""
    calls = (record["record"] for record in found if record["kind"] == "call")
    return [call for call in calls if call["phase"] != "intent"]


def asked(call):
    """What a call was for: the tool, or of another request its method."""
    return call["tool"] if call.get("method") == "tools/call" else call.get("method")


def whole(name, main):
    """Runs `main`, and ends what it started, however it ends."""
    atexit.register(end_all)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    try:
        main()
    except (Failed, subprocess.TimeoutExpired) as why:
        print(f"{name}: FAILED: {why}\nhint: what every process said is in {_work}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
