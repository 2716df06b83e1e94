#!/usr/bin/env python3
"""Measures, and prints the tables of docs/BENCHMARKS.md. Standard library only.

    bench.py [SECTION…]     all by default: limits headline sustained ingest plaintext size many postgres verifying search ask beside
                            keep-up proxy

Every section starts from an empty folder and leaves nothing behind. RECORDS (1000000 by default) is how many the verifier,
PostgreSQL and DuckDB get; the verifier, what is sustained, and questions, also ten times as many. What is missing on a machine
(PostgreSQL, mcp-proxy) is said, not passed over.
"""

import contextlib
import json
import os
import platform
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ["CUSTODY_BIN"])
# The newest that is installed; Debian keeps each version's programs in a folder of its own.
POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), default=Path("none"))
# With what beside.py needs (setup.sh bench).
PYTHON = ROOT / ".cache/venv-bench/bin/python"
RECORDS = int(os.environ.get("RECORDS", 1_000_000))
CONNECTIONS = 4
# In each the arms are measured one after the other, in another order.
PROXY_ROUNDS = int(os.environ.get("PROXY_ROUNDS", 7))

TABLE = """
CREATE TABLE audit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    gateway int NOT NULL, number bigint NOT NULL, member uuid, token uuid, agent uuid, client text, version text,
    server text NOT NULL, tool text, method text, protocol text, decision smallint NOT NULL, rule text, policy bytea, definition bytea,
    started_at bigint NOT NULL, duration_us bigint, outcome smallint NOT NULL, request_bytes bigint, response_bytes bigint,
    trace_id bytea, span_id bytea
);
CREATE INDEX ON audit (started_at);
CREATE INDEX ON audit (member, started_at);
CREATE INDEX ON audit (server, tool, started_at);
"""


def say(*words, end="\n"):
    print(*words, end=end, flush=True)


def load():
    return os.getloadavg()[0]


