//! The service `Query`: decode, ask, put on record, encode.

use std::{collections::BTreeSet, pin::Pin};

use custody::{
    query::{Expr, Field, Tally, Text, Want},
    wire::{
        self, Decision,
        query_server::{Query, QueryServer},
    },
};
use futures::Stream;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request as Call, Response, Status};

use super::{
    Asking, Compiled, answer,
    cursor::Cursor,
    page, prove, question,
    stream::{Sent, gone},
    trace,
};
use crate::{store::Rank, tail::One, token::Right};

/// Longest request in bytes: a question, the names of a thousand workspaces and the cursor.
const REQUEST_BYTES_MAX: usize = 256 << 10;
/// Messages that wait for whoever reads a stream: past them it waits, and holds nothing but its place.
const WAITING_MAX: usize = 4;
/// Records of one trace that are shown, the newest.
const STEPS_MAX: usize = 1_000;

type Answer<T> = Result<Response<T>, Status>;
type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Asking {
    /// As gRPC serves it.
    pub(super) fn server(self) -> QueryServer<Self> {
        QueryServer::new(self).max_decoding_message_size(REQUEST_BYTES_MAX)
    }

    /// A page of ranks, and its records.
    pub(super) async fn page(&self, asked: &Compiled, from: Cursor, limit: usize) -> Result<(Vec<One>, bool), Status> {
        let (expr, seen) = (asked.expr.clone(), asked.seen.clone());
        self.work(move |index, until| {
            let found = index.newest(&question(&expr, &seen, from.pinned, until), from.last, limit)?;
            let mut ones: Vec<One> = Vec::with_capacity(found.ranks.len());
            for rank in found.ranks {
                // Neighbours often stand in one batch.
                let near = ones.last().filter(|one| one.batch.commit_index == rank.commit_index());
                let one = match near {
                    Some(near) => Some(One { batch: std::sync::Arc::clone(&near.batch), index: rank.index() }),
                    None => index.tail().one(rank)?,
                };
                ones.extend(one);
            }
            Ok((ones, found.cut_short))
        })
        .await
    }

    async fn count(&self, asked: &Compiled) -> Result<(u64, bool), Status> {
        let (expr, seen, pinned) = (asked.expr.clone(), asked.seen.clone(), asked.from.pinned);
        self.sum(move |index, until| index.count(&question(&expr, &seen, pinned, until))).await
    }
}

pub(super) fn rank(one: &One) -> Rank {
    one.batch.rank(one.index)
}

#[tonic::async_trait]
impl Query for Asking {
    async fn find(&self, call: Call<wire::FindRequest>) -> Answer<wire::FindResponse> {
        let (metadata, _, mut request) = call.into_parts();
        let question = request.question.take().unwrap_or_default();
        let asked = self.admit(&metadata, Right::Search, (question, &request.cursor)).await?;
        let answer = self.found(&asked, &request).await;
        self.answer(&asked, answer).await
    }

    async fn alarms(&self, call: Call<wire::FindRequest>) -> Answer<wire::FindResponse> {
        let (metadata, _, mut request) = call.into_parts();
        let question = request.question.take().unwrap_or_default();
        let mut asked = self.admit(&metadata, Right::Search, (question, &request.cursor)).await?;
        let answer = self.alarms_found(&mut asked, &request).await;
        self.answer(&asked, answer).await
    }

    async fn summarise(&self, call: Call<wire::SummariseRequest>) -> Answer<wire::SummariseResponse> {
        let (metadata, _, mut request) = call.into_parts();
        let question = request.question.take().unwrap_or_default();
        let asked = self.admit(&metadata, Right::Search, (question, "")).await?;
        let answer = self.summed(&asked, &request).await;
        self.answer(&asked, answer).await
    }

