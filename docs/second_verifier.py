#!/usr/bin/env python3
"""A second verifier of Custody archives and evidence, written from FORMAT.md alone.

It exists to show that FORMAT.md is complete, and to give a sceptic two independent answers: it shares no code with the
verifier in Rust, and both must agree over every archive (six claims, exit code, first failing check). It reads the message
tables and the table of checks out of the FORMAT.md that lies beside it, so that page is the norm that it executes; everything
else (wire form, hashes, trees, signatures, notes, chains, numbering) is its own code. Numbers in comments are sections of
FORMAT.md. It prefers the plain way to the fast one.

    pip install blake3 cryptography zstandard          (Python 3.11 or later)
    second_verifier.py verify ARCHIVE --policy policy.json [--known FILE ...] [--as-of TIME_US] [--at-size N] --json
    second_verifier.py evidence FILE --policy policy.json --json
    second_verifier.py names ARCHIVE --policy policy.json --disclosure FILE --json
    second_verifier.py access ARCHIVE --policy policy.json --at TIME_US | --between TIME_US TIME_US [--tool SERVER/TOOL] --json

`names` opens the directory entries of a disclosure file (5.4, 5.7) in an archive whose log and workspace `ledger` hold; the exit code is then 1
if something is wrong with an entry or the file.

`access` says who could call what at a time, or which changes of that were made between two (5.6), by each gateway in an archive that holds; where
`doubts` are named it is not known, and the exit code is 2.

Exit codes: 0 all required claims verified, 1 something refuted, 2 undecided or unreadable, 64 wrong usage.
"""

import argparse
import base64
import datetime
import hashlib
import itertools
import json
import os
import re
import stat
import sys
import time
import unicodedata
from collections import namedtuple
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

U64_MAX = 2**64 - 1
TIME_MAX = 253402300799999999
DAY_US = 86_400_000_000
ZEROS = bytes(32)
FINDINGS_MAX = 1000
KNOWN_BYTES_MAX = 2_097_152
AHEAD_MAX = 300  # seconds (13.6)
CLAIMS = ("unaltered", "authorised", "complete", "not_rolled_back", "not_rewritten", "dated")


class Malformed(Exception):
    """Bytes that are not in form (2)."""


class Future(Exception):
    """Bytes of a later version, of which nothing is concluded (2.5)."""


class NoVerdict(Exception):
    """Something that ends verification without a verdict: exit code 2 (13.1)."""


class Fault(Exception):
    """A check that did not pass (13.1)."""

    def __init__(self, check, place="", undecided=False):
        super().__init__(check, place)
        self.check, self.place, self.undecided = check, place, undecided


def require(condition, check, place=""):
    """Refutes `check` at `place` unless the condition holds."""
    if not condition:
        raise Fault(check, place)


def in_form(condition, why):
    """The same for rules of form, which have no name of their own."""
    if not condition:
        raise Malformed(why)


def judged(check, place, parse, *arguments):
    """A form check: malformed bytes refute it, bytes of a future version leave it undecided."""
    try:
        return parse(*arguments)
    except Malformed as error:
        raise Fault(check, f"{place}: {error}") from error
    except Future as error:
        raise Fault(check, place, undecided=True) from error


# ---------------------------------------------------------------------------------------------------------------------
# The tables of FORMAT.md


@dataclass(frozen=True)
class Field:
    """One line of a message's table."""

    tag: int
    name: str
    type: str
    of: str
    presence: str
    group: str
    may_be_absent: bool
    low: int
    high: int
    characters: str

    @property
    def packed(self):
        return self.type.endswith(", packed")

    @property
    def wire(self):
        return 2 if self.packed or self.type in ("bytes", "string", "message") else 0


def field_of(cells):
    """A Field from the cells `tag | name | type | presence | limits | meaning`."""
    tag, name, type_cell, presence_cell, limits, _ = cells
    kind, _, of = type_cell.replace("`", "").partition(" ") if "`" in type_cell else (type_cell, "", "")
    presence, _, group = presence_cell.partition(" `")
    low, high = limits_of(kind, limits)
    return Field(int(tag), name.strip("`"), kind, of, presence, group.partition("`")[0],
                 "may be absent" in presence_cell, low, high, limits.partition(", ")[2])


def limits_of(kind, limits):
    """The least and greatest value, or length in bytes."""
    numbers = [int(number) for number in re.findall(r"\d+", limits)]
    if limits == "time":
        return 0, TIME_MAX
    if limits.startswith("at most"):
        return 0, numbers[0]
    if kind in ("bytes", "string") and numbers:
        return numbers[0], numbers[-1]
    return 0, {"uint32": 2**32 - 1}.get(kind, U64_MAX)


class Table:
    """A message: its fields by tag, and what the order and presence rules need."""

    def __init__(self):
        self.fields = {}

    def close(self):
        self.versioned = 1 in self.fields and self.fields[1].type == "version"
        self.required = [f.name for f in self.fields.values() if f.presence == "required"]
        self.groups = {f.group: f.may_be_absent for f in self.fields.values() if f.group}
        empty = {"bytes": b"", "string": "", "bool": False}
        self.defaults = {group: None for group in self.groups}
        for f in self.fields.values():
            implicit = empty.get(f.type, 0) if f.presence == "implicit" else None
            self.defaults[f.name] = () if f.presence.startswith("repeated") else implicit


def read_tables(text):
    """Messages, enums and checks of FORMAT.md, by name."""
    messages, enums, checks, current = {}, {}, {}, None
    for line in text.splitlines():
        heading = re.match(r"\*\*(enum )?`(\w+)`\*\*", line)
        if heading:
            current = (enums.setdefault(heading[2], {}) if heading[1] else messages.setdefault(heading[2], Table()))
        elif line.startswith("#"):
            current = None
        cells = [cell.strip() for cell in line.strip("| ").split("|")] if line.startswith("|") else []
        cells += [""] * (6 - len(cells)) if isinstance(current, Table) else []
        if not cells or not cells[0].isdigit():
            continue
        if isinstance(current, Table):
            message_field = field_of(cells)
            current.fields[message_field.tag] = message_field
        elif isinstance(current, dict):
            current[int(cells[0])] = cells[1].strip("`")
        elif len(cells) == 4 and cells[2] in CLAIMS:
            checks[cells[1].strip("`")] = cells[2]
    for table in messages.values():
        table.close()
    return messages, enums, checks


MESSAGES, ENUMS, CLAIM_OF_CHECK = read_tables(Path(__file__).with_name("FORMAT.md").read_text(encoding="utf-8"))

# ---------------------------------------------------------------------------------------------------------------------
# Strict form (2)


def varint(data, at):
    """The minimal varint at `at`, and where it ends."""
    value = 0
    for index in range(10):
        in_form(at + index < len(data), "cut varint")
        byte = data[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            in_form(byte != 0 or index == 0, "varint not minimal")
            in_form(value <= U64_MAX, "varint above 64 bits")
            return value, at + index + 1
    raise Malformed("varint too long")


def read_version(data):
    """The version is read before all else (2.5)."""
    in_form(data[:1] == b"\x08", "version is not first")
    version, _ = varint(data, 1)
    in_form(version != 0, "version 0")
    if version > 1:
        raise Future(f"version {version}")


def decode(name, data):
    """The message of that name in `data`, as a namespace; a oneof's name holds the name of the field that is set."""
    table = MESSAGES[name]
    if table.versioned:
        read_version(data)
    values, last, at = {}, 0, 0
    while at < len(data):
        key, at = varint(data, at)
        one = table.fields.get(key >> 3)
        in_form(one is not None and one.wire == key & 7, f"{name}: unknown field {key >> 3}")
        repeats = one.presence.startswith("repeated") and not one.packed
        in_form(one.tag > last or (one.tag == last and repeats), f"{name}.{one.name}: order")
        last = one.tag
        content, at = varint(data, at)
        if one.wire == 2:
            in_form(content <= len(data) - at, f"{name}.{one.name}: cut")
            content, at = data[at:at + content], at + content
        keep(values, one, content, repeats)
    return complete(name, table, values)


def keep(values, one, content, repeats):
    """Puts one field's value beside those before it, under its rules of occurrence (2.2)."""
    value = packed_of(one, content) if one.packed else value_of(one, content)
    if one.group:
        in_form(one.group not in values, f"{one.group}: two of a oneof")
        values[one.group] = one.name
    if one.presence == "implicit":
        in_form(value, f"{one.name}: zero or empty in written form")
    if repeats:
        value = values.get(one.name, []) + [value] if one.name not in values else values[one.name] + [value]
        in_form(len(value) <= repeat_max(one), f"{one.name}: too many")
    values[one.name] = value


def repeat_max(one):
    return int(one.presence.rpartition(" ")[2])


def packed_of(one, content):
    numbers, at = [], 0
    while at < len(content):
        number, at = varint(content, at)
        in_form(one.low <= number <= one.high, f"{one.name}: out of limits")
        numbers.append(number)
    in_form(1 <= len(numbers) <= repeat_max(one), f"{one.name}: count")
    return numbers


def value_of(one, content):
    """A single value within the limits of its type (2.4)."""
    if one.type == "message":
        return nested(one, content)
    if one.type in ("bytes", "string"):
        in_form(one.low <= len(content) <= one.high, f"{one.name}: length")
        return content if one.type == "bytes" else text_of(one, content)
    if one.type == "enum":
        in_form(content in ENUMS[one.of], f"{one.name}: unknown value")
        return ENUMS[one.of][content]
    if one.type == "bool":
        in_form(content == 1, f"{one.name}: not 1")
        return True
    in_form(one.low <= content <= one.high, f"{one.name}: out of limits")
    return content


def nested(one, content):
    try:
        return decode(one.of, content)
    except Future as error:
        raise Malformed(f"{one.name}: a part of another version") from error


CHARACTERS = {"token": re.compile(r"[A-Za-z0-9_./:@+-]*"), "pattern": re.compile(r"[A-Za-z0-9_./:@+*-]*")}


def text_of(one, content):
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"{one.name}: not UTF-8") from error
    if one.characters:
        in_form(CHARACTERS[one.characters].fullmatch(text), f"{one.name}: not a {one.characters}")
    return text


def complete(name, table, values):
    for required in table.required:
        in_form(required in values, f"{name}.{required}: missing")
    for group, may_be_absent in table.groups.items():
        in_form(group in values or may_be_absent, f"{name}.{group}: none of a oneof")
    return SimpleNamespace(**{**table.defaults, **values})


def wire_varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out) + bytes([number])


def wire(*fields):
    """Encodes (tag, value) pairs; None, zero and empty are left out. Enough for what a verifier has to make itself."""
    out = b""
    for tag, value in fields:
        if not value:
            continue
        if isinstance(value, int):
            out += wire_varint(tag << 3) + wire_varint(value)
        else:
            value = value.encode() if isinstance(value, str) else value
            out += wire_varint(tag << 3 | 2) + wire_varint(len(value)) + value
    return out


def base64_of(text):
    """Base64 in its one form (1)."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Malformed("not base64") from error
    in_form(base64.b64encode(data).decode() == text, "not canonical base64")
    return data


def hex_of(text, length):
    in_form(isinstance(text, str) and re.fullmatch(r"[0-9a-f]*", text) and len(text) == 2 * length, "not hex")
    return bytes.fromhex(text)


def canonical_number(text):
    in_form(re.fullmatch(r"0|[1-9][0-9]*", text), "not a canonical number")
    in_form(len(text) <= 20 and int(text) <= U64_MAX, "above 64 bits")
    return int(text)


# ---------------------------------------------------------------------------------------------------------------------
# Hashes and trees (3)


@lru_cache(maxsize=None)
def key_of(use):
    return blake3(b"", derive_key_context="custody/v1/" + use).digest()


def keyed(use, data):
    """H[use](data)."""
    return blake3(data, key=key_of(use)).digest()


def sha256(data):
    return hashlib.sha256(data).digest()


def add(*numbers):
    """A sum, which stops at 2^64 - 1 (1)."""
    return min(sum(numbers), U64_MAX)


def u32be(number):
    return number.to_bytes(4, "big")


def u64be(number):
    return number.to_bytes(8, "big")


def lp(data):
    return u32be(len(data)) + data


Hashing = namedtuple("Hashing", "node empty")


def blake3_tree(name):
    node = f"{name}-node"
    return Hashing(lambda left, right: keyed(node, left + right), keyed(f"{name}-leaf", b""))


BATCH_TREE, SEGMENT_TREE, HISTORY_TREE = blake3_tree("batch"), blake3_tree("segment"), blake3_tree("history")
LOG_TREE = Hashing(lambda left, right: sha256(b"\x01" + left + right), sha256(b""))


class Tree:
    """A growing tree of the shape of RFC 6962 that knows its root at every size it had."""

    def __init__(self, hashing, leaves=()):
        self.hashing, self.levels = hashing, [[]]
        for leaf in leaves:
            self.append(leaf)

    def __len__(self):
        return len(self.levels[0])

    def append(self, leaf):
        level, subtree = 0, leaf
        while True:
            if level == len(self.levels):
                self.levels.append([])
            self.levels[level].append(subtree)
            if len(self.levels[level]) % 2:
                return
            subtree = self.hashing.node(*self.levels[level][-2:])
            level += 1

    def root(self, size=None):
        """The root of the first `size` leaves; None if there are not so many."""
        size = len(self) if size is None else size
        if size > len(self):
            return None
        root = self.hashing.empty if size == 0 else None
        for level in range(size.bit_length()):
            if size >> level & 1:
                subtree = self.levels[level][(size >> level) - 1]
                root = subtree if root is None else self.hashing.node(subtree, root)
        return root


def included(hashing, index, size, leaf, path, root):
    """RFC 9162 section 2.1.3.2 with the edges of 3.3."""
    if index >= size:
        return False
    node, last = leaf, size - 1
    for sibling in path:
        if last == 0:
            return False
        if index & 1 or index == last:
            node = hashing.node(sibling, node)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            node = hashing.node(node, sibling)
        index, last = index >> 1, last >> 1
    return last == 0 and node == root


def range_root(hashing, first, leaves, size, proof):
    """The root that a range proof (3.4) gives; None if it is refused."""
    end = first + len(leaves)
    if not leaves or end > size:
        return None
    leaf_left, proof_left = iter(leaves), iter(proof)

    def subtree(low, high):
        if high <= first or low >= end:
            return next(proof_left)
        if high - low == 1:
            return next(leaf_left)
        middle = low + (1 << (high - low - 1).bit_length() - 1)
        left = subtree(low, middle)
        return hashing.node(left, subtree(middle, high))

    try:
        root = subtree(0, size)
    except StopIteration:
        return None
    return root if next(proof_left, None) is None and next(leaf_left, None) is None else None


# ---------------------------------------------------------------------------------------------------------------------
# Signatures (4)

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
SMALL_ORDER = {bytes.fromhex(text) for text in (
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa")}


@lru_cache(maxsize=4096)
def public_key_passes(key):
    """4.2: a canonical encoding of a point of the curve that is not of small order."""
    y, sign = int.from_bytes(key, "little") & (1 << 255) - 1, key[31] >> 7
    if len(key) != 32 or y >= P or key in SMALL_ORDER:
        return False
    x_squared = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    if x_squared == 0:
        return sign == 0
    return pow(x_squared, (P - 1) // 2, P) == 1


def signature_verifies(key, signature, message):
    """4.3, for a key that passed 4.2; the library's equation is the one without the cofactor."""
    if len(signature) != 64 or int.from_bytes(signature[32:], "little") >= L or signature[:32] in SMALL_ORDER:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def signed(context, key, signature, data):
    return signature_verifies(key, signature, f"custody/v1/{context}".encode() + b"\0" + data)


def key_id_of(role, public_key):
    number = next(number for number, name in ENUMS["Role"].items() if name == role)
    return keyed("key-id", u32be(number) + public_key)


# ---------------------------------------------------------------------------------------------------------------------
# Notes (10.4)