def machine():
    model = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // 1024
    disk = subprocess.run(["stat", "-f", "-c", "%T", ROOT], capture_output=True, text=True, check=True).stdout.strip()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    rust = subprocess.run(["rustc", "--version"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    say(f"{model}, {os.cpu_count()} cores, {memory} MiB, {disk}, Linux {platform.release()}, {rust}, commit {commit}, load {load():.1f}\n")


def bench(folder, section, *words):
    """The objects that one section prints."""
    place = folder / section
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    command = [str(BIN / "bench"), section, str(place), *map(str, words)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in child.stdout:
        yield json.loads(line)
    if child.wait():
        sys.exit(f"bench: {' '.join(command)} ended with {child.returncode}")
    shutil.rmtree(place)


def limits(folder):
    say(f"### Limits (load {load():.1f})\n\n| what | figure |\n| --- | --- |")
    for one in bench(folder, "limits"):
        name, rate = one["limit"], one["rate"]
        if name == "fdatasync":
            say(f"| fdatasync of 4 KiB, one at a time | {rate:,.0f}/s; p50 {one['p50_ms']:.2f}, p99 {one['p99_ms']:.2f}, p99.9 {one['p999_ms']:.2f} ms |")
        elif name == "synced":
            say(f"| synced appends of {one['mib']} MiB | {rate:,.0f} MiB/s |")
        elif name == "record bytes":
            say(f"| a record {'with' if one['trace'] else 'without'} trace context, as signed | {rate:.0f} bytes |")
        elif name == "store":
            say(f"| RocksDB, synced write of {one['bytes']:,} bytes ({one['records']} records) | {rate:,.0f}/s, so {one['records_rate']:,.0f} records/s |")
        elif "batch" in one:
            say(f"| {name}, batches of {one['batch']} | {rate:,.0f}/s a core, so {rate * one['batch']:,.0f} records/s |")
        else:
            say(f"| {name} | {rate:,.0f}/s a core |")
    say()


def runs(title, rows):
    say(f"### {title}\n")
    say("| run | batch | gateways | offered/s | records/s | p50 ms | p99 ms | p99.9 ms | cores: ledger + generator | us of a core a record | load |")
    say("| --- | --: | --: | --: | --: | --: | --: | --: | --- | --: | --: |")
    for one in rows:
        offered = f"{one['offered']:,.0f}" if one["offered"] else "-"
        say(
            f"| {one['run']} | {one['batch']} | {one['gateways']} | {offered} | {one['rate']:,.0f} | {one['p50_ms']:.1f} | {one['p99_ms']:.1f} "
            f"| {one['p999_ms']:.1f} | {one['ledger_cores']:.2f} + {one['generator_cores']:.2f} | {one['us_a_record']:.2f} | {one['load']:.1f} |"
        )
    say()


def headline(folder):
    runs("The two aims, over TLS", bench(folder, "headline", "tls"))


def plaintext(folder):
    runs("The two aims, without TLS", bench(folder, "headline", "plaintext"))


def ingest(folder):
    runs("Batches and gateways, over TLS: the most (closed loop), then half of it (open loop)", bench(folder, "ingest", "tls"))


def sustained(folder):
    say("### Sustained, with sealing and archiving to the end\n")
    say("| records | durable, records/s | archived, records/s | cores of the ledger | peak memory of the ledger in each tenth of the time, MiB | load |")
    say("| --: | --: | --: | --: | --- | --: |")
    for one in bench(folder, "sustained", 10 * RECORDS):
        say(
            f"| {one['records']:,} | {one['durable_rate']:,.0f} | {one['archived_rate']:,.0f} | {one['ledger_cores']:.2f} "
            f"| {', '.join(map(str, one['ledger_mib']))} | {one['load']:.1f} |"
        )
    say()


def size(folder):
    say("### Size and sealing\n\n| trace context | records | as signed | bytes a record in the archive | MiB sealed | seconds | MiB/s |")
    say("| --- | --: | --: | --: | --: | --: | --: |")
    for one in bench(folder, "size"):
        word = "with" if one["trace"] else "without"
        say(
            f"| {word} | {one['records']:,} | {one['raw_bytes']} | {one['bytes']:.1f} | {one['seal_mib']:.1f} | {one['seal_seconds']:.2f} "
            f"| {one['seal_mib'] / one['seal_seconds']:.0f} |"
        )
    say()


def many(folder):
    for one in bench(folder, "many"):
        if one["run"] == "enrolled":
            say(f"### Many workspaces\n\n{one['workspaces']:,} workspaces with a gateway each enrolled in {one['seconds']:.0f} s.\n")
            continue
        say(
            f"{one['records']:,} calls in {one['life_seconds']:.0f} s (compressed): {one['cores'] * 100:.1f} % of a core, {one['ledger_mib']:.0f} MiB; "
            f"receipts p50 {one['p50_ms']:.1f}, p99 {one['p99_ms']:.1f} ms.\n\n| objects | a year | GB a year |\n| --- | --: | --: |"
        )
        for kind, sums in one["objects"].items():
            say(f"| {kind} | {sums['a_year']:,.0f} | {sums['bytes_a_year'] / 1e9:.2f} |")
        say(f"| all | {one['puts_a_year']:,.0f} | |\n\nAt 0.005 USD for 1,000 PUT: {one['dollars_a_year']:,.0f} USD a year.\n")


@contextlib.contextmanager
def cluster(settings=""):
    """A fresh server of PostgreSQL, reached by a Unix socket in the folder that is given, and what its programs are started with."""
    # The server refuses to run as root, and its folder must be its own.
    root = os.getuid() == 0
    owner = pwd.getpwnam("postgres").pw_uid if root else os.getuid()
    place = Path(tempfile.mkdtemp(prefix="custody-postgres-", dir="/var/tmp"))
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "cwd": place, **({"user": owner} if root else {})}
    control = [POSTGRES / "pg_ctl", "-D", place / "data", "-w", "-l", place / "log"]
    try:
        os.chown(place, owner, -1)
        subprocess.run([POSTGRES / "initdb", "-D", place / "data", "-A", "trust", "-U", "postgres"], **quiet)
        subprocess.run([*control, "-o", f"-k {place} -c listen_addresses='' {settings}", "start"], **quiet)
        try:
            yield place
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **quiet)
    finally:
        shutil.rmtree(place)


def postgres(folder):
    if not POSTGRES.exists():
        return say("PostgreSQL is not installed: apt-get install postgresql\n")
    say(f"### PostgreSQL {POSTGRES.parent.name} (load {load():.1f})\n\n| connections | records/s | bytes a record (table and indexes) |\n| --: | --: | --: |")
    for connections in (1, CONNECTIONS):
        with cluster() as place:
            rate, size = copied(place, connections)
        say(f"| {connections} | {rate:,.0f} | {size:.0f} |")
    say()


def copied(place, connections):
    """Records a second, and bytes of each, of a server with its defaults."""
    subprocess.run([BIN / "bench", "copy", place, str(RECORDS), str(connections)], check=True)
    psql = [POSTGRES / "psql", "-X", "-q", "-h", place, "-U", "postgres", "-v", "ON_ERROR_STOP=1"]
    subprocess.run([*psql, "-c", TABLE], check=True, stdout=subprocess.DEVNULL, cwd=place)
    began = time.perf_counter()
    children = [
        subprocess.Popen([*psql, "-f", place / f"copy-{number}.sql"], stdout=subprocess.DEVNULL, cwd=place)
        for number in range(connections)
    ]
    if any([child.wait() for child in children]):
        sys.exit("bench: a COPY failed")
    seconds = time.perf_counter() - began
    asked = "SELECT count(*), pg_total_relation_size('audit') FROM audit"
    told = subprocess.run([*psql, "-At", "-c", asked], check=True, capture_output=True, text=True, cwd=place).stdout
    count, size = map(int, told.strip().split("|"))
    return count / seconds, size / count


def measured(command):
    """Seconds, processor seconds and peak memory in MiB of a command that must succeed."""
    before = time.perf_counter()
    child = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"bench: {command} ended with {child.returncode}")
    return time.perf_counter() - before, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def answers(rows):
    """What was measured of each question, by whom, and all other objects."""
    asked, others = {}, []
    for one in rows:
        if "question" in one:
            asked.setdefault(one["question"], {})[one["by"]] = one
        else:
            others.append(one)
    return asked, others