    async fn show(&self, call: Call<wire::ShowRequest>) -> Answer<wire::ShowResponse> {
        let (metadata, _, request) = call.into_parts();
        let wanted = wire::Question {
            query: String::new(),
            workspaces: vec![request.workspace],
            names: request.names,
            reason: request.reason,
        };
        let mut asked = self.admit(&metadata, Right::Search, (wanted, "")).await?;
        let asking = self.clone();
        // To its end, whoever goes away: it may have a segment cut, and is then on record.
        let answer = tokio::spawn(async move {
            let answer = asking.shown(&mut asked, request.position, request.evidence).await;
            asking.answer(&asked, answer).await
        });
        let answer = answer.await.map_err(|_| super::broke_off())??;
        match answer.get_ref().hit {
            Some(_) => Ok(answer),
            None => Err(Status::not_found("no record stands there (hint: positions count from 0 without a gap)")),
        }
    }

    async fn trace(&self, call: Call<wire::TraceRequest>) -> Answer<wire::TraceResponse> {
        let (metadata, _, request) = call.into_parts();
        let id = request.trace.to_ascii_lowercase();
        let is_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        let wanted = wire::Question { query: format!("trace:\"{id}\""), ..request.question.unwrap_or_default() };
        let asked = self.admit(&metadata, Right::Search, (wanted, "")).await?;
        let answer = match is_id {
            true => self.traced(&asked).await,
            false => {
                Err(Status::invalid_argument("a trace is named by 32 hex digits (hint: as W3C traceparent has them)"))
            }
        };
        self.answer(&asked, answer).await
    }

    type FollowStream = Streamed<wire::FollowResponse>;

