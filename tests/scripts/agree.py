#!/usr/bin/env python3
"""Whether the two verifiers agree over the whole tamper matrix: six claims, exit code, first failing check, and where nothing
failed the findings. Of evidence files there are no claims and no findings. And whether they agree, over made-up histories of access
changes, on who could call what at a time and what changed it between two, and whether neither refutes these, from whatever time on it is asked: no
lie is told there.

    agree.py GOLDEN VERIFIER [DIR]

CUSTODY_HISTORIES and CUSTODY_SEED say how many histories and from which seed on; one that they disagree on is named by its seed.
GOLDEN and VERIFIER are the programs of those names; DIR is a folder for the archives (a temporary one by default). Every lie of
tests/vectors/ is told on the golden archive or on evidence from it, and each of these is given to `verifier` and to docs/second_verifier.py. Run it
with a Python that has tests/requirements.txt.
"""

import argparse
import datetime
import functools
import importlib.util
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

SECOND = Path(__file__).resolve().parents[2] / "docs" / "second_verifier.py"
# Seconds: far more than it takes on a busy machine.
SECONDS_MAX = 600
HISTORIES = int(os.environ.get("CUSTODY_HISTORIES", "40"))
SEED = int(os.environ.get("CUSTODY_SEED", "1"))
# Bytes: the archives take 800 MiB.
BYTES_MAX = 2 << 30
# Answers of one function: those of the golden archive and of the changes to it that the lies share.
ANSWERS_KEPT = 20_000


def load_second():
    """The second verifier as a module: starting Python a thousand times would take longer than all its verdicts."""
    spec = importlib.util.spec_from_file_location("second_verifier", SECOND)
    module = importlib.util.module_from_spec(spec)
    sys.modules["second_verifier"] = module
    spec.loader.exec_module(module)
    # Most of an archive is the same in all lies: what is pure is asked once of the same bytes.
    for pure in ("decode", "signature_verifies"):
        setattr(module, pure, functools.lru_cache(ANSWERS_KEPT)(getattr(module, pure)))
    return module


def known_files(folder):
    return sorted((folder / "known").glob("*"))


def stamp(at):
    written = datetime.datetime.fromtimestamp(at // 1_000_000, datetime.timezone.utc)
    return written.strftime("%Y-%m-%dT%H:%M:%S") + f".{at % 1_000_000:06}Z"


def first_verdict(verifier, folder, as_of, at_size, since, until):
    words = [verifier, "verify", folder / "archive", "--policy", folder / "policy.json", "--json"]
    words += ["--as-of", stamp(as_of)]
    if at_size is not None:
        words += ["--at-size", at_size]
    for name, at in (("--since", since), ("--until", until)):
        words += [name, stamp(at)] if at is not None else []
    for file in known_files(folder):
        words += ["--known", file]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=SECONDS_MAX)
    report = json.loads(done.stdout)
    # Without a verdict there are no claims: nothing is shown.
    claims = {claim["claim"]: claim["state"] for claim in report.get("claims", [])} or "none"
    findings = [finding["name"] for finding in report.get("findings", [])]
    return archive_answer(done.returncode, report.get("first_failing_check"), claims, findings)


def second_verdict(second, folder, as_of, at_size, since, until):
    asked = argparse.Namespace(
        command="verify", archive=folder / "archive", policy=folder / "policy.json", known=known_files(folder),
        as_of=as_of, at_size=at_size, since=since, until=until,
    )  # fmt: skip
    try:
        verdict = second.run_command(asked)
    except second.NoVerdict:
        return archive_answer(2, None, "none", [])
    first = (verdict["first_fault"] or {}).get("check")
    return archive_answer(verdict["exit_code"], first, verdict["claims"], verdict["findings"])


def archive_answer(code, first, claims, findings):
    """What is compared. Behind a fault it depends on the order of reading what was found."""
    return {"exit": code, "first": first, "claims": claims, "findings": None if first else sorted(findings)}


def first_of_evidence(verifier, folder):
    words = [verifier, "evidence", "check", folder / "evidence", "--policy", folder / "policy.json", "--json"]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=SECONDS_MAX)
    return {"exit": done.returncode, "first": json.loads(done.stdout).get("first_failing_check")}


def second_of_evidence(second, folder):
    asked = argparse.Namespace(command="evidence", file=folder / "evidence", policy=folder / "policy.json")
    try:
        verdict = second.run_command(asked)
    except second.NoVerdict:
        return {"exit": 2, "first": None}
    return {"exit": verdict["exit_code"], "first": (verdict["first_fault"] or {}).get("check")}


def first_of_access(verifier, folder, as_of, at, between, tool, method):
    words = [verifier, "access", folder / "archive", "--policy", folder / "policy.json", "--json", "--as-of", stamp(as_of)]
    words += ["--between", *map(stamp, between)] if between else ["--at", stamp(at)]
    words += ["--tool", tool, "--method", method] if tool else []
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=SECONDS_MAX)
    return access_answer(done.returncode, json.loads(done.stdout))


def access_answer(code, answer):
    """What is compared: all but names of people, of which nobody asks, what is said in words or of the ledger's clock, and what
    is shown of a gateway of which records are missing: that is not known."""
    unknown = set()
    for gateway in answer["gateways"]:
        gateway["doubts"] = sorted(doubt if isinstance(doubt, str) else doubt["name"] for doubt in gateway["doubts"])
        gateway.pop("notes", None)
        gateway.pop("received_to", None)
        if "gap" in gateway["doubts"]:
            gateway.pop("in_force", None)
            unknown.add((gateway["workspace"], gateway["gateway"]))
    changes = [change for change in answer["changes"] if (change["workspace"], change["gateway"]) not in unknown]
    return {"exit": code, "gateways": nameless(answer["gateways"]), "changes": nameless(changes)}