def times(one):
    return f"{one['p50_ms']:.2f} | {one['p99_ms']:.2f}" if one else "- | -"


def notes(others):
    say("\n" + "; ".join(", ".join(f"{name.replace('_', ' ')} {value:,.1f}" for name, value in one.items()) for one in others) + ".\n")


def asking(asked, bys):
    heads = "".join(f"| {by}, p50 ms | p99 ms " for by in bys)
    say(f"| question | asked | hits {heads}|\n| --- | --: | --: {'| --: | --: ' * len(bys)}|")
    for name, by in asked.items():
        one = next(iter(by.values()))
        say(f"| {name} | {one['asked']} | {one['hits']:,} | {' | '.join(times(by.get(who)) for who in bys)} |")


def search(folder):
    say(f"### Asking, several days, in this process (load {load():.1f})\n")
    asked, others = answers(bench(folder, "search", 10 * RECORDS))
    asking(asked, ["index alone", "executor"])
    notes(others)


def ask(folder):
    say(f"### Asking a ledger, with the record of each question (load {load():.1f})\n")
    asked, others = answers(bench(folder, "ask", 10 * RECORDS))
    asking(asked, ["executor", "whole"])
    say("\n| receipts at 20,000 records/s while | p50 ms | p99 ms |\n| --- | --: | --: |")
    for one in others:
        if "receipts" in one:
            say(f"| {one['receipts']} | {one['p50_ms']:.1f} | {one['p99_ms']:.1f} |")
    notes([one for one in others if "receipts" not in one])


def beside(folder):
    """The same questions over the same records, of the ledger, PostgreSQL and DuckDB. How durable each is plays no part."""
    say(f"### Asking, beside PostgreSQL and DuckDB (load {load():.1f})\n")
    asked, others = answers(bench(folder, "ask", RECORDS, "brief"))
    sizes = next(one for one in others if "store_bytes" in one)
    subprocess.run([BIN / "bench", "rows", folder, str(RECORDS)], check=True)
    command = [PYTHON, ROOT / "tests/scripts/beside.py"]
    said = {}
    if POSTGRES.exists():
        with cluster("-c shared_buffers=1GB") as place:
            said["PostgreSQL"] = subprocess.run([*command, "postgres", folder / "rows", place], check=True, capture_output=True, text=True).stdout
    else:
        say("PostgreSQL is not installed: apt-get install postgresql\n")
    said["DuckDB"] = subprocess.run([*command, "duckdb", folder / "rows", folder], check=True, capture_output=True, text=True).stdout
    for name, text in said.items():
        head, *rows = map(json.loads, text.splitlines())
        say(f"{head['version']}, {head['settings']}: {head['bytes']:.0f} bytes a record, loaded in {head['seconds']:.0f} s.", end=" ")
        for one in rows:
            asked.setdefault(one["question"], {})[name] = one
            ours = asked[one["question"]]["whole"]
            # The gateways' own first records are of no member, tool or duration.
            if one["question"].startswith("hourly") and abs(one["hits"] - ours["hits"]) > 5:
                sys.exit(f"bench: {name} and the ledger do not have the same records: {one}, {ours}")
    each = {name: sizes[f"{name}_bytes"] / sizes["records"] for name in ("store", "index", "archive")}
    say(", ".join(f"{name} {size:.0f}" for name, size in each.items()), "bytes a record of the ledger.\n")
    asking(asked, ["executor", "whole", *said])
    say(f"\n| times as long as the ledger's whole, p50 | {' | '.join(said)} |\n| --- {'| --: ' * len(said)}|")
    for name, by in asked.items():
        ratios = [f"{by[other]['p50_ms'] / by['whole']['p50_ms']:.2f}" if other in by else "-" for other in said]
        say(f"| {name} | {' | '.join(ratios)} |")
    say()


