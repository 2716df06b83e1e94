#!/usr/bin/env python3
"""The questions of tests/src/bench/questions.rs, asked of PostgreSQL or DuckDB over the same records. Called by bench.py.

    beside.py postgres ROWS FOLDER-OF-THE-SOCKET | beside.py duckdb ROWS FOLDER

ROWS is what `bench rows` wrote. Prints one JSON object a line, as `bench` does. What must hold: the same questions by the same names, each
asked a few times before the clock starts; all columns of a page are fetched.
"""

import json
import sys
import time
from pathlib import Path

TIMES, SUMS, WARM = 200, 20, 5
COLUMNS = (
    "gateway, number, member, token, agent, client, version, server, tool, method, protocol, decision, rule, policy, definition, "
    "started_at, duration_us, outcome, request_bytes, response_bytes, trace_id, span_id"
)
# Positions stand for the order in which records came, as the ledger's do. The fifth index is for what it finds by trace.
INDEXES = ["member, id", "server, tool, id", "started_at", "outcome, id", "trace_id"]
TABLE = """
    gateway int NOT NULL, number bigint NOT NULL, member uuid, token uuid, agent uuid, client text, version text,
    server text NOT NULL, tool text, method text, protocol text, decision smallint NOT NULL, rule text, policy {bytes}, definition {bytes},
    started_at bigint NOT NULL, duration_us bigint, outcome smallint NOT NULL, request_bytes bigint, response_bytes bigint,
    trace_id {bytes}, span_id {bytes}
"""
TOOL_ERROR = 2


def say(**value):
    print(json.dumps(value), flush=True)


def questions(mark, percentile):
    """Name, question, and which of the values it takes."""
    newest = "ORDER BY id DESC LIMIT 100"
    hourly = "SELECT started_at / 3600000000, outcome, count(*) FROM audit {where} GROUP BY 1, 2"
    hourly = hourly.replace("/", mark["whole"])
    return [
        ("newest 100 by member", f"SELECT * FROM audit WHERE member = {mark['one']} {newest}", "members"),
        ("newest 100 of all", f"SELECT * FROM audit {newest}", None),
        (
            "newest 100 by member, outcome and prefix of tool",
            f"SELECT * FROM audit WHERE member = {mark['one']} AND outcome = {TOOL_ERROR} AND server = 'github' {newest}",
            "members",
        ),
        ("how many by member", f"SELECT count(*) FROM audit WHERE member = {mark['one']}", "members"),
        ("one by trace id", f"SELECT * FROM audit WHERE trace_id = {mark['one']}", "traces"),
        ("hourly by outcome, call's time", hourly.format(where=""), None),
        ("hourly by outcome, of calls of 10 ms and more", hourly.format(where="WHERE duration_us >= 10000"), None),
        ("tool by percentiles of duration", f"SELECT server, tool, {percentile} FROM audit GROUP BY 1, 2", None),
    ]


def measure(name, ask, values, times):
    took, rows = [], []
    for at in range(-WARM, times):
        began = time.perf_counter()
        rows = ask(values[at % len(values)])
        if at >= 0:
            took.append((time.perf_counter() - began) * 1e3)
    took.sort()
    hits = rows[0][0] if name.startswith("how many") else sum(row[2] for row in rows) if name.startswith("hourly") else len(rows)
    say(question=name, asked=times, hits=hits, p50_ms=took[times // 2], p99_ms=took[times * 99 // 100])


def ask_all(run, mark, percentile):
    """`run(sql, value)` gives all rows of an answer."""
    values = {
        None: [None],
        "members": [row[0] for row in run("SELECT DISTINCT member FROM audit", None)],
        "traces": [row[0] for row in run("SELECT trace_id FROM audit WHERE number % 1009 = 13 ORDER BY id LIMIT 200", None)],
    }
    for name, sql, of in questions(mark, percentile):
        times = TIMES if name.startswith(("newest", "how many", "one")) else SUMS
        measure(name, lambda value: run(sql, value), values[of], times)


def postgres(rows, socket):
    import psycopg

    with psycopg.connect(host=socket, user="postgres", autocommit=True) as connection:
        table = TABLE.format(bytes="bytea")
        connection.execute(f"CREATE TABLE audit (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {table})")
        began = time.perf_counter()
        with connection.cursor().copy(f"COPY audit ({COLUMNS}) FROM STDIN") as copy, rows.open("rb") as lines:
            while part := lines.read(1 << 20):
                copy.write(part)
        for index in INDEXES:
            connection.execute(f"CREATE INDEX ON audit ({index})")
        # So that it has what its planner knows, and pages of which all rows are seen.
        connection.execute("VACUUM ANALYZE audit")
        seconds = time.perf_counter() - began
        size, count = connection.execute("SELECT pg_total_relation_size('audit'), count(*) FROM audit").fetchone()
        version = connection.execute("SHOW server_version").fetchone()[0]
        settings = [f"{name} {connection.execute(f'SHOW {name}').fetchone()[0]}" for name in ("shared_buffers", "work_mem")]
        say(version=f"PostgreSQL {version}", settings=", ".join(settings), bytes=size / count, seconds=seconds, records=count)

        def run(sql, value):
            # Prepared after five times by itself.
            return connection.execute(sql, None if value is None else (value,)).fetchall()

        levels = "percentile_disc(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY duration_us)"
        ask_all(run, {"one": "%s", "whole": "/"}, levels)


def duckdb(rows, folder):
    import duckdb as duck

    file = folder / "audit.duckdb"
    connection = duck.connect(str(file))
    names = [name.strip() for name in COLUMNS.split(",")]
    binary = ("policy", "definition", "trace_id", "span_id")
    # As COPY of PostgreSQL writes bytes: two backslashes, x, hex.
    told = ", ".join(f"unhex(substr({name}, 4)) AS {name}" if name in binary else name for name in names)
    types = ", ".join(f"'{name}': 'VARCHAR'" for name in names)
    began = time.perf_counter()
    connection.execute(f"CREATE TABLE audit (id bigint, {TABLE.format(bytes='BLOB')})")
    read = f"read_csv('{rows}', delim='\t', header=false, quote='', escape='', columns={{{types}}})"
    connection.execute(f"INSERT INTO audit SELECT row_number() OVER (), {told} FROM {read}")
    connection.execute("CREATE INDEX by_trace ON audit (trace_id)")
    connection.execute("CHECKPOINT")
    seconds = time.perf_counter() - began
    count = connection.execute("SELECT count(*) FROM audit").fetchone()[0]
    threads = connection.execute("SELECT current_setting('threads')").fetchone()[0]
    say(
        version=f"DuckDB {duck.__version__}", settings=f"threads {threads}", bytes=file.stat().st_size / count, seconds=seconds, records=count
    )

    def run(sql, value):
        return connection.execute(sql, [] if value is None else [value]).fetchall()

    ask_all(run, {"one": "?", "whole": "//"}, "quantile_disc(duration_us, [0.5, 0.95, 0.99])")


if __name__ == "__main__":
    {"postgres": postgres, "duckdb": duckdb}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
