//! The same questions over HTTP and JSON, for whoever speaks no gRPC: a browser, a script, a SIEM.
//!
//! What must hold: nothing is decided here. A request becomes the message that gRPC carries and goes the same way, so that token, workspaces,
//! bounds and records are the same. What a client reads to its end is whole: a file or a stream that breaks off has no proper end.
//! Parameters are read strictly: one that nobody knows is an error, because a filter that is passed over shows too much.

use std::convert::Infallible;

use axum::{
    Router,
    body::Body,
    extract::{Path, RawQuery, State},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS},
    },
    response::{
        IntoResponse as _, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::get,
};
use custody::wire::{self, query_server::Query as _};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tonic::{Code, Request, Status};

use super::{
    Asking, json,
    openapi::{self, Route},
};

const JSON: &str = "application/json";

impl Asking {
    /// All paths.
    pub fn router(self) -> Router {
        Router::new()
            .route(openapi::SEARCH.path, get(search))
            .route(openapi::ALARMS.path, get(alarms))
            .route(openapi::SUMMARY.path, get(summary))
            .route(openapi::RECORD.path, get(record))
            .route(openapi::EVIDENCE.path, get(evidence))
            .route(openapi::TRACE.path, get(trace))
            .route(openapi::FOLLOW.path, get(follow))
            .route(openapi::EXPORT.path, get(export))
            .route(openapi::DOCUMENT, get(document))
            .route("/v1/{*rest}", get(nothing))
            .with_state(self)
    }
}

/// What was refused, as an answer.
struct Refused(Status);

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self(status)
    }
}

impl axum::response::IntoResponse for Refused {
    fn into_response(self) -> Response {
        let code = match self.0.code() {
            Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::FailedPrecondition => StatusCode::CONFLICT,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::Unavailable | Code::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut answer = answer(code, JSON, json!({"error": error(&self.0)}).to_string());
        if code == StatusCode::TOO_MANY_REQUESTS {
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        answer
    }
}

/// Why, with the next move, and where in the question.
fn error(status: &Status) -> Value {
    let (message, hint) = status
        .message()
        .rsplit_once(" (hint: ")
        .map_or_else(|| (status.message(), None), |(said, hint)| (said, Some(hint.strip_suffix(')').unwrap_or(hint))));
    let place = std::str::from_utf8(status.details()).ok().and_then(|text| text.split_once(' '));
    let number = |text: &str| text.parse::<u64>().ok();
    let (start, end) = place.map_or((None, None), |(start, end)| (number(start), number(end)));
    json!({"code": openapi::code_name(status.code()), "message": message, "hint": hint, "start": start, "end": end})
}

fn answer(code: StatusCode, kind: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn told(value: &Value) -> Response {
    answer(StatusCode::OK, JSON, value.to_string())
}

/// What stands behind the question mark, as the route has it.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn read(route: &Route, query: Option<String>) -> Result<Self, Status> {
        let pairs = form_urlencoded::parse(query.as_deref().unwrap_or_default().as_bytes());
        let pairs: Vec<(String, String)> = pairs.into_owned().collect();
        for (at, (name, _)) in pairs.iter().enumerate() {
            let Some(known) = route.parameters().find(|known| known.name == name) else {
                let names: Vec<&str> = route.parameters().map(|known| known.name).collect();
                let why = format!("there is no parameter {name:?} (hint: there are {})", names.join(", "));
                return Err(Status::invalid_argument(why));
            };
            if !known.many && pairs.iter().take(at).any(|(before, _)| before == name) {
                return Err(Status::invalid_argument(format!("{name} is given twice (hint: give it once)")));
            }
        }
        Ok(Self(pairs))
    }

    fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(known, _)| known == name).map(|(_, value)| value.clone()).collect()
    }

    fn text(&self, name: &str) -> String {
        self.all(name).pop().unwrap_or_default()
    }

    fn flag(&self, name: &str) -> Result<bool, Status> {
        match self.text(name).as_str() {
            "" | "false" => Ok(false),
            "true" => Ok(true),
            _ => Err(Status::invalid_argument(format!("{name} is true or false"))),
        }
    }

    fn number(&self, name: &str) -> Result<u32, Status> {
        let text = self.text(name);
        if text.is_empty() {
            return Ok(0);
        }
        text.parse().map_err(|_| Status::invalid_argument(format!("{name} is a whole number")))
    }

    fn question(&self) -> Result<wire::Question, Status> {
        Ok(wire::Question {
            query: self.text("query"),
            workspaces: self.all("workspace"),
            names: self.flag("names")?,
            reason: self.text("reason"),
        })
    }

    fn page(&self) -> Result<wire::FindRequest, Status> {
        Ok(wire::FindRequest {
            question: Some(self.question()?),
            limit: self.number("limit")?,
            cursor: self.text("cursor"),
            count: self.flag("count")?,
        })
    }

    fn sums(&self) -> Result<wire::SummariseRequest, Status> {
        let facet = |text: &String| {
            let (field, limit) = text.split_once(':').unwrap_or((text, "0"));
            let limit = limit.parse().map_err(|_| Status::invalid_argument("a facet is FIELD or FIELD:MOST"))?;
            Ok::<_, Status>(wire::Facet { field: field.to_owned(), limit })
        };
        let width = match self.text("width") {
            text if text.is_empty() => 0,
            text => custody::query::span(&text)
                .ok_or_else(|| Status::invalid_argument("width is no span of time (hint: as 1h or 5m)"))?,
        };
        let (histogram, percentiles) = (self.text("histogram"), self.text("percentiles"));
        let part = |text: String| text.parse().map_err(|_| Status::invalid_argument("thousandths are numbers, as 950"));
        Ok(wire::SummariseRequest {
            question: Some(self.question()?),
            facets: self.all("facet").iter().map(facet).collect::<Result<_, _>>()?,
            histogram: (!histogram.is_empty()).then(|| wire::Histogram {
                field: histogram,
                width_us: width,
                split: self.text("split"),
            }),
            percentiles: match percentiles.is_empty() {
                true => None,
                false => Some(wire::Percentiles {
                    field: percentiles,
                    thousandths: self.all("thousandths").into_iter().map(part).collect::<Result<_, _>>()?,
                    by: self.text("by"),
                    limit: 0,
                }),
            },
        })
    }
}