def keep_up(folder):
    say(f"### What intake, index and watch keep up with (load {load():.1f})\n")
    say("| offered/s | records/s | kept up with | p50 ms | p99 ms | index behind, s | watch behind, s |\n| --: | --: | --- | --: | --: | --- | --- |")
    others = []
    for one in bench(folder, "keep-up", RECORDS):
        if "offered" not in one:
            others.append(one)
            continue
        behind = [", ".join(f"{most:.1f}" for most in one[who]) for who in ("index_behind", "watch_behind")]
        kept = "yes" if one["kept"] else "no"
        say(f"| {one['offered']:,.0f} | {one['rate']:,.0f} | {kept} | {one['p50_ms']:.1f} | {one['p99_ms']:.1f} | {behind[0]} | {behind[1]} |")
    notes(others)


def verifying(folder):
    say("### Verifying\n\n| records | cores | seconds | records/s | records/s a core | peak memory MiB | bytes a record | load |")
    say("| --: | --: | --: | --: | --: | --: | --: | --: |")
    for count in (RECORDS, 10 * RECORDS):
        place = folder / str(count)
        place.mkdir()
        made = subprocess.run([BIN / "bench", "archive", place, str(count)], check=True, capture_output=True, text=True).stdout
        made = json.loads(made.splitlines()[-1])
        size = sum(path.stat().st_size for path in Path(made["archive"]).rglob("*") if path.is_file())
        command = [BIN / "verifier", "verify", made["archive"], "--policy", made["policy"]]
        for cores, prefix in ((1, ["taskset", "-c", "0"]), (os.cpu_count(), [])):
            seconds, cpu, memory = min(measured(prefix + command) for _ in range(3))
            say(
                f"| {count:,} | {cores} | {seconds:.2f} | {count / seconds:,.0f} | {count / cpu:,.0f} | {memory:.0f} | {size / count:.1f} | {load():.1f} |"
            )
        shutil.rmtree(place)
    say()


def proxy(folder):
    say(f"### What the proxy adds (load {load():.1f})\n")
    if not Path(os.environ.get("CUSTODY_MCP_PROXY", "none")).exists():
        say("mcp-proxy is not installed: make setup-bench\n")
    say("| arm | connections | calls/s | p50 us | p99 us | added p50 us | added p99 us | added p50 in fdatasyncs |")
    say("| --- | --: | --: | --: | --: | --: | --: | --: |")
    revoked, sync = [], 0
    for one in bench(folder, "proxy", PROXY_ROUNDS):
        if "revocation" in one:
            revoked.append(one)
            continue
        sync = one["sync_us"]
        say(
            f"| {one['arm']} | {one['connections']} | {one['rate']} | {one['p50_us']:.0f} | {one['p99_us']:.0f} | {one['added_p50_us']:.0f} "
            f"| {one['added_p99_us']:.0f} | {one['syncs']:.2f} |"
        )
    decisions = bench(folder, "decide")
    say("\n| members | tools | a decision takes us |\n| --: | --: | --: |")
    for one in decisions:
        say(f"| {one['members']:,} | {one['tools']:,} | {one['decision_us']:.2f} |")
    say(f"\nOne fdatasync takes {sync:.0f} us (median). Load at the end {load():.1f}.\n")
    say("| a member is revoked: from the command to | times | p50 ms | p99 ms | most ms |\n| --- | --: | --: | --: | --: |")
    for one in revoked:
        say(f"| {one['revocation']} | {one['count']} | {one['p50_ms']:.1f} | {one['p99_ms']:.1f} | {one['most_ms']:.1f} |")
    say()


SECTIONS = {
    "limits": limits,
    "headline": headline,
    "sustained": sustained,
    "ingest": ingest,
    "plaintext": plaintext,
    "size": size,
    "many": many,
    "postgres": postgres,
    "verifying": verifying,
    "search": search,
    "ask": ask,
    "beside": beside,
    "keep-up": keep_up,
    "proxy": proxy,
}


def main():
    names = sys.argv[1:] or list(SECTIONS)
    machine()
    with tempfile.TemporaryDirectory(dir=os.environ["CARGO_TARGET_DIR"]) as temporary:
        for name in names:
            SECTIONS[name](Path(temporary))


if __name__ == "__main__":
    main()
