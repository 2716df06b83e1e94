//! What the HTTP service understands: the table that its parameters are read by, and the OpenAPI document that says the same.

use serde_json::{Map, Value, json};
use tonic::Code;

/// Where the document is; it says nothing of anybody, so that no token is asked for.
pub(super) const DOCUMENT: &str = "/v1/openapi.json";

/// What may stand behind the question mark.
pub(super) struct Parameter {
    pub(super) name: &'static str,
    /// It may be given several times.
    pub(super) many: bool,
    kind: &'static str,
    says: &'static str,
}

/// A path.
pub(super) struct Route {
    pub(super) path: &'static str,
    says: &'static str,
    own: &'static [Parameter],
    common: &'static [&'static [Parameter]],
    /// Media type, and name of the schema if it is JSON.
    gives: &'static [(&'static str, &'static str)],
}

impl Route {
    /// All of its parameters.
    pub(super) fn parameters(&self) -> impl Iterator<Item = &'static Parameter> {
        self.own.iter().chain(self.common.iter().copied().flatten())
    }
}

const fn one(name: &'static str, kind: &'static str, says: &'static str) -> Parameter {
    Parameter { name, many: false, kind, says }
}

const fn many(name: &'static str, says: &'static str) -> Parameter {
    Parameter { name, many: true, kind: "string", says }
}

const NAMED: &[Parameter] = &[
    one("names", "boolean", "Show the names of people; the token needs the right, and the question a reason."),
    one("reason", "string", "Why, as a code of at most 64 characters, for the record of the question."),
];
const PLACED: &[Parameter] = &[many("workspace", "Only this workspace, by name or id; none: all that the token sees.")];
const ASKED: &[Parameter] = &[one("query", "string", "The question, as docs/QUERY.md has it; none: everything.")];
const PAGED: &[Parameter] = &[
    one("limit", "integer", "Records of the page, newest first: 1 to 1000; 100 if it is not given."),
    one("cursor", "string", "Of the page before, to have the next one."),
    one("count", "boolean", "Also count all that match."),
];
const PAGE: &[(&str, &str)] = &[("application/json", "Page")];

pub(super) const SEARCH: Route = Route {
    path: "/v1/search",
    says: "A page of records, newest first.",
    own: PAGED,
    common: &[ASKED, PLACED, NAMED],
    gives: PAGE,
};
pub(super) const ALARMS: Route = Route {
    path: "/v1/alarms",
    says: "A page of alarms about the workspaces, newest first.",
    own: PAGED,
    common: &[ASKED, PLACED, NAMED],
    gives: PAGE,
};
pub(super) const SUMMARY: Route = Route {
    path: "/v1/summary",
    says: "Counts, facets, a histogram and percentiles of all records that match.",
    own: &[
        many("facet", "A field whose values are counted, as `tool` or `tool:50` for the first fifty."),
        one("histogram", "string", "`at` or `received`: how many there were in each span of time."),
        one("width", "string", "Width of a span, as `1h` or `5m`; an hour if it is not given."),
        one("split", "string", "A field whose values are told apart in each span."),
        one("percentiles", "string", "`duration`, `request_bytes` or `response_bytes`: how great."),
        many("thousandths", "Which percentiles, as 950 for the 95th of a hundred; 500, 950 and 990 if none is given."),
        one("by", "string", "A field whose values are told apart in the percentiles."),
    ],
    common: &[ASKED, PLACED, NAMED],
    gives: &[("application/json", "Summary")],
};
pub(super) const RECORD: Route = Route {
    path: "/v1/records/{workspace}/{position}",
    says: "One record.",
    own: &[],
    common: &[NAMED],
    gives: &[("application/json", "Hit")],
};
pub(super) const EVIDENCE: Route = Route {
    path: "/v1/records/{workspace}/{position}/evidence",
    says: "The evidence file of one record, for `verifier evidence check`; its segment is cut and archived first.",
    own: &[],
    common: &[NAMED],
    gives: &[("text/plain", "")],
};
pub(super) const TRACE: Route = Route {
    path: "/v1/traces/{trace}",
    says: "The calls of one trace, in the order of a tree.",
    own: &[],
    common: &[PLACED, NAMED],
    gives: &[("application/json", "Trace")],
};
pub(super) const FOLLOW: Route = Route {
    path: "/v1/follow",
    says: "Records from now on, as server-sent events: `record` has a Hit, `end` an Error.",
    own: &[],
    common: &[ASKED, PLACED, NAMED],
    gives: &[("text/event-stream", "")],
};
pub(super) const EXPORT: Route = Route {
    path: "/v1/export",
    says: "All records that match, newest first, as a file of any length; one that is not whole breaks off without a proper end.",
    own: &[one("format", "string", "`jsonl`, `csv`, or `evidence`: a tar of evidence files and the records.")],
    common: &[ASKED, PLACED, NAMED],
    gives: &[("application/jsonl", ""), ("text/csv", ""), ("application/x-tar", "")],
};