    async fn follow(&self, call: Call<wire::FollowRequest>) -> Answer<Self::FollowStream> {
        let (metadata, _, request) = call.into_parts();
        let mut asked = self.admit(&metadata, Right::Follow, (request.question.unwrap_or_default(), "")).await?;
        // On record before the first of them; what was sent is on record at the end.
        self.answered(&asked, Decision::Allowed, (0, 0)).await?;
        let (to, stream) = mpsc::channel(WAITING_MAX);
        let asking = self.clone();
        tokio::spawn(async move {
            let mut sent = Sent::default();
            let why = tokio::select! {
                why = asking.follow_all(&mut asked, &to, &mut sent) => why,
                () = to.closed() => gone(),
            };
            asking.ended(&asked, &sent).await;
            to.send(Err(why)).await.ok();
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    type ExportStream = Streamed<wire::ExportResponse>;

    async fn export(&self, call: Call<wire::ExportRequest>) -> Answer<Self::ExportStream> {
        let (metadata, _, mut request) = call.into_parts();
        let question = request.question.take().unwrap_or_default();
        let asked = self.admit(&metadata, Right::Export, (question, "")).await?;
        // As of a follow.
        self.answered(&asked, Decision::Allowed, (0, 0)).await?;
        let (to, stream) = mpsc::channel(WAITING_MAX);
        let asking = self.clone();
        tokio::spawn(async move {
            let mut sent = Sent::default();
            let last = tokio::select! {
                last = asking.export_all(&asked, request.format(), &to, &mut sent) => last,
                () = to.closed() => Err(gone()),
            };
            // The last part leaves when the end is on record: whoever has the whole is on record with the whole.
            let last = if asking.ended(&asked, &sent).await { last } else { Err(super::ending()) };
            to.send(last).await.ok();
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

fn members_of(tally: &Tally) -> BTreeSet<custody::id::MemberId> {
    let values = tally.facets.iter().flat_map(|values| values.keys());
    values
        .chain(tally.levels.keys())
        .filter_map(|value| custody::id::MemberId::from_hex(value))
        .take(PAGE_NAMES)
        .collect()
}

/// Names that one answer of sums opens at most: as many as a facet shows.
const PAGE_NAMES: usize = 1_000;

impl Asking {
    async fn found(
        &self,
        asked: &Compiled,
        request: &wire::FindRequest,
    ) -> Result<(wire::FindResponse, u64, usize), Status> {
        let limit = page(request.limit)?;
        let (ones, mut cut_short) = self.page(asked, asked.from, limit).await?;
        let mut total = None;
        if request.count {
            let (count, whole) = self.count(asked).await?;
            total = Some(count);
            cut_short |= !whole;
        }
        let (mut response, hits) = self.paged(asked, &ones, limit, cut_short).await?;
        response.total = total;
        let bytes = response.encoded_len();
        Ok((response, hits, bytes))
    }

    /// A page as it is told.
    pub(super) async fn paged(
        &self,
        asked: &Compiled,
        ones: &[One],
        limit: usize,
        cut_short: bool,
    ) -> Result<(wire::FindResponse, u64), Status> {
        let mut response = wire::FindResponse::default();
        let mut members = BTreeSet::new();
        for one in ones {
            response.hits.extend(answer::hit(one, &asked.seen));
            answer::members(one, &mut members);
        }
        if let Some(last) = ones.last().filter(|_| ones.len() >= limit) {
            response.cursor = self.0.cursors.seal(Cursor { last: rank(last), ..asked.from }, &asked.bound);
        }
        response.completeness = Some(self.completeness(asked, cut_short).await?);
        response.names = self.names(asked, members).await?;
        let hits = response.hits.len() as u64;
        Ok((response, hits))
    }

    async fn summed(
        &self,
        asked: &Compiled,
        request: &wire::SummariseRequest,
    ) -> Result<(wire::SummariseResponse, u64, usize), Status> {
        let wishes = answer::wishes(request)?;
        let (expr, seen, wanted, pinned) = (asked.expr.clone(), asked.seen.clone(), wishes.clone(), asked.from.pinned);
        let (tally, whole, rolled) =
            self.sum(move |index, until| index.tally(&question(&expr, &seen, pinned, until), &wanted)).await?;
        let cut_short = !whole || tally.cut_short;
        let members = members_of(&tally);
        let mut response = answer::sums(request, &wishes, tally);
        response.from_rollups = rolled;
        response.completeness = Some(self.completeness(asked, cut_short).await?);
        response.names = self.names(asked, members).await?;
        let (count, bytes) = (response.count, response.encoded_len());
        Ok((response, count, bytes))
    }

    /// The calls of a trace.
    async fn traced(&self, asked: &Compiled) -> Result<(wire::TraceResponse, u64, usize), Status> {
        let (ones, late) = self.page(asked, asked.from, STEPS_MAX).await?;
        let mut members = BTreeSet::new();
        ones.iter().for_each(|one| answer::members(one, &mut members));
        let response = wire::TraceResponse {
            steps: trace::tree(&ones, &asked.seen),
            completeness: Some(self.completeness(asked, late || ones.len() >= STEPS_MAX).await?),
            names: self.names(asked, members).await?,
        };
        let (hits, bytes) = (response.steps.len() as u64, response.encoded_len());
        Ok((response, hits, bytes))
    }

    async fn shown(
        &self,
        asked: &mut Compiled,
        position: u64,
        evidence: bool,
    ) -> Result<(wire::ShowResponse, u64, usize), Status> {
        let workspace = asked.seen.ids.first().copied().ok_or_else(|| Status::not_found("no such workspace"))?;
        // In the record as it would be asked for in words.
        asked.expr = Expr::test(Field::Workspace, Want::Texts(vec![Text::Exact(format!("{workspace}/{position}"))]));
        let found = self.work(move |index, _| Ok(index.tail().at_position(workspace, position)?)).await?;
        let mut response = wire::ShowResponse::default();
        let mut members = BTreeSet::new();
        if let Some(one) = &found {
            response.hit = answer::hit(one, &asked.seen);
            answer::members(one, &mut members);
        }
        response.names = self.names(asked, members).await?;
        if evidence && found.is_some() {
            let run = prove::Run { workspace, positions: position..position.saturating_add(1) };
            response.evidence = self.prove(&run).await?.ok_or_else(prove::too_long)?.into();
        }
        let (hits, bytes) = (u64::from(response.hit.is_some()), response.encoded_len());
        Ok((response, hits, bytes))
    }
}