NOTE_MAX = 98_304
NoteLine = namedtuple("NoteLine", "name key_hash signature")
Note = namedtuple("Note", "origin size root text lines")
WHITE_SPACE = set("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | {chr(c) for c in range(0x2000, 0x200B)}


def check_name(name):
    in_form(1 <= len(name.encode()) <= 255, "length of a name")
    in_form(not any(c in WHITE_SPACE or c == "+" or unicodedata.category(c) == "Cc" for c in name), "name")
    return name


def note_line(line):
    in_form(line.startswith("\u2014 "), "signature line")
    name, space, encoded = line[2:].partition(" ")
    in_form(space, "signature line")
    data = base64_of(encoded)
    in_form(len(data) >= 5, "short signature")
    return NoteLine(check_name(name), data[:4], data[4:])


def parse_note(data):
    """A checkpoint: a signed note of three lines."""
    in_form(len(data) <= NOTE_MAX, "note too long")
    try:
        whole = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed("note is not UTF-8") from error
    end = whole.rfind("\n\n")
    in_form(end >= 0 and whole.endswith("\n"), "no empty line, or cut")
    text, signatures = whole[:end + 1], whole[end + 2:]
    lines = signatures.split("\n")[:-1]
    in_form(1 <= len(lines) <= 64, "count of signature lines")
    parts = text.split("\n")
    in_form(len(parts) == 4, "text is not three lines")
    root = base64_of(parts[2])
    in_form(len(root) == 32, "length of the root")
    return Note(check_name(parts[0]), canonical_number(parts[1]), root, text.encode(), [note_line(x) for x in lines])


def note_key_hash(name, kind, key):
    return sha256(name.encode() + b"\n" + bytes([kind]) + key)[:4]


def note_signed_by(note, key):
    mine = [line for line in note.lines
            if line.name == note.origin and line.key_hash == note_key_hash(note.origin, 1, key)]
    return any(signature_verifies(key, line.signature, note.text) for line in mine)


def cosignature_time(line, key, text):
    """The time of a witness's line, None if it is not valid."""
    if len(line.signature) != 72:
        return None
    seconds = int.from_bytes(line.signature[:8], "big")
    message = f"cosignature/v1\ntime {seconds}\n".encode() + text
    return seconds if signature_verifies(key, line.signature[8:], message) else None


def checkpoint_text(origin, size, root):
    return f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n".encode()


# ---------------------------------------------------------------------------------------------------------------------
# The audit policy (12)

Root = namedtuple("Root", "public_key successor_hash")
POLICY_KEYS = {"version", "origin", "scope", "roots", "witnesses", "quorum", "greatest_age_seconds",
               "minimum_retention_days", "required", "known"}


def policy_object(value, keys, required):
    in_form(isinstance(value, dict) and set(value) <= keys and required <= set(value), "keys of the policy")
    return value


def policy_number(value, greatest=U64_MAX):
    in_form(isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= greatest, "number in the policy")
    return value


def digits_alone(text):
    in_form(text != "-0", "-0 in the policy")
    return int(text)


def policy_list(value, least=0):
    in_form(isinstance(value, list) and len(value) >= least, "list in the policy")
    return value


def policy_text(value):
    in_form(isinstance(value, str), "string in the policy")
    value.encode()
    return value


def policy_key(value):
    key = hex_of(value, 32)
    in_form(public_key_passes(key), "key in the policy")
    return key


def no_twins(pairs):
    in_form(len({key for key, _ in pairs}) == len(pairs), "a key twice in the policy")
    return dict(pairs)


def no_fraction(text):
    raise Malformed(f"{text} in the policy")


def parse_policy(data):
    """The policy as a namespace; anything unusable is Malformed."""
    in_form(len(data) <= 1_048_576, "policy too long")
    try:
        whole = json.loads(data.decode("utf-8"), object_pairs_hook=no_twins, parse_float=no_fraction,
                           parse_constant=no_fraction, parse_int=digits_alone)
        return policy_of(policy_object(whole, POLICY_KEYS, {"version", "origin", "scope", "roots"}))
    except (ValueError, RecursionError) as error:
        raise Malformed(f"policy: {error}") from error


def policy_of(whole):
    in_form(policy_number(whole["version"]) == 1, "version of the policy")
    roots = list(map(policy_root, policy_list(whole["roots"], 1)))
    witnesses = list(map(policy_witness, policy_list(whole.get("witnesses", []))))
    for values in ([era for era, _ in roots], [name for name, _ in witnesses], [key for _, key in witnesses]):
        in_form(len(set(values)) == len(values), "an era, witness or key twice in the policy")
    required = policy_list(whole.get("required", list(CLAIMS[:3])))
    in_form(all(isinstance(claim, str) and claim in CLAIMS for claim in required), "required claims")
    in_form(required and len(set(required)) == len(required), "no claim is required, or one twice")
    return SimpleNamespace(
        origin=policy_text(whole["origin"]), scope=policy_scope(whole["scope"]),
        roots=dict(roots), witnesses=dict(witnesses), required=required,
        quorum=policy_number(whole.get("quorum", 0), len(witnesses)),
        greatest_age=policy_number(whole.get("greatest_age_seconds", 0)),
        retention_days=policy_number(whole.get("minimum_retention_days", 0)),
        known=[policy_text(text).encode() for text in policy_list(whole.get("known", []))])


def policy_scope(value):
    if value == "organisation":
        return None
    names = policy_object(value, {"workspaces"}, {"workspaces"})["workspaces"]
    scope = [hex_of(name, 16) for name in policy_list(names, 1)]
    in_form(len(set(scope)) == len(scope), "a workspace twice in the policy")
    return scope


def policy_root(value):
    policy_object(value, {"era", "public_key", "successor_hash"}, {"era", "public_key", "successor_hash"})
    return (policy_number(value["era"], 2**32 - 1),
            Root(policy_key(value["public_key"]), hex_of(value["successor_hash"], 32)))


def policy_witness(value):
    policy_object(value, {"name", "public_key"}, {"name", "public_key"})
    return policy_text(value["name"]), policy_key(value["public_key"])


# ---------------------------------------------------------------------------------------------------------------------
# Reading an archive: a folder or a tar (11)


def check_object_name(name):
    parts = name.split("/")
    if len(name.encode("utf-8", "surrogateescape")) > 512 or len(parts) > 16 or "\\" in name or "\0" in name:
        raise NoVerdict(f"not a name: {name!r}")
    if any(part in ("", ".", "..") for part in parts) or any(0xDC80 <= ord(c) <= 0xDCFF for c in name):
        raise NoVerdict(f"not a name: {name!r}")
    return name


def length_limit(name):
    """The greatest length of the object of that name."""
    if re.match(r"workspaces/[^/]*/segments/", name):
        return 167_772_160
    if name.startswith(("log/checkpoints/", "log/cosignatures/")):
        return NOTE_MAX
    if name.startswith("log/tile/"):
        return 16_777_472 if name.startswith("log/tile/entries/") else 8_192
    return 32_768


class Archive:
    """Names, and bytes by name, cut one byte past their limit."""

    def __init__(self, path):
        try:
            self.place, self.objects = path, {}
            if path.is_dir():
                self.read_folder(path, "")
            else:
                self.objects = tar_members(path)
        except OSError as error:
            raise NoVerdict(f"cannot read the archive: {error}") from error
        if not any(name.startswith(("log/", "workspaces/")) for name in self.objects):
            raise NoVerdict("no archive: is this its top folder?")

    def read_folder(self, folder, prefix):
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            name = check_object_name(prefix + entry.name)
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                self.read_folder(entry.path, name + "/")
            elif stat.S_ISREG(mode):
                self.objects[name] = (entry.path, 0, None)
            else:
                raise NoVerdict(f"neither file nor folder: {name}")

    def below(self, folder):
        """Names below a folder, ascending by their bytes."""
        return sorted((name for name in self.objects if name.startswith(folder + "/")), key=lambda name: name.encode())

    def read(self, name):
        """The bytes, or None if there is no such object."""
        if name not in self.objects:
            return None
        path, offset, length = self.objects[name]
        limit = length_limit(name) + 1
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                return file.read(limit if length is None else min(limit, length))
        except OSError as error:
            raise NoVerdict(f"cannot read {name}: {error}") from error


def tar_members(path):
    """Name to (file, offset, length) of a tar's files, with one folder on top taken off."""
    members, long_name, extended = [], None, False
    with open(path, "rb") as file:
        while True:
            header = file.read(512)
            if header == bytes(512):
                break
            kind, name, size = tar_header(header)
            data_at = file.tell()
            if kind in b"xgL":
                if extended:
                    raise NoVerdict("an extension header of the tar that is followed by another one")
                long_name = tar_extension(kind, size, file.read((size + 511) // 512 * 512) if size <= 65_536 else b"")
                extended = kind in b"xL"
            elif kind == b"5" and size > 0:
                raise NoVerdict("a folder with content in the tar")
            elif kind in b"0\0" or kind == b"5":
                members.append((name if long_name is None else long_name, kind == b"5", data_at, size))
                long_name, extended = None, False
            else:
                raise NoVerdict("a tar member that is neither file nor folder")
            file.seek(data_at + (size + 511) // 512 * 512)
        tar_end(file)
    if extended:
        raise NoVerdict("an extension header of the tar without a member")
    return tar_objects(path, members)


def tar_number(field, needed=False):
    """Octal digits up to the first zero byte, with spaces around them."""
    text = field.split(b"\0")[0].strip(b" \t\n\f\r")
    if not re.fullmatch(rb"[0-7]*", text) or (needed and not text):
        raise NoVerdict("a number in a tar header that is none")
    return int(text or b"0", 8)


def tar_header(header):
    if len(header) < 512:
        raise NoVerdict("a tar without its end")
    checksum, size = tar_number(header[148:156], needed=True), tar_number(header[124:136], needed=True)
    if checksum != sum(header) - sum(header[148:156]) + 8 * 32:
        raise NoVerdict("a tar header with a wrong checksum")
    for low, high in (100, 108), (108, 116), (116, 124), (136, 148), (329, 337), (337, 345):
        if header[low] not in (0x80, 0xFF):
            tar_number(header[low:high])
    is_ustar = header[257:265] == b"ustar\x0000"
    if not is_ustar and any(header[345:500]):
        raise NoVerdict("the beginning of a name where this tar has none")
    prefix = header[345:500].split(b"\0")[0]
    name = header[:100].split(b"\0")[0]
    return header[156:157], (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape"), size


def tar_extension(kind, size, blocks):
    """A name that an extension header gives; a size that it gives is refused."""
    data = blocks[:size]
    if len(data) != size or any(blocks[size:]):
        raise NoVerdict("an extension header of the tar that is cut, too long, or goes on after its end")
    if kind == b"L":
        if size > 513 or not data.endswith(b"\0"):
            raise NoVerdict("a long name in the tar without its end")
        return data[:-1].decode("utf-8", "surrogateescape")
    name = None
    for line in re.findall(rb"[^\n]*\n|[^\n]+", data):
        record = re.fullmatch(rb"([0-9]+) ([^=\n]*)=([^\n]*)\n", line)
        if not record or int(record[1]) != len(line):
            raise NoVerdict("a malformed extension header in the tar")
        if record[2] == b"size" or record[2].startswith(b"GNU.sparse"):
            raise NoVerdict("a size in an extension header of the tar")
        if record[2] == b"path":
            if kind == b"g":
                raise NoVerdict("a global header of the tar that names a member")
            name = record[3].decode("utf-8", "surrogateescape")
    return name


def tar_end(file):
    rest = file.read()
    if len(rest) + 512 > 1_048_576 or rest.strip(b"\0"):
        raise NoVerdict("a tar with something after its end")


def tar_objects(path, members):
    seen = {}
    for name, folder, at, size in members:
        if folder and name in (".", "./"):
            continue
        name = check_object_name((name.removesuffix("/") if folder else name).removeprefix("./"))
        if name in seen:
            raise NoVerdict(f"two tar members of one name: {name}")
        seen[name] = None if folder else (path, at, size)
    for name in seen:
        parts = name.split("/")
        if any(seen.get("/".join(parts[:depth])) is not None for depth in range(1, len(parts))):
            raise NoVerdict(f"a tar member below another one that is a file: {name!r}")
    tops = {name.split("/")[0] for name in seen}
    wrapped = len(tops) == 1 and not tops & {"log", "workspaces"} and all("/" in n or p is None for n, p in seen.items())
    return {name.partition("/")[2] if wrapped else name: place for name, place in seen.items() if place is not None}


# ---------------------------------------------------------------------------------------------------------------------
# Statements and chains (8)


@dataclass(frozen=True)
class Key:
    """A key of a chain. Marks are serials of statements, so that the state at every count can be asked for."""

    role: str
    public_key: bytes
    gateway: bytes | None
    serial: int
    signer: bytes | None
    retired: int | None = None
    revoked: int | None = None
    suspect: int | None = None

    def is_retired(self, count):
        return self.retired is not None and self.retired < count

    def is_revoked(self, count):
        return self.revoked is not None and self.revoked < count


@dataclass
class Registrar:
    public_key: bytes
    left: int
    revoked: bool = False


class Refused(Exception):
    """A statement that is not the next one of its chain (8.3)."""


def allow(condition, why):
    if not condition:
        raise Refused(why)


@dataclass(frozen=True)
class SignedStatement:
    """A statement with the bytes that its signature and its hash are over."""

    statement: SimpleNamespace
    signed: bytes
    signature: bytes
    hash: bytes

    @property
    def action(self):
        return getattr(self.statement, self.statement.action)


def parse_statement(data):
    outer = decode("SignedStatement", data)
    return SignedStatement(decode("Statement", outer.statement), outer.statement, outer.signature, sha256(data))


@dataclass(frozen=True)
class Roots:
    """The roots by era, and which of them may sign."""

    by_era: dict
    current: int
    earlier_sign: bool = False

    def signer(self, era):
        allowed = era == self.current or (self.earlier_sign and era < self.current)
        return self.by_era.get(era) if allowed else None


class Chain:
    """One key chain. `roots` moves in the ledger's chain only; a workspace's statements are given theirs."""

    def __init__(self, origin, workspace, roots=None):
        self.origin, self.workspace = origin, workspace
        self.hashes, self.keys, self.registrars = [], {}, {}
        self.holds, self.seen = {}, set()
        self.name, self.removed_by, self.incarnation = "", None, 0
        self.roots_after = [roots]

    @property
    def count(self):
        return len(self.hashes)

    def hash_after(self, count):
        """The chain's head after `count` statements; None if there are not so many."""
        if count > self.count:
            return None
        return self.hashes[count - 1] if count else ZEROS

    def had(self, head):
        return self.hash_after(head.count) == head.hash

    def key(self, key_id, count, role):
        key = self.keys.get(key_id)
        return key if key and key.role == role and key.serial < count else None

    def has_gateway(self, gateway, count, role):
        return any((key.role, key.gateway) == (role, gateway) and key.serial < count for key in self.keys.values())

    def held(self, first, last):
        """Whether a hold stands, after all statements, over times from `first` to `last`."""
        return any(hold.since <= last and (hold.until is None or hold.until >= first) for hold in self.holds.values())

    def log_keys(self, count):
        return [key.public_key for key in self.keys.values()
                if key.role == "LOG" and key.serial < count and not key.is_revoked(count)]

    def judge(self, given, roots=None):
        """Takes the next statement, or raises Refused."""
        statement, roots = given.statement, roots or self.roots_after[-1]
        self.check_place(statement)
        if statement.action == "succeed_root":
            roots = self.succeeded(statement, given.action, roots)
        signer = self.signer_of(statement, roots)
        allow(signed("statement", signer, given.signature, given.signed), "signature")
        if self.workspace is not None:
            allow((statement.action == "create") == (statement.serial == 0), "create comes first, and once")
        self.apply(statement, given)
        self.hashes.append(given.hash)
        self.roots_after.append(roots if self.workspace is None else None)

    def check_place(self, statement):
        """Rules 1 to 6."""
        allow(statement.origin == self.origin, "origin")
        allow(statement.workspace == self.workspace, "workspace")
        allow(statement.serial == self.count, "serial")
        allow(statement.previous == self.hash_after(self.count), "previous")
        allow(self.removed_by is None, "after the removal")
        allow(statement.serial < 1_048_576, "too many statements")

    def succeeded(self, statement, action, roots):
        """Rule 7: the roots with the new era as the current one."""
        allow(public_key_passes(action.public_key), "public key")
        allow(self.workspace is None and statement.registrar is None, "not the ledger's chain, or a registrar")
        committed = roots.by_era[roots.current].successor_hash
        allow(keyed("root-successor", action.public_key) == committed, "not the successor")
        allow(statement.era == roots.current + 1, "era")
        root = Root(action.public_key, action.successor_hash)
        allow(roots.by_era.get(statement.era, root) == root, "not the policy's root of this era")
        return replace(roots, by_era={**roots.by_era, statement.era: root}, current=statement.era)

    def signer_of(self, statement, roots):
        """Rule 8: the public key that must have signed."""
        if statement.registrar is None:
            root = roots.signer(statement.era)
            allow(root, "era")
            return root.public_key
        registrar = self.registrars.get(statement.registrar)
        allow(registrar and not registrar.revoked, "registrar")
        return registrar.public_key

    ALLOWED = {  # action: (in a workspace by root, there by registrar, in the ledger's chain by root)
        "create": (1, 0, 0), "remove": (1, 0, 0), "delegate": (1, 0, 0), "enrol": (1, 1, 1), "retire": (1, 1, 1),
        "revoke": (1, 1, 1), "suspect": (1, 1, 1), "hold": (1, 1, 0), "release": (1, 1, 0), "succeed_root": (0, 0, 1),
        "incarnation": (0, 0, 1)}

    def apply(self, statement, given):
        """Rule 11."""
        in_workspace, by_registrar = self.workspace is not None, statement.registrar is not None
        column = (1 if by_registrar else 0) if in_workspace else 2
        allow(self.ALLOWED[statement.action][column] and (in_workspace or not by_registrar), "action in this place")
        if statement.action == "remove":
            allow(self.name != "ledger", "the ledger's workspace stays")
            self.removed_by = given.hash
        elif statement.action != "succeed_root":
            getattr(self, "apply_" + statement.action)(statement, given.action)

    def apply_create(self, _statement, action):
        self.name = action.name

    def take_fresh(self, public_key):
        allow(public_key_passes(public_key), "public key")
        allow(public_key not in self.seen, "key is not fresh")
        self.seen.add(public_key)

    def check_possession(self, role, action, gateway):
        number = next(number for number, name in ENUMS["Role"].items() if name == role)
        message = wire((1, 1), (2, self.origin), (3, self.workspace), (4, number), (5, action.public_key), (6, gateway))
        allow(signed("possession", action.public_key, action.possession, message), "possession")

    def apply_delegate(self, _statement, action):
        self.take_fresh(action.public_key)
        self.check_possession("REGISTRAR", action, None)
        registrar = Registrar(action.public_key, action.enrolments_max)
        self.registrars[key_id_of("REGISTRAR", action.public_key)] = registrar

    def apply_enrol(self, statement, action):
        if self.workspace is None:
            allow(action.role in ("RECORD", "HEAD", "LOG"), "role")
        else:
            allow(action.role in ("GATEWAY", "RECEIPT"), "role")
            allow(action.role != "GATEWAY" or self.name != "ledger", "a gateway in the ledger's workspace")
        allow((action.gateway is not None) == (action.role in ("GATEWAY", "RECORD")), "gateway")
        self.take_fresh(action.public_key)
        if action.role != "RECEIPT" or action.possession is not None:
            allow(action.possession is not None, "no possession")
            self.check_possession(action.role, action, action.gateway)
        if statement.registrar is not None:
            registrar = self.registrars[statement.registrar]
            allow(registrar.left > 0, "no enrolment left")
            registrar.left -= 1
        self.keys[key_id_of(action.role, action.public_key)] = Key(
            action.role, action.public_key, action.gateway, statement.serial, statement.registrar)

    def mark(self, key_id, **marks):
        key = self.keys.get(key_id)
        allow(key, "no such key")
        kept = {name: value if getattr(key, name) is None else min(value, getattr(key, name))
                for name, value in marks.items()}
        self.keys[key_id] = replace(key, **kept)

    def apply_retire(self, statement, action):
        self.mark(action.key_id, retired=statement.serial)

    def apply_suspect(self, _statement, action):
        self.mark(action.key_id, suspect=action.since)

    def apply_revoke(self, statement, action):
        registrar = self.registrars.get(action.key_id)
        if registrar is None:
            allow(not action.void_serials, "void serials of a key")
            self.mark(action.key_id, revoked=statement.serial)
            return
        allow(statement.registrar is None, "only the root revokes a registrar")
        registrar.revoked = True
        enrolled = {key.serial: key_id for key_id, key in self.keys.items() if key.signer == action.key_id}
        for serial in action.void_serials:
            allow(serial in enrolled, "not an enrolment by this registrar")
            self.mark(enrolled[serial], revoked=statement.serial, suspect=0)

    def apply_hold(self, _statement, action):
        allow(action.hold not in self.holds, "the hold stands already")
        self.holds[action.hold] = action

    def apply_release(self, _statement, action):
        allow(action.hold in self.holds, "no such hold")
        del self.holds[action.hold]

    def apply_incarnation(self, _statement, action):
        allow(action.number == self.incarnation + 1, "number of the incarnation")
        self.incarnation = action.number


# ---------------------------------------------------------------------------------------------------------------------
# Batches and their numbering (5, 6)

Batch = namedtuple("Batch", "header header_bytes signature seed records hash")


def check_header_shape(header):
    """Rules 4 to 13 of 6.2."""
    opens, first = header.open, header.batch_number == 0
    unlinked = header.previous_header_hash == ZEROS
    in_form(opens == first, "open")
    in_form((header.opening_reason is not None) == (first and unlinked), "opening reason")
    in_form(first or not unlinked, "previous header")
    in_form((header.drop_reason is not None) == (header.dropped != 0), "drop reason")
    in_form(not first or header.record_count, "an opening batch without records")
    in_form(header.heartbeat == (header.record_count == 0 and not header.close), "heartbeat")
    in_form(header.first_record >= header.dropped, "first record")
    in_form(not first or header.first_record == header.dropped, "first record")
    in_form(header.first_record + header.record_count <= U64_MAX, "record numbers")
    in_form(header.batch_number < U64_MAX, "batch number")


def parse_header(data):
    header = decode("BatchHeader", data)
    check_header_shape(header)
    return header


def parse_batch(data):
    in_form(len(data) <= 1_048_576, "batch too long")
    outer = decode("SignedBatch", data)
    header = parse_header(outer.header)
    in_form(len(outer.records) == header.record_count, "number of records")
    return Batch(header, outer.header, outer.signature, outer.seed, outer.records,
                 keyed("header-hash", outer.header))


def parse_record(data):
    record = decode("Record", data)
    if record.kind == "call":
        in_form((record.call.phase == "INTENT") == (record.call.outcome == "RUNNING"), "intent and outcome")
    return record


GATEWAY_KINDS = {"call", "access_change", "tool_definition", "gateway_event"}
RECORD_KINDS = {"gateway_event", "directory_entry", "ledger_event", "search", "alarm", "disposition"}


def may_write(role, workspace_name, kind):
    """The authority table (5.2)."""
    if role == "GATEWAY":
        return workspace_name != "ledger" and kind in GATEWAY_KINDS
    return role == "RECORD" and kind in RECORD_KINDS


@dataclass
class Epoch:
    """What is known of one epoch (6.4); `writer` and the times serve the findings on silence."""

    key_id: bytes | None
    last_batch: int
    next_record: int
    last_hash: bytes
    closed: bool
    writer: SimpleNamespace | None = None
    created_at: int = 0
    received_at: int = 0


@dataclass
class Gateway:
    epochs: dict = field(default_factory=dict)
    opened_last: bytes | None = None


def continues(epoch, header):
    """Whether the header is the next of an epoch that is known."""
    after_drops = epoch.next_record + header.dropped
    return (header.batch_number == epoch.last_batch + 1 and not epoch.closed
            and epoch.key_id in (None, header.key_id) and header.previous_header_hash == epoch.last_hash
            and after_drops == header.first_record)


def begins(gateway, header, past_unknown, was_unknown=False):
    """Whether the header may be the first that is seen of its epoch."""
    if past_unknown and gateway.opened_last is None:
        return True
    if header.batch_number != 0:
        return past_unknown
    if was_unknown and gateway.opened_last is None:
        return True
    if header.opening_reason is None:
        last = gateway.opened_last
        return last is not None and header.previous_header_hash == gateway.epochs[last].last_hash
    return header.opening_reason != "FIRST" or gateway.opened_last is None


# ---------------------------------------------------------------------------------------------------------------------
# Segment objects (9)


def segment_leaf(kind, first_position, received_at, term, signed_bytes, signature):
    number = next(number for number, name in ENUMS["LeafKind"].items() if name == kind)
    return keyed("segment-leaf", bytes([number]) + u64be(first_position) + u64be(received_at) + u64be(term)
                 + lp(signed_bytes) + lp(signature))


@dataclass(frozen=True)
class Leaf:
    """An entry of a segment object: what came (a Batch or a SignedStatement) and its leaf hash."""

    entry: SimpleNamespace
    content: object
    hash: bytes

    @property
    def kind(self):
        return self.entry.kind


def parse_entry(data):
    entry = decode("SegmentEntry", data)
    if entry.kind == "STATEMENT":
        content = parse_statement(entry.signed)
        body, signature = content.signed, content.signature
    else:
        content = parse_batch(entry.signed)
        body, signature = content.header_bytes, content.signature
    return Leaf(entry, content, segment_leaf(
        entry.kind, entry.first_position, entry.received_at, entry.term, body, signature))


SegmentObject = namedtuple("SegmentObject", "data header index roster roster_bytes")


def parse_object(data):
    """Header, index and roster of a segment object, and the layout of its frames (9.3)."""
    in_form(28 <= len(data) <= 167_772_160 and data[:8] == b"CUSTODY1" and data[-8:] == b"1YDOTSUC", "outer marks")
    header_end = 12 + int.from_bytes(data[8:12], "big")
    roster_at = len(data) - 16 - int.from_bytes(data[-12:-8], "big")
    index_at = roster_at - int.from_bytes(data[-16:-12], "big")
    in_form(header_end <= index_at <= roster_at, "lengths of the parts")
    header = decode("SegmentHeader", data[12:header_end])
    index = decode("SegmentIndex", data[index_at:roster_at])
    roster_bytes = data[roster_at:-16]
    roster = decode("Roster", roster_bytes)
    check_frames(index.frames, header_end, index_at, header.first_position)
    return SegmentObject(data, header, index, roster, roster_bytes)


def check_frames(frames, offset, end, position):
    leaves = 0
    for frame in frames:
        in_form(frame.offset == offset and frame.length and frame.leaf_count, "frame")
        in_form(frame.first_leaf == leaves and frame.first_position >= position, "frame")
        offset, leaves, position = offset + frame.length, leaves + frame.leaf_count, frame.first_position
    in_form(sum(frame.content_length for frame in frames) <= 100_663_296, "content too long")
    in_form(offset == end, "frames do not reach the index")


ZstdHeader = namedtuple("ZstdHeader", "length block_max checksum")


def zstd_header(data, content_length):
    """The frame header of RFC 8878 section 3.1.1.1, as far as 9.3 narrows it."""
    in_form(len(data) >= 6 and data[:4] == b"\x28\xb5\x2f\xfd", "not a zstd frame")
    descriptor = data[4]
    single, size_flag = descriptor >> 5 & 1, descriptor >> 6
    in_form(descriptor & 0x0B == 0, "reserved bit or dictionary id")
    in_form(single or size_flag, "no content size")
    at, window = 5, content_length
    if not single:
        at, window = 6, 1 << 10 + (data[5] >> 3)
        window += window // 8 * (data[5] & 7)
        in_form(window <= 8 << 20, "window")
    length = (1, 2, 4, 8)[size_flag]
    size = int.from_bytes(data[at:at + length], "little") + (256 if length == 2 else 0)
    in_form(len(data) >= at + length and size == content_length, "content size")
    return ZstdHeader(at + length, min(window, 131_072), descriptor >> 2 & 1)


def zstd_parts(data, header):
    """The frame cut before each block; none is longer than it may be, and the last part ends where the frame does."""
    yield data[:header.length]
    at, last = header.length, 0
    while not last:
        in_form(at + 3 <= len(data), "cut block")
        bits = int.from_bytes(data[at:at + 3], "little")
        last, kind, length = bits & 1, bits >> 1 & 3, bits >> 3
        in_form(kind != 3 and length <= header.block_max and (kind, length) != (2, 0), "block")
        end = at + 3 + (1 if kind == 1 else length) + (4 if last and header.checksum else 0)
        in_form(end <= len(data), "cut block")
        yield data[at:end]
        at = end
    in_form(at == len(data), "something behind the last block")


def expand(data, content_length):
    """The content of a zstd frame, block by block: a decoder that gets all at once may forgive too long a block."""
    in_form(content_length <= 3_145_728, "content too long")
    header = zstd_header(data, content_length)
    expander = zstandard.ZstdDecompressor(max_window_size=8 << 20).decompressobj()
    content = []
    try:
        for part in zstd_parts(data, header):
            in_form(not expander.eof, "zstd frame")
            content.append(expander.decompress(part))
            in_form(len(content[-1]) <= header.block_max, "a block that expands to too much")
    except zstandard.ZstdError as error:
        raise Malformed("zstd") from error
    content = b"".join(content)
    in_form(expander.eof and not expander.unused_data and len(content) == content_length, "zstd frame")
    return content


def frame_entries(whole, frame):
    """The bytes of a frame's entries."""
    content, entries, at = expand(whole.data[frame.offset:frame.offset + frame.length], frame.content_length), [], 0
    while at < len(content):
        length = int.from_bytes(content[at:at + 4], "big")
        in_form(at + 4 + length <= len(content) and length, "entry in a frame")
        entries.append(content[at + 4:at + 4 + length])
        at += 4 + length
    in_form(len(entries) == frame.leaf_count, "leaves of a frame")
    return entries


def frame_leaves(whole, frame):
    leaves = [parse_entry(entry) for entry in frame_entries(whole, frame)]
    in_form(leaves[0].entry.first_position == frame.first_position, "the first position of a frame")
    return leaves


def leaves_if_sound(data, digest):
    """The leaves of an object with that SHA-256; None if it is not there, or cannot be taken apart (13.3 step 10)."""
    if data is None or sha256(data) != digest:
        return None
    try:
        whole = parse_object(data)
        return [leaf for frame in whole.index.frames for leaf in frame_leaves(whole, frame)]
    except (Malformed, Future):
        return None


# ---------------------------------------------------------------------------------------------------------------------
# The log (13.2)

Seal = namedtuple("Seal", "index workspace segment hash")


class Run:
    """What all parts of one verification share."""

    def __init__(self, archive, policy, known, as_of, at_size=None, since=None, until=None):
        self.archive, self.policy, self.known, self.as_of = archive, policy, known, as_of
        self.at_size, self.since, self.until = at_size, since, until
        self.faults, self.findings, self.reaches_to = [], [], 0
        self.suspect, self.cosignatures = False, []  # (witness, size, seconds)
        self.shown, self.strangers = set(), set()  # known files that the archive has, and of other signers
        self.owing = set()  # workspaces in scope that have records, or were not verified to their end
        self.known_faults, self.open_epochs = [], []
        self.people = None  # records of the workspace `ledger`, if somebody asks for names
        self.leaves = None  # by workspace, if somebody asks for access changes: batches in order, None for a segment not kept
        self.counts = dict.fromkeys(("log_entries", "workspaces", "segments", "segments_in_period",
                                     "segments_not_examined", "batches", "records", "equivocations", "statements",
                                     "heads_not_checked", "findings"), 0)

    def saw_nothing(self):
        """13.7, rule 5."""
        return (self.since is not None or self.until is not None) and not self.counts["segments_in_period"]

    def has_known(self):
        """13.7: whether a known file is given that the archive can be held against."""
        return any(one.note is None or self.at_size is None or one.note.size <= self.at_size for one in self.known)

    def hear(self, *times):
        """13.8: how far the archive reaches."""
        self.reaches_to = max([self.reaches_to, *(time for time in times if time <= self.as_of)])

    def found(self, name):
        self.counts["findings"] += 1
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(name)


class Log:
    """The log's entries, their tree, and what they say."""

    def __init__(self, run):
        self.run, self.archive, self.policy = run, run.archive, run.policy
        self.entries, self.tree = [], Tree(LOG_TREE)
        roots = Roots(self.policy.roots, min(self.policy.roots))
        self.ledger = Chain(self.policy.origin, None, roots)
        self.ledger_counts, self.incarnations = [0], [0]  # after so many entries
        self.terms, self.first_term = [], None  # (log index, term, at); index of the first
        self.created, self.removed, self.chains, self.seals = {}, {}, {}, {}

    def verify(self):
        """The steps of 13.2 in their order."""
        sizes = self.sizes()
        size = self.run.at_size if self.run.at_size is not None else max(sizes, default=None)
        if size not in sizes:
            raise Fault("checkpoint-present", "log/checkpoints", undecided=bool(sizes))
        self.checkpoint = self.read_checkpoint(size)
        self.read_entries(size)
        self.tree = Tree(LOG_TREE, (sha256(b"\0" + entry) for entry in self.entries))
        require(self.tree.root() == self.checkpoint.root, "log-root", f"log/checkpoints/{size}")
        self.check_tiles()
        for index, data in enumerate(self.entries):
            self.take_entry(index, data)
        self.check_signed(self.checkpoint)
        for other in (other for other in sizes if other < size):
            note = self.read_checkpoint(other)
            self.check_signed(note)
            require(note.root == self.tree.root(other), "fork", f"log/checkpoints/{other}")
        self.check_cosignatures()
        for serial, digest in enumerate(self.ledger.hashes):
            name = f"log/statements/{serial}-{digest.hex()}"
            data = self.archive.read(name)
            require(data is not None and sha256(data) == digest, "ledger-statement", name)
        named = {f"log/statements/{serial}-{digest.hex()}" for serial, digest in enumerate(self.ledger.hashes)}
        for name in self.archive.below("log/statements"):
            if name not in named:
                self.run.found("unreferenced")
        self.find_doubt()

    def find_doubt(self):
        """Step 11: keys in doubt that signed the checkpoint."""
        for key in self.ledger.keys.values():
            doubted = key.role == "LOG" and key.suspect is not None and key.suspect < self.checkpoint.size
            if doubted and note_signed_by(self.checkpoint, key.public_key):
                self.run.suspect = True
                self.run.found("suspect-key")

    def sizes(self):
        """The sizes that checkpoint objects are named by, ascending."""
        sizes = []
        for name in self.archive.below("log/checkpoints"):
            try:
                sizes.append(canonical_number(name.removeprefix("log/checkpoints/")))
            except Malformed:
                self.run.found("unreferenced")
        return sorted(sizes)

    def read_checkpoint(self, size):
        name = f"log/checkpoints/{size}"
        note = judged("checkpoint-form", name, parse_note, self.archive.read(name))
        require(note.size == size and size <= 2**32, "checkpoint-form", name)
        require(note.origin == self.policy.origin, "checkpoint-origin", name)
        return note

    def read_entries(self, size):
        for number in range((size + 255) // 256):
            wanted = min(256, size - 256 * number)
            name, width = self.bundle_name(number, wanted)
            require(name, "log-entries", f"bundle {number}")
            entries = judged("log-entries", name, parse_bundle, self.archive.read(name), width)
            self.entries += entries[:wanted]
        self.run.counts["log_entries"] = size

    def bundle_name(self, number, wanted):
        """The bundle of the least width from `wanted` on that is there."""
        for width in range(wanted, 257):
            name = "log/tile/entries/" + tile_number(number) + (f".p/{width}" if width < 256 else "")
            if name in self.archive.objects:
                return name, width
        return None, 0

    def check_tiles(self):
        for name in self.archive.below("log/tile"):
            tile = parse_tile_name(name.removeprefix("log/tile/"))
            content = self.tile_content(*tile) if tile else None
            if content is None:
                self.run.found("unreferenced")
            else:
                require(self.archive.read(name) == content, "log-tile", name)

    def tile_content(self, level, number, width):
        """What a tile holds; None for one beyond the size."""
        last = 256 * number + width
        if level is None:
            if last > len(self.entries):
                return None
            return b"".join(len(e).to_bytes(2, "big") + e for e in self.entries[256 * number:last])
        if level > 5 or last << 8 * level > len(self.entries):
            return None
        return b"".join(self.tree.levels[8 * level][256 * number:last])

    def take_entry(self, index, data):
        """Step 6 for one entry."""
        place = f"log entry {index}"
        entry = judged("log-entry-form", place, decode, "LogEntry", data)
        if entry.entry == "term_start":
            self.take_term(index, entry.term_start, place)
        elif entry.entry == "seal":
            self.take_seal(index, entry.seal, place)
        else:
            given = judged("log-entry-form", place, parse_statement, entry.statement)
            require(self.names_checkpoint(given.statement, index), "statement-checkpoint", place)
            if given.statement.workspace is None:
                self.take_ledger_statement(index, given, place)
            else:
                self.take_workspace_statement(given, place)
        self.ledger_counts.append(self.ledger.count)
        self.incarnations.append(self.ledger.incarnation)

    def names_checkpoint(self, statement, entries):
        """Whether a statement names a checkpoint of the log among its first entries (8.3)."""
        size, digest = statement.checkpoint_size, statement.checkpoint_hash
        if size == 0:
            return digest == ZEROS and not (self.first_term is not None and self.first_term < entries)
        return size <= entries and digest == sha256(checkpoint_text(self.policy.origin, size, self.tree.root(size)))

    def take_term(self, index, start, place):
        last = self.terms[-1][1] if self.terms else 0
        require(start.term > last and start.incarnation == self.incarnations[index], "term-order", place)
        self.first_term = index if self.first_term is None else self.first_term
        self.terms.append((index, start.term, start.at))
        self.run.hear(start.at)

    def take_ledger_statement(self, index, given, place):
        judge("ledger-chain", place, self.ledger, given)
        if given.statement.action == "incarnation":
            action = given.action
            require(action.log_size <= index and action.log_root == self.tree.root(action.log_size)
                    and action.last_seals_hash == self.last_seals_hash(action.log_size), "incarnation", place)

    def last_seals_hash(self, size):
        last = {}
        for workspace, seals in self.seals.items():
            for seal in seals:
                if seal.index < size:
                    last[workspace] = workspace + u64be(seal.segment) + seal.hash
        return keyed("last-seals", b"".join(last[workspace] for workspace in sorted(last)))

    def take_workspace_statement(self, given, place):
        statement = given.statement
        workspace, action = statement.workspace, statement.action
        if action == "create":
            chain = Chain(self.policy.origin, workspace)
            judge("workspace-created", place, chain, given, self.ledger.roots_after[-1])
            names = {known.name for known in self.chains.values()}
            require(workspace not in self.chains and chain.name not in names, "workspace-created", place)
            self.chains[workspace], self.seals[workspace] = chain, []
        else:
            require(action == "remove" and workspace in self.chains and workspace not in self.removed,
                    "workspace-created", place)
            self.removed[workspace] = given.hash

    def take_seal(self, index, seal, place):
        workspace = seal.workspace
        require(workspace in self.chains and workspace not in self.removed
                and seal.segment == len(self.seals[workspace]), "seal-order", place)
        self.seals[workspace].append(Seal(index, workspace, seal.segment, seal.seal_hash))

    def check_signed(self, note):
        keys = self.ledger.log_keys(self.ledger_counts[note.size])
        require(any(note_signed_by(note, key) for key in keys), "checkpoint-signature", f"log/checkpoints/{note.size}")

    def check_cosignatures(self):
        for name in self.archive.below("log/cosignatures"):
            first = name.split("/")[2]
            try:
                size = canonical_number(first)
            except Malformed:
                size = len(self.entries) + 1
            if size > len(self.entries):
                self.run.found("unreferenced")
                continue
            text = checkpoint_text(self.policy.origin, size, self.tree.root(size))
            note = judged("cosignature", name, parse_note, text + b"\n" + self.archive.read(name))
            require(note.text == text, "cosignature", name)
            by_witness, named = False, any(name == cosignature_name(size, witness) for witness in self.policy.witnesses)
            for line in note.lines:
                key = self.policy.witnesses.get(line.name)
                named = named or key is not None
                if key is None or line.key_hash != note_key_hash(line.name, 4, key):
                    continue
                seconds = cosignature_time(line, key, text)
                require(seconds is not None, "cosignature", name)
                by_witness = True
                self.run.cosignatures.append((line.name, size, seconds))
                self.run.hear(seconds * 1_000_000)
            if named and not by_witness:
                self.run.found("uncounted")


def cosignature_name(size, witness):
    return f"log/cosignatures/{size}/" + re.sub(r"[^A-Za-z0-9._-]", "_", witness)


def judge(check, place, chain, given, roots=None):
    try:
        chain.judge(given, roots)
    except Refused as error:
        raise Fault(check, f"{place}: {error}") from error


def tile_number(number):
    groups = [f"{number % 1000:03}"]
    while number >= 1000:
        number //= 1000
        groups.insert(0, f"x{number % 1000:03}")
    return "/".join(groups)


def parse_tile_name(name):
    """(level, number, width) of a tile, with level None for a bundle; None if it is no tile's name."""
    match = re.fullmatch(r"(entries|0|[1-9][0-9]*)/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([1-9][0-9]*))?", name)
    if not match or len(match[1]) > 20:
        return None
    number, width = int(re.sub("[x/]", "", match[2])), int(match[3] or 256)
    if tile_number(number) != match[2] or width > 255 + (match[3] is None):
        return None
    return None if match[1] == "entries" else int(match[1]), number, width


def parse_bundle(data, width):
    entries, at = [], 0
    for _ in range(width):
        in_form(at + 2 <= len(data), "cut bundle")
        length = int.from_bytes(data[at:at + 2], "big")
        in_form(at + 2 + length <= len(data), "cut bundle")
        entries.append(data[at + 2:at + 2 + length])
        at += 2 + length
    in_form(at == len(data), "bytes after a bundle")
    return entries


# ---------------------------------------------------------------------------------------------------------------------
# A workspace: seals and chain (13.3)


class Workspace:
    """One workspace of the log, its seals and its chain."""

    def __init__(self, run, log, workspace):
        self.run, self.log, self.archive, self.id = run, log, run.archive, workspace
        self.chain, self.named = log.chains[workspace], log.seals[workspace]
        self.folder = f"workspaces/{workspace.hex()}"
        self.seals, self.history = [], Tree(HISTORY_TREE)

    def verify(self):
        for named in self.named:
            self.read_seal(named)
        self.verify_chain()
        if self.take_newest_statements():
            removed = self.log.removed.get(self.id)
            require(removed in (None, self.chain.removed_by), "workspace-created", self.folder)
        Segments(self).verify()

    def read_seal(self, named):
        """Steps 1 to 6 for one seal."""
        name = f"{self.folder}/seals/{named.segment}-{named.hash.hex()}"
        data = self.archive.read(name)
        require(data is not None, "seal-present", name)
        require(sha256(data) == named.hash, "seal-hash", name)
        seal = judged("seal-form", name, decode, "Seal", data)
        require((seal.origin, seal.workspace, seal.segment, seal.incarnation) ==
                (self.log.policy.origin, self.id, named.segment, self.log.incarnations[named.index]),
                "seal-binding", name)
        last = self.seals[-1] if self.seals else None
        expected = add(last.first_position, last.record_count) if last else 0
        require(seal.first_position == expected, "seal-position", name)
        require(seal.history_root == self.history.root(), "seal-history", name)
        ledger_count = self.log.ledger_counts[named.index]
        require(seal.ledger_chain.count == ledger_count and self.log.ledger.had(seal.ledger_chain),
                "seal-ledger-chain", name)
        statements = add(1, *(before.statement_count for before in self.seals))
        require(seal.workspace_chain.count == statements, "seal-workspace-chain", name)
        seal.index, seal.name = named.index, name
        self.seals.append(seal)
        self.history.append(history_leaf(seal.segment, seal.size, seal.root))
        self.run.hear(seal.sealed_at, seal.last_received_at)

    def verify_chain(self):
        """Steps 7 to 9."""
        name = f"{self.folder}/statements/0-{self.chain.hash_after(1).hex()}"
        created = self.archive.read(name)
        require(created is None or sha256(created) == self.chain.hash_after(1), "statement-form", name)
        if not self.seals:
            return
        statements = self.walk_back(self.seals[-1].workspace_chain)
        serial = 1
        for before, seal in zip([None] + self.seals, self.seals):
            while serial < seal.workspace_chain.count:
                self.judge_statement(statements[serial], before)
                serial += 1
            require(self.chain.hash_after(serial) == seal.workspace_chain.hash, "seal-workspace-chain", seal.name)
            require(self.chain.removed_by is None, "workspace-created", seal.name)

    def walk_back(self, head):
        """The statements from the last seal's head down to serial 1, by serial."""
        statements, wanted = {}, head.hash
        for serial in range(head.count - 1, 0, -1):
            statements[serial] = self.read_statement(serial, wanted)
            wanted = statements[serial].statement.previous
        require(wanted == self.chain.hash_after(1), "seal-workspace-chain", self.folder)
        return statements

    def read_statement(self, serial, digest):
        name = f"{self.folder}/statements/{serial}-{digest.hex()}"
        data = self.archive.read(name)
        require(data is not None, "statement-present", name)
        require(sha256(data) == digest, "statement-form", name)
        return judged("statement-form", name, parse_statement, data)

    def judge_statement(self, given, seal):
        """Step 9 for the next statement, which stands in the segment of `seal`."""
        place = f"{self.folder} statement {self.chain.count}"
        if given.statement.action not in ("create", "remove"):
            require(self.log.names_checkpoint(given.statement, len(self.log.entries)), "statement-checkpoint", place)
        judge("workspace-chain", place, self.chain, given, self.log.ledger.roots_after[seal.ledger_chain.count])

    def take_newest_statements(self):
        """Step 10: the statements that the last segment ends with; whether they could be read."""
        if not self.seals or not self.seals[-1].statement_count:
            return True
        leaves = self.leaves_again(self.seals[-1])
        for leaf in leaves or ():
            if leaf.kind == "STATEMENT":
                self.read_statement(leaf.content.statement.serial, leaf.content.hash)
                self.judge_statement(leaf.content, self.seals[-1])
        return leaves is not None

    def leaves_again(self, seal):
        return leaves_if_sound(self.archive.read(self.object_name(seal)), seal.object_sha256)

    def object_name(self, seal):
        return f"{self.folder}/segments/{seal.segment}-{seal.object_sha256.hex()}"


def history_leaf(segment, size, root):
    return keyed("history-leaf", u64be(segment) + u64be(size) + root)


# ---------------------------------------------------------------------------------------------------------------------
# A workspace: segments (13.4)


class Segments:
    """The segments of one workspace in order, and the state that goes from one to the next."""

    def __init__(self, workspace):
        self.workspace, self.run, self.log = workspace, workspace.run, workspace.log
        self.chain, self.seals = workspace.chain, workspace.seals
        self.gateways, self.trees, self.held = {}, {}, {}
        self.past_unknown, self.day, self.last_verified = False, None, None
        self.term, self.equivocations = 0, []

    def verify(self):
        first, end = self.examined()
        self.find_misdated(first, end)
        self.past_unknown = self.has_gap = first > 0
        for seal in self.seals[first:end]:
            self.verify_segment(seal)
        self.check_left_heads()
        self.check_equivocations()
        self.find_unreferenced()
        self.check_known()
        self.run.open_epochs += [state for state in self.epochs_by_id().values() if not state.closed and state.writer]
        self.find_never_heard()

    def find_never_heard(self):
        """13.8: gateways that may write, and of which nothing is here."""
        if self.has_gap or self.run.until is not None:
            return
        keys = (key for key in self.chain.keys.values() if key.role == "GATEWAY")
        for _ in {key.gateway for key in keys if key.retired is None and key.revoked is None} - set(self.gateways):
            self.run.found("never-heard")

    def examined(self):
        """The number of the first segment that is examined, and that after the last."""
        since, until, counts = self.run.since, self.run.until, self.run.counts
        is_since = [since is None or seal.last_received_at >= since for seal in self.seals]
        is_until = [until is None or seal.first_received_at <= until for seal in self.seals]
        a = is_since.index(True) if True in is_since else len(self.seals)
        b = max((number + 1 for number, holds in enumerate(is_until) if holds), default=0)
        first, end = max(min(a, b) - 1, 0), min(max(a, b) + 1, len(self.seals))
        counts["segments_in_period"] += sum(map(min, is_since, is_until))
        counts["segments_not_examined"] += len(self.seals) - (end - first)
        return first, end

    def find_misdated(self, first, end):
        """13.8: whether order contradicts the times of a segment that is left out because of them."""
        lasts = [seal.last_received_at for seal in self.seals]
        later = [*itertools.accumulate(reversed(lasts), min)][::-1][1:] + [U64_MAX]
        latest = 0
        for number, (seal, earliest) in enumerate(zip(self.seals, later)):
            late = seal.last_received_at - DAY_US
            if not first <= number < end and (
                    seal.last_received_at + DAY_US < latest or seal.first_received_at - DAY_US > earliest
                    or late > self.run.as_of or late > seal.sealed_at):
                self.run.found("misdated")
                return
            latest = max(latest, seal.first_received_at)

    def verify_segment(self, seal):
        name = self.workspace.object_name(seal)
        data = self.run.archive.read(name)
        if data is None:
            return self.missing(seal, name)
        segment = Segment(self, seal, name)
        segment.verify_alone(data)
        self.trees = {number: tree for number, tree in self.trees.items() if number >= seal.segment - 1}
        self.trees[seal.segment] = segment.tree
        segment.find_in_period()
        segment.verify_in_place()
        self.check_roster(segment)
        if self.run.people is not None and self.chain.name == "ledger":
            self.run.people += [record for leaf in segment.leaves if leaf.kind == "BATCH" for record in leaf.content.records]
        self.keep([leaf for leaf in segment.leaves if leaf.kind == "BATCH"])
        self.last_verified, self.day = seal.segment, seal.first_received_at // DAY_US
        self.count(segment)
        return None

    def missing(self, seal, name):
        """Step 1 for an object that is not there."""
        retention = self.run.policy.retention_days * DAY_US
        held = self.chain.held(seal.first_received_at, seal.last_received_at)
        require(retention and self.run.as_of - seal.last_received_at > retention and not held, "segment-present", name)
        self.run.faults.append(Fault("segment-present", name, undecided=True))
        self.keep([None] if seal.record_count else [])
        self.gateways, self.trees, self.day, self.last_verified = {}, {}, None, None
        self.past_unknown = self.has_gap = True

    def keep(self, leaves):
        """For 5.6: what a segment has, of a workspace in which there can be access changes."""
        if self.run.leaves is not None and self.chain.name != "ledger":
            self.run.leaves.setdefault(self.workspace.id, []).extend(leaves)

    def count(self, segment):
        counts, seal = self.run.counts, segment.seal
        for name, number in (("segments", 1), ("records", seal.record_count), ("batches", seal.batch_count),
                             ("equivocations", seal.equivocation_count), ("statements", seal.statement_count)):
            counts[name] += number

    def epochs_by_id(self):
        return {(gateway, epoch): state for gateway, one in self.gateways.items() for epoch, state in one.epochs.items()}

    def check_roster(self, segment):
        """Step 14."""
        seal, roster, name = segment.seal, segment.object.roster, segment.name
        require(keyed("roster-hash", segment.object.roster_bytes) == seal.roster_hash, "roster", name)
        require((roster.workspace, roster.segment) == (self.workspace.id, seal.segment), "roster", name)
        if seal.segment == 0 or self.last_verified == seal.segment - 1:
            full = seal.segment == 0 or self.day != seal.first_received_at // DAY_US
            require(roster.full == full, "roster", name)
        ids = [(entry.gateway, entry.epoch) for entry in roster.entries]
        require(all(a < b for a, b in zip(ids, ids[1:])), "roster", name)
        known = self.epochs_by_id()
        wanted = {i for i, state in known.items() if i in segment.touched or (roster.full and not state.closed)}
        require(wanted <= set(ids) and (self.past_unknown or wanted == set(ids)), "roster", name)
        for number, entry in zip(ids, roster.entries):
            state = known.get(number) or self.learn(entry)
            gateway = self.gateways[entry.gateway]
            if not entry.closed and gateway.opened_last is None:
                gateway.opened_last = entry.epoch
            if number in wanted:
                require((state.last_batch, state.next_record, state.last_hash, state.closed) ==
                        (entry.last_batch, entry.next_record, entry.last_header_hash, entry.closed), "roster", name)
        self.past_unknown = self.past_unknown and not roster.full

    def learn(self, entry):
        state = Epoch(None, entry.last_batch, entry.next_record, entry.last_header_hash, entry.closed)
        self.gateways.setdefault(entry.gateway, Gateway()).epochs[entry.epoch] = state
        return state

    def hold(self, head, place):
        """The root of a held head, compared now or kept for the end (step 12)."""
        tree = self.trees.get(head.segment)
        if tree is not None:
            require(tree.root(head.size) == head.root, "held-head", place)
        else:
            kept = self.held.setdefault((head.segment, head.size), (head.root, place))
            require(kept[0] == head.root, "held-head", place)

    def check_left_heads(self):
        """Step 15."""
        tree_of = (None, None)
        for (number, size), (root, place) in sorted(self.held.items()):
            if tree_of[0] != number:
                tree_of = (number, self.tree_again(self.seals[number]))
            if tree_of[1] is None:
                self.run.counts["heads_not_checked"] += 1
            else:
                require(tree_of[1].root(size) == root, "held-head", place)

    def tree_again(self, seal):
        leaves = self.workspace.leaves_again(seal)
        tree = Tree(SEGMENT_TREE, (leaf.hash for leaf in leaves or ()))
        return tree if leaves is not None and (len(tree), tree.root()) == (seal.size, seal.root) else None

    def check_equivocations(self):
        """Step 16: the batch that took the number is another one."""
        for seal in self.seals if self.equivocations else ():
            for leaf in self.workspace.leaves_again(seal) or ():
                if leaf.kind == "BATCH":
                    for number, digest, place in self.equivocations:
                        require(number != batch_number_of(leaf.content.header) or digest != leaf.content.hash,
                                "equivocation", place)

    def find_unreferenced(self):
        referenced = {seal.name for seal in self.seals} | {self.workspace.object_name(seal) for seal in self.seals}
        referenced |= {f"{self.workspace.folder}/statements/{serial}-{digest.hex()}"
                       for serial, digest in enumerate(self.chain.hashes)}
        for folder in ("segments", "seals", "statements"):
            for name in self.run.archive.below(f"{self.workspace.folder}/{folder}"):
                if name not in referenced:
                    self.run.found("unreferenced")

    def check_known(self):
        """Known heads and receipts of this workspace, which was verified to its end (13.5)."""
        if not any(seal.record_count for seal in self.seals):
            self.run.owing.discard(self.workspace.id)
        for one in self.run.known:
            head = one.head
            if head is None or head.workspace != self.workspace.id or one in self.run.strangers:
                continue
            seal = self.seals[head.segment] if head.segment < len(self.seals) else None
            if seal and seal.incarnation > head.incarnation:
                continue
            said = [self.workspace.history.root(head.segment) == head.history_root, self.says_of_head(head, seal)]
            said += [self.says_of_batch(head, batch) for batch in one.batches]
            if False in said:
                self.run.known_faults.append(Fault(one.check, one.name))
            elif said[1]:
                self.run.shown.add(one)

    def says_of_head(self, head, seal):
        """Whether the head's segment has its root; None if that cannot be said."""
        if seal is None:
            return True if head.size == 0 else None
        leaves = self.workspace.leaves_again(seal)
        if leaves is None:
            return None
        return Tree(SEGMENT_TREE, (leaf.hash for leaf in leaves)).root(head.size) == head.root

    def says_of_batch(self, head, batch):
        """Whether the batch of a receipt is where it says; None if that cannot be said."""
        seal = self.seals[batch.segment] if batch.segment < len(self.seals) else None
        leaves = self.workspace.leaves_again(seal) if seal and seal.incarnation <= head.incarnation else None
        if leaves is None:
            return None
        leaf = leaves[batch.leaf_index] if batch.leaf_index < len(leaves) else None
        return (leaf is not None and leaf.kind == "BATCH" and leaf.entry.first_position == batch.first_position
                and (leaf.content.header.epoch, leaf.content.header.batch_number) == (batch.epoch, batch.batch_number))


def batch_number_of(header):
    return header.gateway, header.epoch, header.batch_number


class Segment:
    """One segment: first by itself, then in its place."""

    def __init__(self, segments, seal, name):
        self.segments, self.workspace, self.run, self.log = segments, segments.workspace, segments.run, segments.log
        self.seal, self.name, self.leaves, self.touched = seal, name, [], set()
        self.signers, self.writers, self.heads = {}, {}, {}
        self.before_term = False  # a leaf says that it was received before its term began

    def verify_alone(self, data):
        """Steps 2 to 8."""
        seal = self.seal
        require((len(data), sha256(data)) == (seal.object_length, seal.object_sha256), "segment-sha256", self.name)
        require(keyed("segment-hash", data) == seal.object_blake3, "segment-blake3", self.name)
        self.object = judged("segment-form", self.name, parse_object, data)
        header = self.object.header
        for part in ("origin", "workspace", "segment", "incarnation", "first_position", "ledger_chain",
                     "workspace_chain"):
            require(getattr(header, part) == getattr(seal, part), "segment-form", f"{self.name} {part}")
        for frame in self.object.index.frames:
            self.read_frame(frame)
        self.check_order()
        self.tree = Tree(SEGMENT_TREE, (leaf.hash for leaf in self.leaves))
        require((len(self.tree), self.tree.root()) == (seal.size, seal.root), "segment-root", self.name)
        self.check_counts()
        for index, leaf in enumerate(self.leaves):
            if leaf.kind != "STATEMENT":
                self.check_batch(index, leaf.content)

    def place(self, index):
        return f"{self.name} leaf {index}"

    def read_frame(self, frame):
        first = len(self.leaves)
        for entry in judged("segment-form", self.name, frame_entries, self.object, frame):
            self.leaves.append(judged("entry-form", self.place(len(self.leaves)), parse_entry, entry))
        require(self.leaves[first].entry.first_position == frame.first_position, "segment-form", self.name)

    def check_order(self):
        """Step 5."""
        position, last_term = self.seal.first_position, 0
        begun = {term: at for index, term, at in self.log.terms if index < self.seal.index}
        for index, leaf in enumerate(self.leaves):
            require(leaf.entry.first_position == position, "entry-position", self.place(index))
            term = leaf.entry.term
            require(term in begun and term >= last_term, "entry-term", self.place(index))
            last_term = term
            self.before_term = self.before_term or leaf.entry.received_at < begun[term]
            if leaf.kind == "BATCH":
                position = add(position, leaf.content.header.record_count)

    def check_counts(self):
        """Step 7."""
        by_kind = {kind: [leaf for leaf in self.leaves if leaf.kind == kind] for kind in ENUMS["LeafKind"].values()}
        records = sum(leaf.content.header.record_count for leaf in by_kind["BATCH"])
        times = [leaf.entry.received_at for leaf in self.leaves] or [0]
        seal = self.seal
        require((records, len(by_kind["BATCH"]), len(by_kind["EQUIVOCATION"]), len(by_kind["STATEMENT"]),
                 min(times), max(times)) ==
                (seal.record_count, seal.batch_count, seal.equivocation_count, seal.statement_count,
                 seal.first_received_at, seal.last_received_at), "seal-counts", self.name)

    def check_batch(self, index, batch):
        """Step 8."""
        place, header = self.place(index), batch.header
        states = KeyStates(self.log.ledger, self.seal.ledger_chain.count,
                           self.workspace.chain, self.seal.workspace_chain.count)
        self.signers[index] = check_signer(states, header, batch.header_bytes, batch.signature, place)
        leaves = (keyed("batch-leaf", blake3(u64be(i), key=batch.seed).digest() + lp(record))
                  for i, record in enumerate(batch.records))
        require(Tree(BATCH_TREE, leaves).root() == header.batch_root, "batch-root", place)
        records = [judged("record-form", f"{place} record {i}", parse_record, record)
                   for i, record in enumerate(batch.records)]
        for record in records:
            require(may_write(self.signers[index].role, self.workspace.chain.name, record.kind), "record-kind", place)
        self.check_writer(index, header, records)
        if header.last_head:
            self.heads[index] = self.check_head(header.last_head, f"{place} held head")

    def check_writer(self, index, header, records):
        if header.batch_number == 0:
            event = records[0].gateway_event
            require(event is not None and event.event == "opened", "writer-record", self.place(index))
            self.writers[index] = event.opened

    def check_head(self, data, place):
        head, outer = judged("held-head-signature", place, parse_head, data)
        ledger = self.log.ledger
        require((head.origin, head.workspace) == (self.log.policy.origin, self.workspace.id)
                and ledger.had(head.ledger_chain), "held-head-signature", place)
        key = ledger.key(head.key_id, head.ledger_chain.count, "HEAD")
        require(key and not key.is_revoked(head.ledger_chain.count)
                and signed("head", key.public_key, outer.signature, outer.head), "held-head-signature", place)
        return head

    def find_in_period(self):
        """13.8: a batch that its gateway dates into the period, and the ledger before it."""
        since = self.segments.run.since
        if since is not None and any(
                leaf.kind != "STATEMENT" and leaf.entry.received_at < since <= leaf.content.header.created_at
                for leaf in self.leaves):
            self.run.found("misdated")

    def verify_in_place(self):
        """Steps 9 to 13."""
        statements = []
        if self.before_term:
            self.run.found("received-before-term")
        for index, leaf in enumerate(self.leaves):
            require(leaf.entry.term >= self.segments.term, "entry-term", self.place(index))
            self.segments.term = leaf.entry.term
            if leaf.kind == "STATEMENT":
                statements.append(leaf.content.hash)
                continue
            require(not statements, "entry-statement", self.place(index))
            gateway = self.segments.gateways.setdefault(leaf.content.header.gateway, Gateway())
            if leaf.kind == "EQUIVOCATION":
                self.check_equivocation(index, gateway, leaf.content)
            else:
                self.admit(index, gateway, leaf)
        self.check_statements(statements)

    def check_statements(self, statements):
        """Step 13."""
        for count, digest in enumerate(statements, self.seal.workspace_chain.count + 1):
            require(self.workspace.chain.hash_after(count) == digest, "entry-statement", self.name)

    def check_equivocation(self, index, gateway, batch):
        """Step 10."""
        epoch = gateway.epochs.get(batch.header.epoch)
        taken = self.segments.has_gap if epoch is None else batch.header.batch_number <= epoch.last_batch
        require(taken, "equivocation", self.place(index))
        self.segments.equivocations.append((batch_number_of(batch.header), batch.hash, self.place(index)))
        self.run.found("equivocation")

    def admit(self, index, gateway, leaf):
        """Steps 11 and 12."""
        header, entry, place = leaf.content.header, leaf.entry, self.place(index)
        epoch = gateway.epochs.get(header.epoch)
        allowed = continues(epoch, header) if epoch else begins(gateway, header, self.segments.past_unknown, self.segments.has_gap)
        require(allowed, "numbering", place)
        state = Epoch(header.key_id, header.batch_number, header.first_record + header.record_count,
                      leaf.content.hash, header.close, epoch.writer if epoch else None, header.created_at,
                      entry.received_at)
        if gateway.opened_last not in (None, header.epoch):
            gateway.epochs[gateway.opened_last].closed = True
        gateway.opened_last = header.epoch
        if header.batch_number == 0:
            state.writer = self.writers[index]
        gateway.epochs[header.epoch] = state
        self.touched.add((header.gateway, header.epoch))
        self.run.hear(header.created_at)
        self.find_of_batch(header, epoch, self.signers[index], entry.first_position)
        if index in self.heads:
            self.check_held_head(index, self.heads[index])

    def find_of_batch(self, header, before, signer, position):
        """The findings on an admitted batch (13.8)."""
        if header.opening_reason in ("STATE_LOST", "REWOUND"):
            self.run.found(header.opening_reason.lower().replace("_", "-"))
        if header.dropped:
            self.run.found("dropped")
        writer = before.writer if before else None
        if writer and vars(writer)["class"] == "ALWAYS_ON" and writer.silence_us_max:
            if header.created_at > before.created_at + writer.silence_us_max:
                self.run.found("silent")
        last = position + max(header.record_count, 1) - 1
        from_here = last if signer.role == "GATEWAY" else self.seal.index
        chain = self.workspace.chain if signer.role == "GATEWAY" else self.log.ledger
        suspect = chain.keys[header.key_id].suspect
        if suspect is not None and from_here >= suspect:
            self.run.suspect = True
            self.run.found("suspect-key")

    def check_held_head(self, index, head):
        """Step 12."""
        place, seals = f"{self.place(index)} held head", self.segments.seals
        if head.unfenced:
            self.run.found("unfenced")
        seal = seals[head.segment] if head.segment < len(seals) else None
        since = self.log.ledger.keys[head.key_id].suspect
        if since is not None and (seal is None or seal.index >= since):
            self.run.suspect = True
            self.run.found("suspect-key")
        if seal and seal.incarnation > head.incarnation:
            self.run.found("superseded")
            return
        before = head.segment < self.seal.segment or (head.segment == self.seal.segment and head.size <= index)
        require(before and seal and seal.incarnation == head.incarnation and seal.size >= head.size, "held-head", place)
        for one, other in ((head.ledger_chain, seal.ledger_chain), (head.workspace_chain, seal.workspace_chain)):
            require(one == other or (head.size == 0 and one.count <= other.count), "held-head", place)
        require(self.workspace.chain.had(head.workspace_chain), "held-head", place)
        require(self.workspace.history.root(head.segment) == head.history_root, "held-head", place)
        self.segments.hold(head, place)


def parse_head(data):
    outer = decode("SignedHead", data)
    return decode("OpenHead", outer.head), outer


@dataclass(frozen=True)
class KeyStates:
    """Both chains, as they were after so many statements."""

    ledger: Chain
    ledger_count: int
    workspace: Chain
    workspace_count: int

    def signer(self, key_id):
        """The key and whether it is (retired, revoked)."""
        key, count = self.workspace.key(key_id, self.workspace_count, "GATEWAY"), self.workspace_count
        if key is None:
            key, count = self.ledger.key(key_id, self.ledger_count, "RECORD"), self.ledger_count
        return (key, key.is_retired(count), key.is_revoked(count)) if key else (None, False, False)


def check_signer(states, header, header_bytes, signature, place):
    """The checks of a header that archive and evidence share (13.4 step 8)."""
    chain = states.workspace
    require((header.origin, header.workspace) == (chain.origin, chain.workspace), "batch-binding", place)
    key, retired, revoked = states.signer(header.key_id)
    of_both = (chain.has_gateway(header.gateway, states.workspace_count, "GATEWAY")
               and states.ledger.has_gateway(header.gateway, states.ledger_count, "RECORD"))
    require(key and key.gateway == header.gateway and not of_both, "key-enrolled", place)
    require(not revoked and not (retired and header.batch_number == 0), "key-valid", place)
    require(signed("batch", key.public_key, signature, header_bytes), "batch-signature", place)
    return key


# ---------------------------------------------------------------------------------------------------------------------
# Known files, witnesses, claims (13.5 to 13.7)


@dataclass(frozen=True, eq=False)
class Known:
    """What the auditor got from somebody else: a checkpoint, or a head, perhaps of a receipt."""

    name: str
    note: Note | None = None
    head: SimpleNamespace | None = None
    outer: SimpleNamespace | None = None
    check: str = "known-checkpoint"
    batches: tuple = ()


def parse_known(name, data):
    if len(data) > KNOWN_BYTES_MAX:
        raise NoVerdict(f"known file {name} has more than {KNOWN_BYTES_MAX} bytes")
    try:
        for prefix, parse in ((b"custody/v1/head ", known_head), (b"custody/v1/receipt ", known_receipt)):
            if data.startswith(prefix):
                return parse(name, base64_of(data[len(prefix):].removesuffix(b"\n").decode("ascii")))
        return Known(name, note=parse_note(data))
    except (Malformed, Future, UnicodeDecodeError) as error:
        raise NoVerdict(f"known file {name}: {error}") from error


def known_head(name, data):
    head, outer = parse_head(data)
    return Known(name, head=head, outer=outer, check="known-head")


def known_receipt(name, data):
    receipt = decode("Receipt", data)
    head, outer = parse_head(receipt.signed_head)
    return Known(name, head=head, outer=outer, check="known-receipt", batches=tuple(receipt.batches))


def is_of_this_log(one, log):
    """Whether the signature on a known file is of the log that is verified."""
    if one.note:
        return any(key.role == "LOG" and note_signed_by(one.note, key.public_key) for key in log.ledger.keys.values())
    key = log.ledger.key(one.head.key_id, log.ledger.count, "HEAD")
    return (key is not None and one.head.origin == log.policy.origin
            and signed("head", key.public_key, one.outer.signature, one.outer.head))


def check_known(run, log):
    """Known checkpoints, and what can be said of heads before any workspace is looked at (13.5)."""
    for one in run.known:
        if one.note and run.at_size is not None and one.note.size > run.at_size:
            continue
        if not is_of_this_log(one, log):
            run.strangers.add(one)
            run.found("unsigned")
        elif one.note and one.note.origin == run.policy.origin and log.tree.root(one.note.size) == one.note.root:
            run.shown.add(one)
        elif one.note or one.head.workspace not in log.chains:
            run.known_faults.append(Fault(one.check, one.name))


def find_at_end(run, log):
    """The findings that need the whole archive (13.8)."""
    for epoch in run.open_epochs if run.until is None else ():
        silence = run.reaches_to - min(epoch.created_at, epoch.received_at)
        if vars(epoch.writer)["class"] == "ALWAYS_ON" and silence > epoch.writer.silence_us_max + DAY_US:
            run.found("silent")
        if silence > 3 * DAY_US:
            run.found("unclosed")
    if run.until is None and run.at_size is None and run.as_of - run.reaches_to > 3 * DAY_US:
        run.found("outdated")
    created = "|".join(workspace.hex() for workspace in log.chains) or "-"
    of_table = re.compile(r"log/(checkpoints|cosignatures|statements|tile)/.*"
                          rf"|workspaces/({created})/(segments|seals|statements)/.*", re.DOTALL)
    folders = {name.split("/")[1] for name in run.archive.below("workspaces")} - set(created.split("|"))
    others = [name for name in run.archive.objects if not of_table.fullmatch(name)
              and not (name.startswith("workspaces/") and name.split("/")[1] in folders)]
    for _ in [*folders, *others]:
        run.found("unreferenced")


def verify_archive(run):
    """The whole of 13, up to the faults."""
    log = Log(run)
    try:
        log.verify()
    except Fault as fault:
        run.faults.append(fault)
        return False
    scope = run.policy.scope
    run.faults += [Fault("workspace-present", workspace.hex()) for workspace in scope or ()
                   if workspace not in log.chains]
    check_known(run, log)
    for workspace in log.chains:
        if scope is None or workspace in scope:
            run.counts["workspaces"] += 1
            run.owing.add(workspace)
            try:
                Workspace(run, log, workspace).verify()
            except Fault as fault:
                run.faults.append(fault)
    run.faults += run.known_faults
    find_at_end(run, log)
    return True


def claims_of_witnesses(run):
    """13.6: which of claims 4 to 6 hold, if nothing else speaks against them."""
    policy, now, last = run.policy, run.as_of // 1_000_000, {}
    for witness, size, seconds in run.cosignatures:
        if size != run.counts["log_entries"]:
            continue
        if seconds > now + AHEAD_MAX:
            run.found("uncounted")
        else:
            last[witness] = max(seconds, last.get(witness, 0))
    times = sorted(last.values(), reverse=True)
    met = policy.quorum > 0 and len(times) >= policy.quorum
    fresh = met and policy.greatest_age > 0 and now - times[policy.quorum - 1] <= policy.greatest_age
    spoken_of = {one.head.workspace for one in run.shown if one.head}
    covers = any(one.note for one in run.shown) or run.owing <= spoken_of
    has_known = bool(run.known) and len(run.shown) == len(run.known) and covers
    return {"not_rolled_back": (has_known or fresh) and not run.strangers, "not_rewritten": met, "dated": met}


def state_of(claim, run, beyond):
    """13.7."""
    mine = [fault for fault in run.faults if CLAIM_OF_CHECK[fault.check] == claim]
    if mine:
        return "undecided" if all(fault.undecided for fault in mine) else "refuted"
    if claim in beyond:
        return "verified" if beyond[claim] else "undecided"
    if run.faults or (claim == "authorised" and run.suspect) or run.saw_nothing():
        return "undecided"
    return "verified"


def verdict_of(run, log_is_sound):
    beyond = claims_of_witnesses(run) if log_is_sound else dict.fromkeys(CLAIMS[3:], False)
    claims = {claim: state_of(claim, run, beyond) for claim in CLAIMS}
    if "refuted" in claims.values():
        code = 1
    else:
        required = {*run.policy.required, *(["not_rolled_back"] if run.has_known() else [])}
        code = 0 if all(claims[claim] == "verified" for claim in required) else 2
    return {"claims": claims, "exit_code": code, **faults_of(run.faults), "findings": run.findings,
            "counts": run.counts}


def faults_of(faults):
    shown = [{"check": fault.check, "place": fault.place, "state": "undecided" if fault.undecided else "refuted"}
             for fault in faults]
    first = shown[0] if shown else None
    return {"first_failing_check": first and first["check"], "first_fault": first, "faults": shown}


# ---------------------------------------------------------------------------------------------------------------------
# Evidence (14)

EVIDENCE_MAX = 67_108_864
Proof = namedtuple("Proof", "evidence index path note")


def parse_evidence(data):
    in_form(len(data) <= EVIDENCE_MAX, "too long")
    head, divider, note = data.partition(b"\n\n")
    in_form(divider, "no empty line")
    try:
        lines = head.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise Malformed("not UTF-8") from error
    in_form(len(lines) >= 3 and lines[0] == "c2sp.org/tlog-proof@v1", "first line")
    in_form(lines[1].startswith("extra ") and lines[2].startswith("index "), "extra and index")
    path = [base64_of(line) for line in lines[3:]]
    in_form(len(path) <= 64 and all(len(one) == 32 for one in path), "proof lines")
    index = canonical_number(lines[2].removeprefix("index "))
    message, note = base64_of(lines[1].removeprefix("extra ")), parse_note(note)
    evidence = decode("Evidence", message)
    ends = [evidence.first_position + evidence.record_count]
    ends += [leaf.first_position + leaf.first_index + len(leaf.records)
             for segment in evidence.segments for leaf in segment.leaves]
    in_form(max(ends) <= U64_MAX, "positions have 64 bits")
    return Proof(evidence, index, path, note)


class Evidence:
    """One evidence file and how far it has been shown."""

    def __init__(self, policy, proof):
        self.policy, self.proof, self.message = policy, proof, proof.evidence
        self.first, self.next_position, self.shown = None, None, 0
        self.doubted, self.gateways = False, {}

    def verify(self):
        """14.2 from step 2 on."""
        message, origin, roots = self.message, self.policy.origin, self.policy.roots
        self.ledger = Chain(origin, None, Roots(roots, min(roots)))
        self.take_chain("ledger-chain", self.ledger, message.ledger_chain, None)
        self.chain = Chain(origin, message.workspace)
        self.take_chain("workspace-chain", self.chain, message.workspace_chain,
                        replace(self.ledger.roots_after[-1], earlier_sign=True))
        require(self.policy.scope is None or message.workspace in self.policy.scope, "workspace-present")
        require(self.proof.note.origin == origin, "checkpoint-origin")
        require(any(note_signed_by(self.proof.note, key) for key in self.ledger.log_keys(self.ledger.count)),
                "checkpoint-signature")
        before = None
        for number, segment in enumerate(message.segments):
            before = self.check_segment(number, segment, before)
        require(self.shown > 0 and (self.first, self.shown) == (message.first_position, message.record_count),
                "evidence-run")

    def take_chain(self, check, chain, statements, roots):
        for serial, data in enumerate(statements):
            judge(check, f"serial {serial}", chain, judged(check, f"serial {serial}", parse_statement, data), roots)

    def check_segment(self, number, segment, before):
        """Step 4 for one segment; gives its seal."""
        place, last = f"segment {number} of the file", number == len(self.message.segments) - 1
        seal = judged("seal-form", place, decode, "Seal", segment.seal)
        require((seal.origin, seal.workspace) == (self.policy.origin, self.message.workspace), "seal-binding", place)
        self.check_log(seal, segment, last, place)
        require(self.ledger.had(seal.ledger_chain), "seal-ledger-chain", place)
        require(seal.workspace_chain.count > 0 and self.chain.had(seal.workspace_chain), "seal-workspace-chain", place)
        require(seal.first_position + seal.record_count <= U64_MAX, "evidence-run", place)
        require(last or add(segment.first_leaf, len(segment.leaves)) == seal.size, "evidence-run", place)
        if before:
            require(segment.first_leaf == 0 and seal.segment == before.segment + 1
                    and seal.first_position == add(before.first_position, before.record_count), "evidence-run", place)
        self.check_states(seal, before, place)
        leaves = [segment_leaf(leaf.kind, leaf.first_position, leaf.received_at, leaf.term, leaf.signed,
                               leaf.signature) for leaf in segment.leaves]
        require(range_root(SEGMENT_TREE, segment.first_leaf, leaves, seal.size, segment.path) == seal.root,
                "segment-root", place)
        kinds = [leaf.kind for leaf in segment.leaves]
        for index, leaf in enumerate(segment.leaves):
            require(leaf.kind == "STATEMENT" or "STATEMENT" not in kinds[:index][-1:], "entry-statement", place)
            self.check_leaf(seal, segment, leaf, f"{place} leaf {index}")
        if len(kinds) == seal.size:
            self.check_counts(seal, segment.leaves, kinds, place)
        return seal

    def check_states(self, seal, before, place):
        """Step 4.5: which statements hold in the segment."""
        statements = self.message.ledger_chain[:seal.ledger_chain.count]
        number = sum(parse_statement(data).statement.action == "incarnation" for data in statements)
        require(seal.incarnation == number, "seal-binding", place)
        if before:
            require(seal.ledger_chain.count >= before.ledger_chain.count, "seal-ledger-chain", place)
            require(seal.workspace_chain.count == before.workspace_chain.count + before.statement_count,
                    "seal-workspace-chain", place)

    def check_counts(self, seal, leaves, kinds, place):
        """Step 4.8: what the seal of a segment counts that is shown whole."""
        times = [leaf.received_at for leaf in leaves]
        records = sum(parse_header(leaf.signed).record_count for leaf in leaves if leaf.kind == "BATCH")
        require((records, kinds.count("BATCH"), kinds.count("EQUIVOCATION"), kinds.count("STATEMENT"), min(times),
                 max(times)) ==
                (seal.record_count, seal.batch_count, seal.equivocation_count, seal.statement_count,
                 seal.first_received_at, seal.last_received_at), "seal-counts", place)

    def check_log(self, seal, segment, last, place):
        reference = wire((1, seal.workspace), (2, seal.segment), (3, sha256(segment.seal)))
        entry = wire((1, 1), (2, reference))
        path, note = segment.log_path, self.proof.note
        if last:
            require(segment.log_index == self.proof.index and not path, "evidence-log", place)
            path = self.proof.path
        require(included(LOG_TREE, segment.log_index, note.size, sha256(b"\0" + entry), path, note.root),
                "evidence-log", place)

    def check_leaf(self, seal, segment, leaf, place):
        if leaf.kind != "BATCH":
            bare = not leaf.records and not leaf.nonces and not leaf.path and leaf.first_index == 0
            require(bare, "evidence-form", place)
        if leaf.kind == "STATEMENT":
            self.check_statement(seal, leaf, place)
            return
        header = judged("entry-form", place, parse_header, leaf.signed)
        states = KeyStates(self.ledger, seal.ledger_chain.count, self.chain, seal.workspace_chain.count)
        key = check_signer(states, header, leaf.signed, leaf.signature, place)
        if leaf.kind != "BATCH":
            return
        self.check_numbering(header, leaf.signed, place)
        self.check_run(leaf, header, place)
        self.check_records_root(leaf, header, place)
        for data in leaf.records:
            record = judged("record-form", place, parse_record, data)
            require(may_write(key.role, self.chain.name, record.kind), "record-kind", place)
        end = add(leaf.first_position, leaf.first_index, len(leaf.records))
        if leaf.records and self.in_doubt(header.key_id, end - 1, segment.log_index):
            self.doubted = True
        require(end <= add(seal.first_position, seal.record_count), "evidence-run", place)

    def check_statement(self, seal, leaf, place):
        """A statement that cuts a segment: it is of the file's chain, as far as that goes."""
        statement = judged("entry-form", place, decode, "Statement", leaf.signed)
        known = self.chain.hash_after(statement.serial + 1) if statement.serial < self.chain.count else None
        found = sha256(wire((1, 1), (2, leaf.signed), (3, leaf.signature)))
        require(statement.serial >= seal.workspace_chain.count and known in (None, found), "entry-statement", place)

    def in_doubt(self, key_id, position, log_index):
        """Of the last record of a leaf, after all statements of the file."""
        for chain, role, at in ((self.chain, "GATEWAY", position), (self.ledger, "RECORD", log_index)):
            key = chain.keys.get(key_id)
            if key and key.role == role and key.suspect is not None and key.suspect <= at:
                return True
        return False

    def check_numbering(self, header, header_bytes, place):
        """That a gateway's batches follow one another (6.4); the epoch of the first is the one that opened last."""
        first = header.gateway not in self.gateways
        gateway = self.gateways.setdefault(header.gateway, Gateway())
        epoch = gateway.epochs.get(header.epoch)
        if not first:
            admitted = continues(epoch, header) if epoch else begins(gateway, header, past_unknown=False)
            require(admitted, "evidence-run", place)
        if gateway.opened_last not in (None, header.epoch):
            gateway.epochs[gateway.opened_last].closed = True
        gateway.opened_last = header.epoch
        gateway.epochs[header.epoch] = Epoch(header.key_id, header.batch_number,
                                             header.first_record + header.record_count,
                                             keyed("header-hash", header_bytes), header.close)

    def check_run(self, leaf, header, place):
        """That nothing is left out before, within or after the records of this leaf."""
        first, count = leaf.first_index, len(leaf.records)
        if self.shown:
            require(first == 0 and self.next_position == leaf.first_position, "evidence-run", place)
        end = add(leaf.first_position, first, count)
        run_end = add(self.message.first_position, self.message.record_count)
        require(add(first, count) == header.record_count or end == run_end, "evidence-run", place)
        require(count or (header.record_count == 0 and first == 0), "evidence-run", place)
        if count:
            self.first = leaf.first_position + first if self.first is None else self.first
            self.next_position, self.shown = end, self.shown + count

    def check_records_root(self, leaf, header, place):
        require(len(leaf.nonces) == len(leaf.records), "batch-root", place)
        if not leaf.records:
            require(not leaf.path and header.batch_root == BATCH_TREE.empty, "batch-root", place)
            return
        leaves = [keyed("batch-leaf", nonce + lp(record)) for nonce, record in zip(leaf.nonces, leaf.records)]
        root = range_root(BATCH_TREE, leaf.first_index, leaves, header.record_count, leaf.path)
        require(root == header.batch_root, "batch-root", place)


def verify_evidence(data, policy):
    doubted = False
    try:
        proof = judged("evidence-form", "file", parse_evidence, data)
        evidence = Evidence(policy, proof)
        evidence.verify()
        doubted = evidence.doubted
    except Fault as fault:
        return {"exit_code": 2 if fault.undecided else 1, **faults_of([fault])}
    first = evidence.message.first_position
    return {"exit_code": 2 if doubted else 0, **faults_of([]), "workspace": evidence.message.workspace.hex(),
            "positions": [first, first + evidence.shown - 1]}


# ---------------------------------------------------------------------------------------------------------------------
# 5.4 and 5.7 Directory entries and disclosure files

DISCLOSURE_BYTES_MAX, DISCLOSED_MAX = 2_097_152, 10_000
WHITE = "".join(map(chr, [*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000]))


def hchacha20(key, nonce):
    """The key under which XChaCha20 uses the last 8 bytes of its nonce (draft-irtf-cfrg-xchacha-03, 2.2)."""
    whole = b"expand 32-byte k" + key + nonce
    words = [int.from_bytes(whole[at:at + 4], "little") for at in range(0, 64, 4)]

    def mix(a, b, c, d):
        for (x, y, z), turn in (((a, b, d), 16), ((c, d, b), 12), ((a, b, d), 8), ((c, d, b), 7)):
            words[x] = (words[x] + words[y]) & 0xFFFFFFFF
            turned = words[z] ^ words[x]
            words[z] = (turned << turn | turned >> 32 - turn) & 0xFFFFFFFF

    for _ in range(10):
        for column in range(4):
            mix(column, 4 + column, 8 + column, 12 + column)
        for at in range(4):
            mix(at, 4 + (at + 1) % 4, 8 + (at + 2) % 4, 12 + (at + 3) % 4)
    return b"".join(word.to_bytes(4, "little") for word in words[:4] + words[12:])


def contents_in_form(contents):
    address, name = contents.address or "", contents.name or ""
    local, at, domain = address.partition("@")
    in_form(0 < len(address) <= 320 and all("!" <= letter <= "~" for letter in address), "an address is of ASCII")
    in_form(address == address.lower(), "an address has no capitals")
    in_form(not at or (local and domain and "@" not in domain and not domain.endswith(".")), "an address has two sides")
    in_form(name == name.strip(WHITE), "a name has no white space at its ends")
    in_form(all(unicodedata.category(letter) != "Cc" for letter in name), "a name has no control character")
    groups = [group.encode() for group in contents.groups]
    in_form(all(re.fullmatch(rb"[0-9a-f]{32}/[A-Za-z0-9_./:@+-]{1,128}", group) for group in groups), "a group")
    in_form(all(before < after for before, after in itertools.pairwise(groups)), "groups ascend, each once")


def open_entry(origin, entry, key):
    """What is found of an entry (5.7), and its contents."""
    origin = origin.encode()
    if entry.key_commitment != keyed("member-key", lp(origin) + entry.member + key):
        return "other key", None
    beside = b"custody/v1/directory-entry\x00" + lp(origin) + entry.member + u64be(entry.revision)
    try:
        cipher = ChaCha20Poly1305(hchacha20(key, entry.nonce[:16]))
        contents = decode("DirectoryContents", cipher.decrypt(bytes(4) + entry.nonce[16:], entry.ciphertext, beside))
        contents_in_form(contents)
    except (InvalidTag, Malformed, Future):
        return "broken", None
    return "opened", contents


def parse_disclosure(data):
    in_form(len(data) <= DISCLOSURE_BYTES_MAX and data.endswith(b"\n"), "a disclosure file of at most 2 MiB, whose last line ends")
    try:
        first, origin, *lines = data[:-1].decode().split("\n")
    except (UnicodeDecodeError, ValueError) as error:
        raise Malformed("a disclosure file has two lines and more") from error
    in_form(first == "custody/v1/names" and origin, "the first lines of a disclosure file")
    members = {}
    for line in lines:
        parts = line.split(" ")
        in_form(len(parts) == 3, "a line is member, revision and key")
        member = hex_of(parts[0], 16)
        in_form(not members or max(members) < member, "members ascend")
        members[member] = (canonical_number(parts[1]), hex_of(parts[2], 32))
    in_form(1 <= len(members) <= DISCLOSED_MAX, "1 to 10,000 members")
    return origin, members


def names_of(records, origin, members):
    """What the entries say of each member of a disclosure file, and what is wrong with them."""
    known = {member: {"state": "not opened", "revision": None, "erased": False, "wrong": []} for member in members}
    for record in map(parse_record, records):
        if record.kind == "ledger_event" and record.ledger_event.kind == "ERASURE" and record.ledger_event.member in known:
            known[record.ledger_event.member]["erased"] = True
        entry = record.directory_entry if record.kind == "directory_entry" else None
        if entry is None or entry.member not in known:
            continue
        one = known[entry.member]
        if one["revision"] is not None and entry.revision <= one["revision"]:
            one["wrong"].append(f"revision {entry.revision} is not above the one before")
            continue
        found, contents = open_entry(origin, entry, members[entry.member][1])
        one.update(state="opened" if contents else "not opened", revision=entry.revision)
        one.update({name: contents and getattr(contents, name) for name in ("name", "address", "groups")})
        if not contents:
            one["wrong"].append(f"revision {entry.revision}: {found}")
    for member, (revision, _) in members.items():
        one = known[member]
        if one["revision"] is None:
            one["wrong"].append("the archive has no entry")
        elif one["revision"] < revision:
            one["wrong"].append("the archive ends before the file was made")
    return {member.hex(): one for member, one in known.items()}


def open_names(run, data):
    try:
        origin, members = parse_disclosure(data)
    except Malformed as error:
        raise NoVerdict(f"unusable disclosure file: {error}") from error
    if origin != run.policy.origin:
        raise NoVerdict(f"the disclosure file is of {origin}")
    run.people = []
    verdict = verdict_of(run, verify_archive(run))
    if run.faults:
        return verdict
    names = names_of(run.people, origin, members)
    return {"exit_code": int(any(one["wrong"] for one in names.values())), **faults_of([]), "names": names}


# ---------------------------------------------------------------------------------------------------------------------
# 5.6 Access changes: who could call what

IN_SESSION = {"initialize", "logging/setLevel", "ping", "prompts/list", "resources/list", "resources/templates/list",
              "resources/unsubscribe", "server/discover", "subscriptions/listen", "tasks/list", "tools/list"}
# Without these a record does not fit.
ACCESS_FIELDS = {
    "MEMBER_ADDED": ["member"], "MEMBER_REVOKED": ["member"], "AGENT_ADDED": ["agent"], "AGENT_REMOVED": ["agent"],
    "GROUP_JOINED": ["member", "group"], "GROUP_LEFT": ["member", "group"],
    "TOKEN_ISSUED": ["token", "member", "expires_at"], "TOKEN_ROTATED": ["token"], "TOKEN_REVOKED": ["token"],
    "RULE_ADDED": ["rule", "place"], "RULE_REMOVED": ["rule"], "LIMIT_CHANGED": ["rule"], "LIMIT_REMOVED": ["rule"],
    "SERVER_CHANGED": ["server"], "SERVER_REMOVED": ["server"], "POLICY_APPLIED": []}
LIMITS = ("calls_per_minute", "calls_per_day", "concurrent_calls", "request_bytes_max", "response_bytes_max")
Member = namedtuple("Member", "owner labels groups")
Token = namedtuple("Token", "member agent until")


@lru_cache(maxsize=4096)
def pattern_of(text):
    return re.compile(".*".join(map(re.escape, text.split("*"))), re.DOTALL)


def fits(pattern, text):
    """A pattern fits a text only whole; `*` stands for anything."""
    return pattern_of(pattern).fullmatch(text) is not None


def halves(pattern):
    """What a `server/tool` pattern says of the server, and of what the request names."""
    at_server, slash, named = pattern.partition("/")
    return at_server, named if slash else "*"


def methods_of(rule):
    return rule.methods or ("tools/call",)


def is_of(rule, member, groups):
    everyone = not rule.members and not rule.groups
    return everyone or member in rule.members or not groups.isdisjoint(rule.groups)


class AccessPolicy:
    """What the records of changes add up to."""

    def __init__(self):
        self.members, self.agents, self.tokens, self.servers = {}, frozenset(), {}, {}
        self.rules, self.limits = (), ()

    def take(self, record):
        """The effect of one record; whether it fits."""
        if any(getattr(record, name) in (None, "") for name in ACCESS_FIELDS[record.action]):
            return False
        return getattr(self, "take_" + record.action.lower())(record) is not False

    def take_member_added(self, record):
        self.members[record.member] = Member(record.owner, tuple(record.labels), frozenset())

    def take_member_revoked(self, record):
        self.members.pop(record.member, None)
        self.tokens = {id: token for id, token in self.tokens.items() if token.member != record.member}

    def take_agent_added(self, record):
        self.agents |= {record.agent}

    def take_agent_removed(self, record):
        self.agents -= {record.agent}

    def take_group_joined(self, record):
        return self.change_groups(record.member, lambda groups: groups | {record.group})

    def take_group_left(self, record):
        return self.change_groups(record.member, lambda groups: groups - {record.group})

    def change_groups(self, member, change):
        known = self.members.get(member)
        if known:
            self.members[member] = known._replace(groups=change(known.groups))
        return known is not None

    def take_token_issued(self, record):
        self.tokens[record.token] = Token(record.member, record.agent, record.expires_at)
        return record.member in self.members

    def take_token_rotated(self, record):
        if record.expires_at is None:
            self.tokens.pop(record.token, None)
        elif record.token in self.tokens:
            self.tokens[record.token] = self.tokens[record.token]._replace(until=record.expires_at)

    def take_token_revoked(self, record):
        self.tokens.pop(record.token, None)

    def take_rule_added(self, record):
        others = [rule for rule in self.rules if rule.id != record.rule.id]
        self.rules = (*others[:record.place], record.rule, *others[record.place:])
        return record.place <= len(others)

    def take_rule_removed(self, record):
        self.rules = tuple(rule for rule in self.rules if rule.id != record.rule.id)

    def take_limit_changed(self, record):
        is_new = all(limit.id != record.rule.id for limit in self.limits)
        replaced = (record.rule if limit.id == record.rule.id else limit for limit in self.limits)
        self.limits = (*replaced, record.rule) if is_new else tuple(replaced)

    def take_limit_removed(self, record):
        self.limits = tuple(limit for limit in self.limits if limit.id != record.rule.id)

    def take_server_changed(self, record):
        self.servers[record.server] = tuple(record.labels)

    def take_server_removed(self, record):
        self.servers.pop(record.server, None)

    def take_policy_applied(self, _record):
        pass

    def copy(self):
        copied = AccessPolicy()
        copied.__dict__ = {name: dict(value) if isinstance(value, dict) else value for name, value in vars(self).items()}
        return copied

    def decide(self, member, server, name, method):
        """Decision and the name of what decided, whoever may be the member's token."""
        mine = [rule for rule in self.rules if is_of(rule, member, self.members[member].groups)]
        for rule in mine:
            parts = map(halves, rule.tools)
            if (any(fits(at_server, server) and fits(named, name) for at_server, named in parts)
                    and any(fits(pattern, method) for pattern in methods_of(rule))):
                return rule.effect == "ALLOWED", rule.id
        if method in IN_SESSION and may_reach(mine, server):
            return True, "shim/session"
        return False, "shim/default-deny"

    def could_call(self, member, at, server, name, method):
        """The same of a member who could call at that time; otherwise no rule decides."""
        known = self.members.get(member)
        tokens = any(token.member == member and token.until > at for token in self.tokens.values())
        if known is None or not (tokens or "identity-provider" in known.labels):
            return False, None
        return self.decide(member, server, name, method)


def may_reach(rules, server):
    """Whether one of these rules, all of one member, allows something there that none before it denies whole."""
    denied = set()
    for rule in rules:
        here = [named for at_server, named in map(halves, rule.tools) if fits(at_server, server)]
        if rule.effect == "ALLOWED" and here and "*" not in denied and not denied.issuperset(methods_of(rule)):
            return True
        if rule.effect == "DENIED" and "*" in here:
            denied.update(methods_of(rule))
    return False


class AccessHistory:
    """The changes of one gateway in one workspace, in order of position, and what may be missing between them."""

    def __init__(self, gateway, leaves):
        self.gateway, self.changes, self.began, self.heard = gateway, [], None, None
        self.lost = self.lost_before_changes = set()  # why records may be missing since the last change, or the beginning
        self.lost_at_first, self.is_behind_gap = set(), False  # up to the first batch; since a segment that is not kept
        self.at_end = {}  # by epoch: the number of the change that its last record is of, if it is of one
        for leaf in leaves:
            if leaf is None:
                self.take_gap()
            elif leaf.content.header.gateway == gateway:
                self.take_batch(leaf)
        self.judge()
        self.fold()

    def take_gap(self):
        """A segment is not kept: a change beside it may have records there."""
        self.lost.add("not-kept")
        self.is_behind_gap = True
        for number in self.at_end.values():
            self.changes[number].ends_epoch = True

    def take_batch(self, leaf):
        header = leaf.content.header
        if header.opening_reason in ("STATE_LOST", "REWOUND"):
            self.lost.add(header.opening_reason.lower().replace("_", "-"))
        if header.dropped:
            self.lost.add("dropped")
        if self.began is None:
            self.began, self.lost_at_first = header.created_at, set(self.lost)
        self.heard = header.created_at
        for position, record in enumerate(map(parse_record, leaf.content.records), leaf.entry.first_position):
            if record.kind == "access_change":
                self.take_record(header.epoch, position, leaf.entry.received_at, record.access_change)
            else:
                self.at_end.pop(header.epoch, None)
                digest = record.call.access_policy_digest if record.kind == "call" else None
                if digest is not None and all(digest != change.after for change in self.changes):
                    self.lost.add("other-policy")
            self.is_behind_gap = False

    def take_record(self, epoch, position, received_at, record):
        key = (epoch, record.at, record.policy_digest_before, record.policy_digest_after)
        change = self.changes[-1] if self.changes else None
        if change is None or change.key != key:
            self.lost = set()
            change = SimpleNamespace(key=key, epoch=epoch, at=record.at, before=key[2], after=key[3], first=position,
                                     received_at=received_at, records=[], lost=self.lost, lost_within=set(),
                                     ends_epoch=False, is_torn=self.is_behind_gap)
            self.changes.append(change)
        elif self.lost:
            change.is_torn = True
            change.lost_within |= self.lost
            self.lost.clear()
        change.records.append(record)
        change.last = position
        self.at_end[epoch] = len(self.changes) - 1

    def judge(self):
        """From the last change back: which end their epoch, were cut short, or may have more records."""
        for number in self.at_end.values():
            self.changes[number].ends_epoch = True
        following = None
        for number, change in reversed(list(enumerate(self.changes))):
            change.ends_epoch = change.ends_epoch and change.records[-1].action != "POLICY_APPLIED"
            change.cut_short = (change.ends_epoch and change.before != change.after
                                and self.is_written_again(change, self.changes[number + 1:]))
            is_told = following is not None and (
                (is_same(following, change) and not following.is_open)
                or (following.before == change.after and not change.lost))
            change.is_open = change.is_torn or (change.ends_epoch and not is_told)
            following = change

    @staticmethod
    def is_written_again(change, later_ones):
        """Whether a later change has the same two digests and more records, and nothing between speaks against it."""
        lost = change.lost
        for later in later_ones:
            if lost or not (is_same(later, change) or later.before == later.after == change.before):
                return False
            if is_same(later, change) and len(later.records) > len(change.records):
                return True
            lost = later.lost
        return False

    def fold(self):
        """What was in force behind each change, and why that is not known."""
        policy, unknown, last = AccessPolicy(), set(), None
        for change in self.changes:
            change.policy_before, change.has_gap = policy, False
            if not change.cut_short:
                policy = policy.copy()
                if change.before is None:
                    policy, unknown = AccessPolicy(), set()
                elif last is None or not (last.after == change.before or is_same(last, change)):
                    change.has_gap = True
                change.steps = [self.step(change, policy, record) for record in change.records]
                unknown = unknown | ({"gap"} if change.has_gap else set())
                unknown = unknown | ({"last-change-open"} if change.is_open else set())
                last = change
            change.policy, change.unknown, change.in_force = policy, unknown, last

    @staticmethod
    def step(change, policy, record):
        """Takes one record; the part of the policy that it is about, before and after it."""
        before = part_of(policy, record)
        change.has_gap = not policy.take(record) or change.has_gap
        return before, part_of(policy, record)

    def count_until(self, at):
        return max((number for number, change in enumerate(self.changes, 1) if change.at <= at), default=0)

    def doubts(self, at, since=None):
        """Why it is not known what was in force at a time; with `since`, what changed from then on."""
        count = self.count_until(at)
        begin = count if since is None else min(self.count_until(since), count)
        counts = [change for change in self.changes[:count] if not change.cut_short]
        next_at = next((number for number, change in enumerate(self.changes) if number >= count and not change.cut_short),
                       len(self.changes))
        following = self.changes[next_at] if next_at < len(self.changes) else None
        if not counts and self.began > at:
            return self.lost_at_first | ({"gap-after"} if following and following.before is not None else set())
        doubts = {"not-heard-since"} if self.heard < at else set()
        for number in range(begin, next_at + 1):
            doubts |= self.changes[number - 1].lost if number else self.lost_before_changes
        for change in self.changes[begin:next_at]:
            doubts |= change.lost_within
        if not counts:
            return doubts | {"no-policy"}
        goes_on = following and (following.before in (None, counts[-1].after) or is_same(following, counts[-1]))
        listed = [change for change in self.changes[begin:count] if not change.cut_short]
        before = [change for change in self.changes[:begin] if not change.cut_short]
        doubts |= before[-1].unknown if before else set()
        doubts |= {"gap"} if any(change.has_gap for change in listed) else set()
        doubts |= {"last-change-open"} if any(change.is_open for change in listed) else set()
        return doubts | counts[-1].unknown | (set() if goes_on or not following else {"gap-after"})


def is_same(one, other):
    return (one.before, one.after) == (other.before, other.after)


def part_of(policy, record):
    """What a record is about: its kind, its name, and what the policy says of it (None: it is not there)."""
    action = record.action
    if action.startswith("MEMBER_"):
        return "member", record.member.hex(), member_shown(record.member, policy.members.get(record.member))
    if action.startswith("GROUP_"):
        known = policy.members.get(record.member)
        return "group", record.member.hex(), record.group if known and record.group in known.groups else None
    if action.startswith("AGENT_"):
        return "agent", record.agent.hex(), True if record.agent in policy.agents else None
    if action.startswith("TOKEN_"):
        return "token", record.token.hex(), token_shown(record.token, policy.tokens.get(record.token))
    if action.startswith("SERVER_"):
        return "server", record.server, policy.servers.get(record.server)
    if action == "POLICY_APPLIED":
        return None
    found = [one for one in enumerate(policy.rules if action.startswith("RULE_") else policy.limits)
             if one[1].id == record.rule.id]
    if action.startswith("RULE_"):
        return "rule", record.rule.id, {**rule_shown(found[0][1]), "place": found[0][0]} if found else None
    return "limit", record.rule.id, limit_shown(found[0][1]) if found else None


def hex_or_none(id):
    return None if id is None else id.hex()


def time_shown(at):
    written = datetime.datetime.fromtimestamp(at // 1_000_000, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    part = f".{at % 1_000_000:06}" if at % 1_000 else f".{at // 1_000 % 1_000:03}" if at % 1_000_000 else ""
    return written + part + "Z"


def member_shown(id, member):
    return member and {"member": id.hex(), "owner": hex_or_none(member.owner), "labels": list(member.labels)}


def token_shown(id, token):
    return token and {"token": id.hex(), "member": token.member.hex(), "agent": hex_or_none(token.agent),
                      "expires_at": time_shown(token.until)}


def scope_shown(rule):
    return {"id": rule.id, "members": [member.hex() for member in rule.members], "groups": list(rule.groups),
            "tools": list(rule.tools)}


def rule_shown(rule):
    return {**scope_shown(rule), "effect": rule.effect.lower(), "methods": list(rule.methods),
            "organisation": rule.organisation}


def limit_shown(limit):
    return {**scope_shown(limit), **{name: getattr(limit, name) or None for name in LIMITS}, "shared": limit.shared}


def made_shown(change):
    """Who made a change, when and why, as its first record has it."""
    first = change.records[0]
    actor = {"member": first.actor_member.hex()} if first.actor == "actor_member" else {"system": first.actor_system}
    return {"first_position": change.first, "last_position": change.last, "at": time_shown(change.at),
            "received_at": time_shown(change.received_at), "actor": actor, "reason": first.reason,
            "ticket": first.ticket, "policy_digest_before": hex_or_none(change.before),
            "policy_digest_after": change.after.hex()}


def could_shown(could):
    return {"allowed": could[0], "rule": could[1]}


def in_force_shown(history, at, tool, method):
    counts = [change for change in history.changes[:history.count_until(at)] if not change.cut_short]
    if not counts:
        return None
    policy = counts[-1].policy
    members = []
    for id, member in sorted(policy.members.items()):
        good = (token_shown(*one) for one in sorted(policy.tokens.items()) if one[1].member == id and one[1].until > at)
        shown = {**member_shown(id, member), "groups": sorted(member.groups), "tokens": list(good)}
        if tool:
            shown["could_call"] = could_shown(policy.could_call(id, at, *tool, method))
        members.append(shown)
    made = [change for change in counts if change.before != change.after]
    return {"policy_digest": counts[-1].after.hex(), "since": made_shown(made[-1]) if made else None,
            "members": members, "agents": sorted(agent.hex() for agent in policy.agents), "servers": policy.servers,
            "rules": list(map(rule_shown, policy.rules)), "limits": list(map(limit_shown, policy.limits))}


def changes_shown(workspace, history, since, until, tool, method):
    """Each change with what it changed; of a tool, those alone that changed who could call it."""
    for change in history.changes[min(history.count_until(since), history.count_until(until)):history.count_until(until)]:
        steps = [] if change.cut_short else [one for one in change.steps if one[0] != one[1]]
        calls = calls_changed(change, tool, method) if tool and not change.cut_short else []
        if tool and not calls and not change.has_gap:
            continue
        yield change.first, {
            **made_shown(change), "workspace": workspace.hex(), "gateway": history.gateway.hex(),
            "records_missing_before": change.has_gap, "cut_short": change.cut_short,
            "whole_policy": any(record.action == "POLICY_APPLIED" for record in change.records),
            "changed": [{"part": kind, "id": name, "before": before, "after": after}
                        for (kind, name, before), (_, _, after) in steps],
            "calls": calls}


def calls_changed(change, tool, method):
    changed = []
    for id in sorted({*change.policy_before.members, *change.policy.members}):
        before, after = (could_shown(policy.could_call(id, change.at, *tool, method))
                         for policy in (change.policy_before, change.policy))
        if before != after:
            changed.append({"member": id.hex(), "before": before, "after": after})
    return changed


class Access:
    """Who could call what, out of an archive that was verified just before."""

    def __init__(self, run):
        run.leaves = {}
        self.verdict = verdict_of(run, verify_archive(run))
        self.histories = []
        for workspace, leaves in run.leaves.items() if self.verdict["exit_code"] != 1 else ():
            gateways = {leaf.content.header.gateway for leaf in leaves if leaf}
            self.histories += [(workspace, AccessHistory(gateway, leaves)) for gateway in sorted(gateways)]

    def answer(self, at=None, between=None, tool=None, method="tools/call"):
        since, until = between or (None, at)
        gateways, changes = [], []
        for workspace, history in self.histories:
            shown = {"workspace": workspace.hex(), "gateway": history.gateway.hex(),
                     "heard_from": time_shown(history.began), "heard_to": time_shown(history.heard),
                     "had_begun": history.count_until(until) > 0 or history.began <= until,
                     "doubts": sorted(history.doubts(until, since))}
            if between:
                changes += changes_shown(workspace, history, since, until, tool, method)
            else:
                shown["in_force"] = in_force_shown(history, at, tool, method)
            gateways.append(shown)
        code = self.verdict["exit_code"] or 2 * any(one["doubts"] for one in gateways)
        return {"exit_code": code, **faults_of([]), "claims": self.verdict["claims"], "gateways": gateways,
                "changes": [change for _, change in sorted(changes, key=lambda one: one[0])]}


# ---------------------------------------------------------------------------------------------------------------------
# The command line


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.print_usage(sys.stderr)
        self.exit(64, f"error: {message}\n")


def number_argument(text):
    try:
        return canonical_number(text)
    except Malformed as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from error


def tool_argument(text):
    server, _, name = text.partition("/")
    if not server or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not a tool of a server")
    return server, name


def arguments():
    parser = Parser(description="A second verifier of Custody, from FORMAT.md alone.")
    commands = parser.add_subparsers(dest="command", required=True)
    archive = commands.add_parser("verify", help="verify an archive: a folder or a tar")
    archive.add_argument("archive", type=Path)
    archive.add_argument("--known", type=Path, action="append", default=[], help="a known file (13.5)")
    for name in ("--as-of", "--at-size", "--since", "--until"):
        archive.add_argument(name, type=number_argument)
    evidence = commands.add_parser("evidence", help="check an evidence file")
    evidence.add_argument("file", type=Path)
    names = commands.add_parser("names", help="open the entries of a disclosure file")
    names.add_argument("archive", type=Path)
    names.add_argument("--disclosure", type=Path, required=True)
    access = commands.add_parser("access", help="who could call what, and what changed it")
    access.add_argument("archive", type=Path)
    access.add_argument("--as-of", type=number_argument)
    when = access.add_mutually_exclusive_group(required=True)
    when.add_argument("--at", type=number_argument, help="in microseconds of the gateway's clock")
    when.add_argument("--between", type=number_argument, nargs=2)
    access.add_argument("--tool", help="SERVER/TOOL", type=tool_argument)
    access.add_argument("--method", default="tools/call")
    for command in (archive, evidence, names, access):
        command.add_argument("--policy", type=Path, required=True)
        command.add_argument("--json", action="store_true", help="print the verdict as JSON")
    return parser.parse_args()


def read_file(path):
    try:
        return path.read_bytes()
    except OSError as error:
        raise NoVerdict(f"cannot read {path}: {error}") from error


def run_command(args):
    try:
        policy = parse_policy(read_file(args.policy))
    except Malformed as error:
        raise NoVerdict(f"unusable policy: {error}") from error
    if args.command == "evidence":
        return verify_evidence(read_file(args.file), policy)
    if args.command == "names":
        return open_names(Run(Archive(args.archive), policy, [], int(time.time() * 1_000_000)), read_file(args.disclosure))
    known = [parse_known(f"policy {i}", data) for i, data in enumerate(policy.known)]
    as_of = int(time.time() * 1_000_000) if args.as_of is None else args.as_of
    if args.command == "access":
        return Access(Run(Archive(args.archive), policy, known, as_of)).answer(args.at, args.between, args.tool, args.method)
    known += [parse_known(str(path), read_file(path)) for path in args.known]
    run = Run(Archive(args.archive), policy, known, as_of, args.at_size, args.since, args.until)
    return verdict_of(run, verify_archive(run))


def main():
    args = arguments()
    try:
        verdict = run_command(args)
    except NoVerdict as error:
        verdict = {"claims": dict.fromkeys(CLAIMS, "undecided"), "exit_code": 2, "error": str(error),
                   **faults_of([]), "findings": [], "counts": {}}
    if args.json:
        print(json.dumps(verdict, indent=2))
    else:
        fault = verdict["first_fault"]
        for claim, state in verdict.get("claims", {}).items():
            print(f"{claim}: {state}")
        for one in verdict.get("gateways", []):
            print(one["workspace"], one["gateway"], "not known:" if one["doubts"] else "known", *one["doubts"])
        for member, one in verdict.get("names", {}).items():
            print(member, one["state"], one.get("name") or "", one.get("address") or "", *one["wrong"], sep="  ")
        print(f"first fault: {fault['check']} at {fault['place']}" if fault else verdict.get("error", "no fault"))
    sys.exit(verdict["exit_code"])


if __name__ == "__main__":
    main()
