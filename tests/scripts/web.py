"""Asks a ledger over HTTP with nothing but Python's own client, as its OpenAPI document says.

    web.py URL AUTHORITY WORKSPACE TRACE

The token is in CUSTODY_API_TOKEN. Walks every path of the document, holds each JSON answer against the schema that it names, follows
server-sent events until one record has come, and prints what it got as one JSON object. Ends with 1 at the first answer that is not as
the document says.
"""

import json
import os
import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request

from jsonschema import Draft202012Validator

URL, AUTHORITY, WORKSPACE, TRACE = sys.argv[1:5]
TLS = ssl.create_default_context(cafile=AUTHORITY)
TOKEN = os.environ["CUSTODY_API_TOKEN"]
WAIT_SECONDS = 60


def ask(path, token=TOKEN, **parameters):
    """Status, media type and body."""
    query = urllib.parse.urlencode(parameters, doseq=True)
    request = urllib.request.Request(f"{URL}{path}?{query}")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, context=TLS, timeout=WAIT_SECONDS) as answer:
            return answer.status, answer.headers.get_content_type(), answer.read()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.headers.get_content_type(), refused.read()


DOCUMENT = json.loads(ask("/v1/openapi.json", token=None)[2])


def check(schema, value):
    Draft202012Validator({"$ref": f"#/components/schemas/{schema}", "components": DOCUMENT["components"]}).validate(value)
    return value


def answered(path, filled, **parameters):
    """A JSON answer, as the document describes it."""
    status, kind, body = ask(filled, **parameters)
    assert status == 200, (filled, status, body)
    content = DOCUMENT["paths"][path]["get"]["responses"]["200"]["content"]
    assert kind in content, (path, kind)
    schema = content[kind]["schema"].get("$ref", "").rsplit("/", 1)[-1]
    return check(schema, json.loads(body)) if schema else body.decode()


def refused(path, token=TOKEN, **parameters):
    status, _, body = ask(path, token=token, **parameters)
    return [status, check("Refused", json.loads(body))["error"]]


def followed(**parameters):
    """The first record that comes in; a line on standard output tells whoever ships it that somebody waits."""
    query = urllib.parse.urlencode(parameters)
    request = urllib.request.Request(f"{URL}/v1/follow?{query}", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, context=TLS, timeout=WAIT_SECONDS) as answer:
        assert answer.headers.get_content_type() == "text/event-stream"
        print("following", flush=True)
        lines = {}
        for line in answer:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "" and "data" in lines:
                return [lines["event"], check("Hit", json.loads(lines["data"]))]
            lines[name] = value
    raise AssertionError("the stream ended")


def main():
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    place = {"workspace": WORKSPACE, "position": "1", "trace": TRACE}
    asked = {
        "/v1/search": {"query": "kind:call", "limit": 10, "count": "true"},
        "/v1/alarms": {},
        "/v1/summary": {
            "query": "kind:call",
            "facet": ["outcome", "tool:1"],
            "histogram": "at",
            "width": "1d",
            "split": "outcome",
            "percentiles": "duration",
            "thousandths": [500, 990],
            "by": "tool",
        },
        "/v1/records/{workspace}/{position}": {},
        "/v1/records/{workspace}/{position}/evidence": {},
        "/v1/traces/{trace}": {},
        "/v1/export": {"query": "kind:call"},
    }
    assert set(asked) | {"/v1/follow"} == set(DOCUMENT["paths"])
    answers = {path: answered(path, path.format(**place), **more) for path, more in asked.items()}
    first = answers["/v1/search"]
    answers["next"] = answered("/v1/search", "/v1/search", query="kind:call", limit=10, count="true", cursor=first["cursor"])
    answers["csv"] = ask("/v1/export", query="kind:call", format="csv")[2].decode()
    answers["refused"] = {
        "no token": refused("/v1/search", token=None),
        "a token that nobody has": refused("/v1/search", token="cqt_" + "ab" * 16 + "_" + "cd" * 32),
        "a parameter that nobody knows": refused("/v1/search", workspaces=WORKSPACE),
        "one given twice": refused("/v1/search", query=["kind:call", "kind:alarm"]),
        "no question": refused("/v1/search", query="outcom:ok"),
        "another workspace": refused("/v1/search", workspace="research"),
        "no such record": refused(f"/v1/records/{WORKSPACE}/99999"),
        "no such path": refused("/v1/searches"),
        "no trace": refused("/v1/traces/xyz"),
    }
    answers["followed"] = followed(query="kind:call outcome:denied")
    print(json.dumps(answers))


main()
