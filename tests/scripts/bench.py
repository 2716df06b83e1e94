#!/usr/bin/env python3
"""Measures, and prints tables for docs/BENCHMARKS.md. Standard library only.

    bench.py [RECORDS]          1000000 by default

What it has so far: the machine, its disk, and verification of a bulk archive (rate, peak memory, bytes per record). Ingest comes
with the load generator. Nothing is cleaned up before it is measured, and nothing is left behind.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ["CUSTODY_BIN"])


def machine():
    model = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // 1024
    disk = subprocess.run(["stat", "-f", "-c", "%T", ROOT], capture_output=True, text=True, check=True).stdout.strip()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    print(f"{model}, {os.cpu_count()} cores, {memory} MiB, {disk}, Linux {platform.release()}, commit {commit}\n")


def syncs(folder, seconds=3):
    """Appends of 4 KiB, each followed by fdatasync, one at a time."""
    times = []
    with open(folder / "syncs", "wb", buffering=0) as file:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            before = time.perf_counter()
            file.write(b"\0" * 4096)
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - before)
    times.sort()
    at = lambda share: times[int(share * (len(times) - 1))] * 1e3
    print(f"fdatasync of 4 KiB: {len(times) / sum(times):,.0f}/s, p50 {at(0.5):.2f} ms, p99 {at(0.99):.2f} ms\n")


def measured(command):
    """Seconds and peak memory in MiB of a command that must succeed."""
    before = time.perf_counter()
    child = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"bench: {command} ended with {child.returncode}")
    return time.perf_counter() - before, usage.ru_maxrss / 1024


def verifying(folder, records):
    print("| records | cores | seconds | records/s | peak memory | bytes per record |\n| --: | --: | --: | --: | --: | --: |")
    for count in (records // 10, records):
        place = folder / str(count)
        place.mkdir()
        subprocess.run(
            ["cargo", "test", "--locked", "--quiet", "-p", "verifier-cli", "--test", "verifier", "bulk"],
            cwd=ROOT, env=os.environ | {"RECORDS": str(count), "DIR": str(place)}, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        size = sum(path.stat().st_size for path in (place / "archive").rglob("*") if path.is_file())
        command = [BIN / "verifier", "verify", place / "archive", "--policy", place / "policy.json"]
        for cores, prefix in ((1, ["taskset", "-c", "0"]), (os.cpu_count(), [])):
            seconds, memory = min(measured(prefix + command) for _ in range(3))
            print(f"| {count:,} | {cores} | {seconds:.2f} | {count / seconds:,.0f} | {memory:.0f} MiB | {size / count:.1f} |", flush=True)
        shutil.rmtree(place)


def main():
    records = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    machine()
    with tempfile.TemporaryDirectory(dir=os.environ["CARGO_TARGET_DIR"]) as temporary:
        syncs(Path(temporary))
        verifying(Path(temporary), records)


if __name__ == "__main__":
    main()
