//! The same questions over HTTP and JSON, for whoever speaks no gRPC: a browser, a script, a SIEM.
//!
//! What must hold: nothing is decided here. A request becomes the message that gRPC carries and goes the same way, so that token, workspaces,
//! bounds and records are the same. What a client reads to its end is whole: a file or a stream that breaks off has no proper end.
//! Parameters are read strictly: one that nobody knows is an error, because a filter that is passed over shows too much.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    Router,
    body::{Body, HttpBody},
    extract::{Path, RawQuery, State},
    http::{
        Extensions, HeaderMap, HeaderValue, StatusCode, Version,
        header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS},
    },
    response::{
        IntoResponse as _, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{any, get},
};
use bytes::Bytes;
use custody::{
    archive,
    wire::{self, query_server::Query as _},
};
use futures::StreamExt as _;
use hyper::body::{Frame, SizeHint};
use serde_json::{Value, json};
use tonic::{Code, Request, Status, service::Routes};

use super::{
    Asking, Held, PAGE_MAX, json,
    openapi::{self, Route},
};
use crate::token::Right;

const JSON: &str = "application/json";

impl Asking {
    /// All paths, and gRPC beside them.
    pub fn router(self) -> Router {
        let grpc = Routes::new(self.clone().server()).into_axum_router();
        let paths = Router::new()
            .route(openapi::SEARCH.path, get(search))
            .route(openapi::ALARMS.path, get(alarms))
            .route(openapi::SUMMARY.path, get(summary))
            .route(openapi::RECORD.path, get(record))
            .route(openapi::EVIDENCE.path, get(evidence))
            .route(openapi::TRACE.path, get(trace))
            .route(openapi::FOLLOW.path, get(follow))
            .route(openapi::EXPORT.path, get(export))
            .route(openapi::DOCUMENT, get(document))
            .route("/v1/{*rest}", any(nothing))
            .method_not_allowed_fallback(other_method)
            .with_state(self);
        grpc.merge(paths).layer(axum::middleware::map_response(keep_places))
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
        if code == StatusCode::UNAUTHORIZED {
            answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        answer
    }
}

/// Why, with the next move, and where in the question.
fn error(status: &Status) -> Value {
    // Of a question it is drawn, for a terminal: here the place is told in numbers.
    let said = status
        .message()
        .split_once("\nthe question ")
        .map_or_else(|| status.message().to_owned(), |(_, why)| format!("the question {why}"));
    let parts = said.split_once("\nhint: ").or_else(|| said.strip_suffix(')')?.rsplit_once(" (hint: "));
    let (message, hint) = parts.map_or_else(|| (said.as_str(), None), |(message, hint)| (message, Some(hint)));
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

    fn limit(&self) -> Result<u32, Status> {
        let text = self.text("limit");
        let limit = if text.is_empty() {
            Some(0)
        } else {
            archive::number(&text).filter(|limit| (1..=u64::from(PAGE_MAX)).contains(limit))
        };
        let limit = limit.and_then(|limit| u32::try_from(limit).ok());
        limit.ok_or_else(|| {
            Status::invalid_argument("limit is a number from 1 to 1000 (hint: the cursor leads to the next page)")
        })
    }

    /// One that means nothing without another would be passed over.
    fn belongs(&self, names: &[&str], to: &str) -> Result<(), Status> {
        let alone = names.iter().find(|name| !self.all(name).is_empty()).filter(|_| self.all(to).is_empty());
        alone.map_or(Ok(()), |name| Err(Status::invalid_argument(format!("{name} means nothing without {to}"))))
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
            limit: self.limit()?,
            cursor: self.text("cursor"),
            count: self.flag("count")?,
        })
    }

    fn sums(&self) -> Result<wire::SummariseRequest, Status> {
        self.belongs(&["width", "split"], "histogram")?;
        self.belongs(&["thousandths", "by"], "percentiles")?;
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

impl Asking {
    /// What a request asks for; what cannot be read is refused as any other question, on record.
    async fn read<T>(
        &self,
        headers: &HeaderMap,
        right: Right,
        read: impl FnOnce() -> Result<T, Status>,
    ) -> Result<T, Refused> {
        match read() {
            Ok(wanted) => Ok(wanted),
            Err(why) => Err(Refused(self.refuse(carry(headers, ()).metadata(), right, why).await)),
        }
    }
}

/// The answer in JSON, whose body keeps the places that it took.
fn told<T>(response: tonic::Response<T>, say: impl FnOnce(&T) -> Value) -> Response {
    let (_, message, extensions) = response.into_parts();
    kept(extensions, JSON, say(&message).to_string())
}

fn kept(extensions: Extensions, kind: &'static str, body: impl Into<Body>) -> Response {
    let mut response = answer(StatusCode::OK, kind, body);
    *response.extensions_mut() = extensions;
    response
}

/// A body that keeps the places of its answer until it was read, or is given up.
struct Keeping {
    body: Body,
    _places: Option<Held>,
}

impl HttpBody for Keeping {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Of every answer on the port, also over gRPC.
async fn keep_places(mut response: Response) -> Response {
    let places = response.extensions_mut().remove::<Held>();
    response.map(|body| Body::new(Keeping { body, _places: places }))
}

async fn search((State(asking), headers, RawQuery(query)): Asked) -> Result<Response, Refused> {
    let read = || Parameters::read(&openapi::SEARCH, query)?.page();
    let request = asking.read(&headers, Right::Search, read).await?;
    Ok(told(asking.find(carry(&headers, request)).await?, json::page))
}

async fn alarms((State(asking), headers, RawQuery(query)): Asked) -> Result<Response, Refused> {
    let read = || Parameters::read(&openapi::ALARMS, query)?.page();
    let request = asking.read(&headers, Right::Search, read).await?;
    Ok(told(asking.alarms(carry(&headers, request)).await?, json::page))
}

async fn summary((State(asking), headers, RawQuery(query)): Asked) -> Result<Response, Refused> {
    let read = || Parameters::read(&openapi::SUMMARY, query)?.sums();
    let request = asking.read(&headers, Right::Search, read).await?;
    Ok(told(asking.summarise(carry(&headers, request)).await?, json::sums))
}

fn show(
    route: &Route,
    (workspace, position): (String, String),
    query: Option<String>,
) -> Result<wire::ShowRequest, Status> {
    let parameters = Parameters::read(route, query)?;
    let position =
        archive::number(&position).ok_or_else(|| Status::invalid_argument("a position is a whole number"))?;
    let wire::Question { names, reason, .. } = parameters.question()?;
    Ok(wire::ShowRequest { workspace, position, names, reason, evidence: false })
}

async fn record(
    State(asking): State<Asking>,
    Path(place): Path<(String, String)>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Refused> {
    let request = asking.read(&headers, Right::Search, || show(&openapi::RECORD, place, query)).await?;
    let shown = asking.show(carry(&headers, request)).await?;
    Ok(told(shown, |shown| shown.hit.as_ref().map_or(Value::Null, |hit| json::hit(hit, &shown.names))))
}

async fn evidence(
    State(asking): State<Asking>,
    Path(place): Path<(String, String)>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Refused> {
    let request = asking.read(&headers, Right::Search, || show(&openapi::EVIDENCE, place, query)).await?;
    let request = wire::ShowRequest { evidence: true, ..request };
    let (_, shown, extensions) = asking.show(carry(&headers, request)).await?.into_parts();
    Ok(kept(extensions, "text/plain; charset=utf-8", shown.evidence))
}

async fn trace(
    State(asking): State<Asking>,
    Path(trace): Path<String>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Refused> {
    let read = || Parameters::read(&openapi::TRACE, query)?.question();
    let question = asking.read(&headers, Right::Search, read).await?;
    let request = wire::TraceRequest { trace, question: Some(question) };
    Ok(told(asking.trace(carry(&headers, request)).await?, json::trace))
}

/// A stream of which nobody knows how long it is has its end marked from HTTP/1.1 on.
fn marks_ends(version: Version) -> Result<(), Status> {
    let why = "over HTTP/1.0 a stream that breaks off looks whole (hint: ask with HTTP/1.1 or later)";
    (version >= Version::HTTP_11).then_some(()).ok_or_else(|| Status::invalid_argument(why))
}

async fn follow(version: Version, (State(asking), headers, RawQuery(query)): Asked) -> Result<Response, Refused> {
    let read = || {
        marks_ends(version)?;
        Parameters::read(&openapi::FOLLOW, query)?.question()
    };
    let question = asking.read(&headers, Right::Follow, read).await?;
    let request = wire::FollowRequest { question: Some(question) };
    let stream = asking.follow(carry(&headers, request)).await?.into_inner();
    let records = stream.flat_map(|told| {
        let parts: Vec<Result<Event, Infallible>> = match told {
            Ok(told) => told
                .hits
                .iter()
                // Without ids: nobody may think that a stream goes on where another ended.
                .map(|hit| Ok(Event::default().event("record").data(json::hit(hit, &told.names).to_string())))
                .collect(),
            Err(why) => vec![Ok(Event::default().event("end").data(error(&why).to_string()))],
        };
        futures::stream::iter(parts)
    });
    let mut response = Sse::new(records).keep_alive(KeepAlive::default()).into_response();
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn format(parameters: &Parameters) -> Result<(wire::ExportFormat, &'static str), Status> {
    match parameters.text("format").as_str() {
        "" | "jsonl" => Ok((wire::ExportFormat::JsonLines, "application/jsonl")),
        "csv" => Ok((wire::ExportFormat::Csv, "text/csv; charset=utf-8")),
        "evidence" => Ok((wire::ExportFormat::Evidence, "application/x-tar")),
        _ => Err(Status::invalid_argument("format is jsonl, csv or evidence")),
    }
}

async fn export(version: Version, (State(asking), headers, RawQuery(query)): Asked) -> Result<Response, Refused> {
    let read = || {
        marks_ends(version)?;
        let parameters = Parameters::read(&openapi::EXPORT, query)?;
        Ok((format(&parameters)?, parameters.question()?))
    };
    let ((format, kind), question) = asking.read(&headers, Right::Export, read).await?;
    let request = wire::ExportRequest { question: Some(question), format: format as i32 };
    let stream = asking.export(carry(&headers, request)).await?.into_inner();
    // The body of one that is not whole has no proper end, which every client notices.
    let parts = futures::stream::try_unfold((stream, false), |(mut stream, whole)| async move {
        match stream.next().await {
            None if whole => Ok(None),
            None => Err(std::io::Error::other("the export broke off")),
            Some(Err(why)) => Err(std::io::Error::other(why.message().to_owned())),
            Some(Ok(part)) => match part.completeness {
                Some(complete) if complete.cut_short => Err(std::io::Error::other("cut short: there may be more")),
                complete => Ok(Some((part.bytes, (stream, whole || complete.is_some())))),
            },
        }
    });
    Ok(answer(StatusCode::OK, kind, Body::from_stream(parts)))
}

async fn document() -> Response {
    answer(StatusCode::OK, JSON, openapi::document().to_string())
}

async fn other_method() -> Response {
    let why =
        Refused(Status::invalid_argument("questions are asked with GET (hint: what is asked stands behind the ?)"));
    let mut response = why.into_response();
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}

async fn nothing() -> Response {
    let why = format!("there is no such path (hint: {} has those that there are)", openapi::DOCUMENT);
    Refused(Status::not_found(why)).into_response()
}