def nameless(value):
    """Without the keys `name`, and as JSON has it."""
    if isinstance(value, dict):
        return {key: nameless(one) for key, one in value.items() if key != "name"}
    return [nameless(one) for one in value] if isinstance(value, (list, tuple)) else value


def both_of_access(verifier, folder):
    """The first answer on which they differ, of both; or nothing twice."""
    second, asked = load_once(), json.loads((folder / "access.json").read_text())
    for question in asked["questions"]:
        period = {"as_of": asked["as_of"], "at_size": None, "since": question["at"], "until": None}
        one, other = first_verdict(verifier, folder, **period), second_verdict(second, folder, **period)
        if one != other or one["exit"] == 1:
            return {"asked": period, "is": one}, {"is": other, "and must not be": "refuted"}
    policy = second.parse_policy((folder / "policy.json").read_bytes())
    access = second.Access(second.Run(second.Archive(folder / "archive"), policy, [], asked["as_of"]))
    for question in asked["questions"]:
        one = first_of_access(verifier, folder, asked["as_of"], **question)
        if question["tool"]:
            question["tool"] = tuple(question["tool"].split("/", 1))
        found = access.answer(**question)
        other = access_answer(found["exit_code"], found)
        if one["exit"] == 1:
            return "it is refuted, so nobody says anything", other["exit"]
        if one != other:
            return ({"asked": question, "differs": difference} for difference in differing(one, other))
    return None, None


def differing(one, other, path=""):
    """The innermost values on whose way the two differ first."""
    if isinstance(one, dict) and isinstance(other, dict) and set(one) == set(other):
        key = next(key for key in one if one[key] != other[key])
        return differing(one[key], other[key], f"{path}/{key}")
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        at = next(at for at, pair in enumerate(zip(one, other)) if pair[0] != pair[1])
        return differing(one[at], other[at], f"{path}/{at}")
    return (path, one), (path, other)


def both(asked):
    verifier, root, folder = asked
    try:
        if (folder / "access.json").exists():
            return str(folder.relative_to(root)), *both_of_access(verifier, folder)
        if (folder / "evidence").exists():
            answers = first_of_evidence(verifier, folder), second_of_evidence(load_once(), folder)
        else:
            question = json.loads((folder / "asked.json").read_text())
            answers = first_verdict(verifier, folder, **question), second_verdict(load_once(), folder, **question)
    except Exception as why:  # noqa: BLE001 whatever a verifier breaks on is a disagreement, named below
        answers = "one of them broke", repr(why)
    return str(folder.relative_to(root)), *answers


def load_once():
    if "second_verifier" not in sys.modules:
        load_second()
    return sys.modules["second_verifier"]


def folder_for_archives():
    """In memory if there is room: 150,000 small files keep a disk busy for longer than all verdicts take."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > BYTES_MAX
    return memory if roomy else None


def opens_the_example():
    """Whether the second verifier opens the directory entry of FORMAT.md 5.4 with its key, and with no other."""
    second = load_once()
    page = SECOND.with_name("FORMAT.md").read_text(encoding="utf-8")
    example = page.partition("<!-- directory example: begin -->")[2].partition("<!-- directory example: end -->")[0]
    commitment, _, contents, ciphertext = map(bytes.fromhex, example.split())
    origin, key = "log.example/custody", bytes([0x4B] * 32)
    entry = SimpleNamespace(member=bytes([0xA1] * 16), revision=2, nonce=bytes([0xBF] * 24),
                            key_commitment=commitment, ciphertext=ciphertext)
    opened = second.open_entry(origin, entry, key)
    other = second.open_entry(origin, entry, bytes(32))
    entry.revision = 3
    moved = second.open_entry(origin, entry, key)
    right = opened == ("opened", second.decode("DirectoryContents", contents))
    return right and other == ("other key", None) and moved == ("broken", None)


def main():
    if not opens_the_example():
        print("the second verifier does not open the directory entry of FORMAT.md 5.4, or opens it with another key")
        return 1
    golden, verifier = sys.argv[1:3]
    with tempfile.TemporaryDirectory(dir=folder_for_archives()) as temporary:
        root = Path(sys.argv[3] if len(sys.argv) > 3 else temporary)
        for what in ("--lies", "--evidence"):
            subprocess.run([golden, what, root], check=True, timeout=SECONDS_MAX)
        subprocess.run([golden, "--access", root, str(HISTORIES), str(SEED)], check=True, timeout=SECONDS_MAX)
        folders = sorted(file.parent for name in ("expected.json", "access.json") for file in root.rglob(name))
        asked = [(verifier, root, folder) for folder in folders]
        apart = 0
        with multiprocessing.Pool(os.cpu_count()) as pool:
            for name, first, second in pool.imap(both, asked, chunksize=8):
                if first != second:
                    apart += 1
                    print(f"{name}:\n  verifier         {first}\n  second_verifier  {second}", flush=True)
    print(f"two verifiers over {len(folders)} archives, evidence files and histories of access changes: {len(folders) - apart} agree, {apart} do not")
    return 1 if apart or not folders else 0


if __name__ == "__main__":
    sys.exit(main())