const ROUTES: [&Route; 8] = [&SEARCH, &ALARMS, &SUMMARY, &RECORD, &EVIDENCE, &TRACE, &FOLLOW, &EXPORT];

/// Why nothing is answered, as a word.
pub(super) fn code_name(code: Code) -> &'static str {
    match code {
        Code::InvalidArgument | Code::OutOfRange => "invalid_argument",
        Code::Unauthenticated => "unauthenticated",
        Code::PermissionDenied => "permission_denied",
        Code::NotFound => "not_found",
        Code::FailedPrecondition => "failed_precondition",
        Code::ResourceExhausted => "resource_exhausted",
        Code::Unavailable | Code::Cancelled => "unavailable",
        Code::DataLoss => "data_loss",
        _ => "internal",
    }
}

fn parameter(of: &Parameter) -> Value {
    let schema = match of.many {
        true => json!({"type": "array", "items": {"type": of.kind}}),
        false => json!({"type": of.kind}),
    };
    json!({"name": of.name, "in": "query", "required": false, "description": of.says, "schema": schema})
}

fn in_path(path: &str) -> impl Iterator<Item = Value> {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    names.map(|name| {
        let kind = if name == "position" { "integer" } else { "string" };
        json!({"name": name, "in": "path", "required": true, "schema": {"type": kind}})
    })
}

fn operation(of: &Route) -> Value {
    let content: Map<String, Value> = of
        .gives
        .iter()
        .map(|(kind, schema)| {
            let schema = match schema.is_empty() {
                true => json!({"type": "string"}),
                false => json!({"$ref": format!("#/components/schemas/{schema}")}),
            };
            ((*kind).to_owned(), json!({"schema": schema}))
        })
        .collect();
    let refused = json!({
        "description": "Refused, with the next move.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Refused"}}},
    });
    let parameters = in_path(of.path).chain(of.parameters().map(parameter));
    json!({"get": {
        "summary": of.says,
        "parameters": parameters.collect::<Value>(),
        "responses": {"200": {"description": "Answered.", "content": content}, "default": refused},
    }})
}

fn object(properties: Value) -> Value {
    let required: Value = properties.as_object().into_iter().flat_map(Map::keys).map(String::as_str).collect();
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

fn schemas() -> Value {
    let (text, number, flag) = (
        json!({"type": "string"}),
        json!({"type": "integer", "format": "int64", "minimum": 0}),
        json!({"type": "boolean"}),
    );
    let or_null = |kind: &str| json!({"type": [kind, "null"]});
    let all = |name: &str| json!({"type": "array", "items": {"$ref": format!("#/components/schemas/{name}")}});
    let id = json!({"type": "string", "pattern": "^[0-9a-f]{32}$"});
    let complete = json!({"$ref": "#/components/schemas/Completeness"});
    let mut hit = object(json!({
        "workspace": id, "workspace_name": text, "position": number, "received_at": text, "gateway": id,
        "epoch": {"type": "string", "pattern": "^([0-9a-f]{32})?$"}, "number": number, "kind": text,
        "record": {"type": "object", "description": "What it says, under the names of record.proto."},
    }));
    hit["properties"]["names"] = json!({"type": "object", "additionalProperties": text});
    let mut counted = object(json!({"value": text, "count": number}));
    counted["properties"]["name"] = text.clone();
    json!({
        "Hit": hit,
        "Completeness": object(json!({"records": number, "indexed": number, "cut_short": flag, "silent": all("Silent")})),
        "Silent": object(json!({
            "workspace": id, "gateway": id, "heard_at": or_null("string"), "ended_at": or_null("string"),
        })),
        "Page": object(json!({
            "hits": all("Hit"), "cursor": or_null("string"), "total": or_null("integer"), "completeness": complete,
        })),
        "Counted": counted,
        "Facet": object(json!({"field": text, "distinct": number, "values": all("Counted")})),
        "Bucket": object(json!({"start": text, "count": number, "values": all("Counted")})),
        "Ranked": object(json!({"value": text, "count": number, "values": {"type": "array", "items": number}})),
        "Summary": object(json!({
            "count": number, "facets": all("Facet"), "width_us": number, "buckets": all("Bucket"),
            "percentiles": all("Ranked"), "from_rollups": flag, "completeness": complete,
        })),
        "Step": object(json!({"hit": {"$ref": "#/components/schemas/Hit"}, "parent": or_null("integer")})),
        "Trace": object(json!({"steps": all("Step"), "completeness": complete})),
        "Error": object(json!({
            "code": text, "message": text, "hint": or_null("string"), "start": or_null("integer"), "end": or_null("integer"),
        })),
        "Refused": object(json!({"error": {"$ref": "#/components/schemas/Error"}})),
    })
}

/// The OpenAPI document.
pub(super) fn document() -> Value {
    let paths: Map<String, Value> = ROUTES.iter().map(|route| (route.path.to_owned(), operation(route))).collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Custody",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Questions about records of tool calls. Each is a record itself, on disk before its answer leaves.",
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas(),
        },
    })
}
