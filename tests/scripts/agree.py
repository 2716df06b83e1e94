#!/usr/bin/env python3
"""Whether the two verifiers agree over the whole tamper matrix: six claims, exit code, first failing check.

    agree.py GOLDEN VERIFIER [DIR]

GOLDEN and VERIFIER are the programs of those names; DIR is a folder for the archives (a temporary one by default). Every lie of
tests/vectors/ is told on the golden archive, and each archive is given to `verifier` and to docs/second_verifier.py. Run it
with a Python that has tests/requirements.txt.
"""

import concurrent.futures
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SECOND = Path(__file__).resolve().parents[2] / "docs" / "second_verifier.py"
# Seconds: a golden archive is verified in far less than one by either.
SECONDS_MAX = 120


def verdict(command, folder):
    known = sorted((folder / "known").glob("*")) if (folder / "known").exists() else []
    words = [*command, folder / "archive", "--policy", folder / "policy.json", "--json"]
    for file in known:
        words += ["--known", file]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=SECONDS_MAX)
    if done.returncode not in (0, 1, 2):
        return f"ended with {done.returncode}: {done.stderr.strip()[-400:]}"
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        return f"no JSON: {done.stdout[:200]} {done.stderr.strip()[-400:]}"
    claims = report.get("claims") or []
    states = claims if isinstance(claims, dict) else {claim["claim"]: claim["state"] for claim in claims}
    return {"exit": done.returncode, "first": report.get("first_failing_check"), "claims": states}


def main():
    golden, verifier = sys.argv[1:3]
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(sys.argv[3] if len(sys.argv) > 3 else temporary)
        subprocess.run([golden, "--lies", root], check=True, timeout=SECONDS_MAX)
        as_of = int((root / "as-of").read_text())
        written = datetime.datetime.fromtimestamp(as_of // 1_000_000, datetime.timezone.utc)
        stamp = written.strftime("%Y-%m-%dT%H:%M:%S") + f".{as_of % 1_000_000:06}Z"
        folders = sorted(file.parent for file in root.rglob("expected.json"))

        def both(folder):
            first = verdict([verifier, "verify", "--as-of", stamp], folder)
            second = verdict([sys.executable, SECOND, "verify", "--as-of", str(as_of)], folder)
            return folder.relative_to(root), first, second

        apart = 0
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for name, first, second in pool.map(both, folders):
                if first != second or isinstance(first, str):
                    apart += 1
                    print(f"{name}:\n  verifier         {first}\n  second_verifier  {second}", flush=True)
    print(f"two verifiers over {len(folders)} archives: {len(folders) - apart} agree, {apart} do not")
    return 1 if apart or not folders else 0


if __name__ == "__main__":
    sys.exit(main())