/// The message with the token that came with the request, and nothing else of it.
fn carry<T>(headers: &HeaderMap, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| value.parse().ok());
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", token);
    }
    request
}

type Asked = (State<Asking>, HeaderMap, RawQuery);

async fn search((State(asking), headers, RawQuery(query)): Asked) -> Result<Response, Refused> {
    let request = Parameters::read(&openapi::SEARCH, query)?.page()?;
    Ok(told(&json::page(&asking.find(carry(&headers, request)).await?.into_inner())))
}

async fn alarms((State(asking), headers, RawQuery(query)): Asked) -> Result<Response, Refused> {
    let request = Parameters::read(&openapi::ALARMS, query)?.page()?;
    Ok(told(&json::page(&asking.alarms(carry(&headers, request)).await?.into_inner())))
}

async fn summary((State(asking), headers, RawQuery(query)): Asked) -> Result<Response, Refused> {
    let request = Parameters::read(&openapi::SUMMARY, query)?.sums()?;
    Ok(told(&json::sums(&asking.summarise(carry(&headers, request)).await?.into_inner())))
}

fn show(
    route: &Route,
    (workspace, position): (String, String),
    query: Option<String>,
) -> Result<wire::ShowRequest, Status> {
    let parameters = Parameters::read(route, query)?;
    let position = position.parse().map_err(|_| Status::invalid_argument("a position is a whole number"))?;
    let wire::Question { names, reason, .. } = parameters.question()?;
    Ok(wire::ShowRequest { workspace, position, names, reason, evidence: false })
}

async fn record(
    State(asking): State<Asking>,
    place: Path<(String, String)>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Refused> {
    let request = show(&openapi::RECORD, place.0, query)?;
    let shown = asking.show(carry(&headers, request)).await?.into_inner();
    Ok(told(&shown.hit.as_ref().map_or(Value::Null, |hit| json::hit(hit, &shown.names))))
}

async fn evidence(
    State(asking): State<Asking>,
    place: Path<(String, String)>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Refused> {
    let request = wire::ShowRequest { evidence: true, ..show(&openapi::EVIDENCE, place.0, query)? };
    let shown = asking.show(carry(&headers, request)).await?.into_inner();
    Ok(answer(StatusCode::OK, "text/plain; charset=utf-8", shown.evidence))
}

async fn trace(
    State(asking): State<Asking>,
    Path(trace): Path<String>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Refused> {
    let question = Parameters::read(&openapi::TRACE, query)?.question()?;
    let request = wire::TraceRequest { trace, question: Some(question) };
    Ok(told(&json::trace(&asking.trace(carry(&headers, request)).await?.into_inner())))
}

async fn follow((State(asking), headers, RawQuery(query)): Asked) -> Result<Response, Refused> {
    let question = Parameters::read(&openapi::FOLLOW, query)?.question()?;
    let request = wire::FollowRequest { question: Some(question) };
    let stream = asking.follow(carry(&headers, request)).await?.into_inner();
    let records = stream.flat_map(|told| {
        let parts: Vec<Result<Event, Infallible>> = match told {
            Ok(told) => told
                .hits
                .iter()
                .map(|hit| {
                    let id = format!("{}/{}", custody::id::hex(&hit.workspace), hit.position);
                    Ok(Event::default().event("record").id(id).data(json::hit(hit, &told.names).to_string()))
                })
                .collect(),
            Err(why) => vec![Ok(Event::default().event("end").data(error(&why).to_string()))],
        };
        futures::stream::iter(parts)
    });
    let mut response = Sse::new(records).keep_alive(KeepAlive::default()).into_response();
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

async fn export((State(asking), headers, RawQuery(query)): Asked) -> Result<Response, Refused> {
    let parameters = Parameters::read(&openapi::EXPORT, query)?;
    let (format, kind) = match parameters.text("format").as_str() {
        "" | "jsonl" => (wire::ExportFormat::JsonLines, "application/jsonl"),
        "csv" => (wire::ExportFormat::Csv, "text/csv; charset=utf-8"),
        "evidence" => (wire::ExportFormat::Evidence, "application/x-tar"),
        _ => return Err(Status::invalid_argument("format is jsonl, csv or evidence").into()),
    };
    let request = wire::ExportRequest { question: Some(parameters.question()?), format: format as i32 };
    let stream = asking.export(carry(&headers, request)).await?.into_inner();
    let parts = stream.map(|part| match part {
        Ok(part) if part.completeness.as_ref().is_some_and(|complete| complete.cut_short) => {
            Err(std::io::Error::other("the answer was cut short: there may be more"))
        }
        Ok(part) => Ok(part.bytes),
        // The body has no proper end, which every client notices.
        Err(why) => Err(std::io::Error::other(why.message().to_owned())),
    });
    Ok(answer(StatusCode::OK, kind, Body::from_stream(parts)))
}

async fn document() -> Response {
    told(&openapi::document())
}

async fn nothing() -> Response {
    let why = format!("there is no such path (hint: {} has those that there are)", openapi::DOCUMENT);
    Refused(Status::not_found(why)).into_response()
}
