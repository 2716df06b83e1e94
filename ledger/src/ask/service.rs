//! The service `Query`: decode, ask, put on record, encode.

use std::{collections::BTreeSet, pin::Pin, time::Instant};

use custody::{
    query::{Expr, Tally},
    wire::{
        self,
        query_server::{Query, QueryServer},
    },
};
use futures::Stream;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request as Call, Response, Status};

use super::{Asking, Compiled, answer, cursor::Cursor, page, question};
use crate::{
    ask::ANSWER_LIMIT,
    store::{Rank, StoreError},
    tail::One,
    token::Right,
};

/// Longest request in bytes: a question, the names of a thousand workspaces and the cursor.
const REQUEST_BYTES_MAX: usize = 256 << 10;
/// Records of one message of a stream.
const OF_MESSAGE: usize = 200;
/// Messages that wait for whoever reads a stream: past them it waits, and holds nothing but its place.
const WAITING_MAX: usize = 4;
/// Bytes of one message of an export.
const EXPORT_BYTES: usize = 64 << 10;

type Answer<T> = Result<Response<T>, Status>;
type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Asking {
    /// As gRPC serves it.
    pub fn server(self) -> QueryServer<Self> {
        QueryServer::new(self).max_decoding_message_size(REQUEST_BYTES_MAX)
    }

    /// A page of ranks, and its records.
    async fn page(&self, asked: &Compiled, from: Cursor, limit: usize) -> Result<(Vec<One>, bool), Status> {
        let (expr, seen) = (asked.expr.clone(), asked.seen.clone());
        self.work(move |index, until| {
            let found = index.newest(&question(&expr, &seen, from.pinned, until), from.last, limit)?;
            let mut ones: Vec<One> = Vec::with_capacity(found.ranks.len());
            for rank in found.ranks {
                // Neighbours often stand in one batch.
                let near = ones.last().filter(|one| one.chunk.commit_index == rank.commit_index());
                let one = match near {
                    Some(near) => Some(One { chunk: std::sync::Arc::clone(&near.chunk), index: rank.index() }),
                    None => index.tail().one(rank)?,
                };
                ones.extend(one);
            }
            Ok((ones, found.cut_short))
        })
        .await
    }

    async fn count(&self, asked: &Compiled, pinned: u64) -> Result<(u64, bool), Status> {
        let (expr, seen) = (asked.expr.clone(), asked.seen.clone());
        self.work(move |index, until| index.count(&question(&expr, &seen, pinned, until))).await
    }
}

fn rank(one: &One) -> Rank {
    one.chunk.rank(one.index)
}

#[tonic::async_trait]
impl Query for Asking {
    async fn find(&self, call: Call<wire::FindRequest>) -> Answer<wire::FindResponse> {
        let (metadata, _, request) = call.into_parts();
        let asked = self.admit(&metadata, Right::Search, request.question.unwrap_or_default()).await?;
        let limit = page(request.limit)?;
        let from = self.start(&asked, &request.cursor)?;
        let (ones, mut cut_short) = self.page(&asked, from, limit).await?;
        let mut response = wire::FindResponse::default();
        if request.count {
            let (count, whole) = self.count(&asked, from.pinned).await?;
            response.total = Some(count);
            cut_short |= !whole;
        }
        let mut members = BTreeSet::new();
        for one in &ones {
            response.hits.extend(answer::hit(one, &asked.seen));
            answer::members(one, &mut members);
        }
        if let Some(last) = ones.last().filter(|_| ones.len() >= limit) {
            let cursor = Cursor { last: rank(last), ..from };
            response.cursor = self.0.cursors.seal(cursor, &Self::bound(&asked));
        }
        response.completeness = Some(self.completeness(&asked.seen, from.records, cut_short)?);
        response.names = self.names(&asked, members).await?;
        self.answered(&asked, (response.hits.len() as u64, response.encoded_len(), from.pinned)).await?;
        Ok(Response::new(response))
    }

    async fn summarise(&self, call: Call<wire::SummariseRequest>) -> Answer<wire::SummariseResponse> {
        let (metadata, _, mut request) = call.into_parts();
        let asked = self.admit(&metadata, Right::Search, request.question.take().unwrap_or_default()).await?;
        let wishes = answer::wishes(&request)?;
        let Cursor { pinned, records, .. } = self.start(&asked, "")?;
        let (expr, seen, wanted) = (asked.expr.clone(), asked.seen.clone(), wishes.clone());
        let (tally, whole, rolled) =
            self.work(move |index, until| index.tally(&question(&expr, &seen, pinned, until), &wanted)).await?;
        let cut_short = !whole || tally.cut_short;
        let members = members_of(&tally);
        let mut response = answer::sums(&request, &wishes, tally);
        response.from_rollups = rolled;
        response.completeness = Some(self.completeness(&asked.seen, records, cut_short)?);
        response.names = self.names(&asked, members).await?;
        self.answered(&asked, (response.count, response.encoded_len(), pinned)).await?;
        Ok(Response::new(response))
    }

    async fn show(&self, call: Call<wire::ShowRequest>) -> Answer<wire::ShowResponse> {
        let (metadata, _, request) = call.into_parts();
        let wanted = wire::Question {
            query: String::new(),
            workspaces: vec![request.workspace],
            names: request.names,
            reason: request.reason,
        };
        let mut asked = self.admit(&metadata, Right::Search, wanted).await?;
        let workspace = asked.seen.ids.first().copied().ok_or_else(|| Status::not_found("no such workspace"))?;
        let position = request.position;
        let found = self.work(move |index, _| Ok(index.tail().at_position(workspace, position)?)).await?;
        let mut response = wire::ShowResponse::default();
        let mut members = BTreeSet::new();
        if let Some(one) = &found {
            response.hit = answer::hit(one, &asked.seen);
            answer::members(one, &mut members);
        }
        response.names = self.names(&asked, members).await?;
        // In the record as it would be asked for in words.
        asked.expr = Expr::test(
            custody::query::Field::Workspace,
            custody::query::Want::Texts(vec![custody::query::Text::Exact(format!("{workspace}/{position}"))]),
        );
        let hits = u64::from(response.hit.is_some());
        self.answered(&asked, (hits, response.encoded_len(), self.0.index.tail().committed())).await?;
        match response.hit {
            Some(_) => Ok(Response::new(response)),
            None => Err(Status::not_found("no record stands there (hint: positions count from 0 without a gap)")),
        }
    }

    type FollowStream = Streamed<wire::FollowResponse>;

    async fn follow(&self, call: Call<wire::FollowRequest>) -> Answer<Self::FollowStream> {
        let (metadata, _, request) = call.into_parts();
        let asked = self.admit(&metadata, Right::Follow, request.question.unwrap_or_default()).await?;
        let mut news = self.0.index.tail().watch();
        let first = *news.borrow_and_update();
        self.answered(&asked, (0, 0, first)).await?;
        let (sent, stream) = mpsc::channel(WAITING_MAX);
        let asking = self.clone();
        tokio::spawn(async move {
            let followed = async {
                let mut next = first;
                loop {
                    let committed = *news.borrow_and_update();
                    while next < committed {
                        asking.tell(&asked, next, &sent).await?;
                        next += 1;
                    }
                    if news.changed().await.is_err() {
                        return Err(super::ending());
                    }
                }
            };
            let ended: Result<(), Status> = tokio::select! {
                ended = followed => ended,
                () = sent.closed() => Ok(()),
            };
            if let Err(why) = ended {
                sent.send(Err(why)).await.ok();
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    type ExportStream = Streamed<wire::ExportResponse>;

    async fn export(&self, call: Call<wire::ExportRequest>) -> Answer<Self::ExportStream> {
        let (metadata, _, request) = call.into_parts();
        let format = match request.format() {
            wire::ExportFormat::Unspecified => wire::ExportFormat::JsonLines,
            format => format,
        };
        let asked = self.admit(&metadata, Right::Export, request.question.unwrap_or_default()).await?;
        let from = self.start(&asked, "")?;
        // On record before the first byte; what was sent is on record at the end.
        self.answered(&asked, (0, 0, from.pinned)).await?;
        let (sent, stream) = mpsc::channel(WAITING_MAX);
        let asking = self.clone();
        tokio::spawn(async move {
            let told = asking.export_all(&asked, from, format, &sent).await;
            if let Err(why) = told {
                sent.send(Err(why)).await.ok();
            }
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
    /// What matches of one batch, to whoever follows.
    async fn tell(
        &self,
        asked: &Compiled,
        commit_index: u64,
        sent: &mpsc::Sender<Result<wire::FollowResponse, Status>>,
    ) -> Result<(), Status> {
        let chunk = self.0.index.tail().chunk(commit_index).map_err(|why: StoreError| super::broken(&why))?;
        let Some(chunk) = chunk.filter(|chunk| asked.seen.ids.contains(&chunk.workspace())) else { return Ok(()) };
        let matching = chunk.facts().iter().enumerate().filter(|(_, facts)| asked.expr.matches(facts));
        let ones: Vec<One> = matching.map(|(index, _)| One { chunk: std::sync::Arc::clone(&chunk), index }).collect();
        for some in ones.chunks(OF_MESSAGE) {
            let mut members = BTreeSet::new();
            some.iter().for_each(|one| answer::members(one, &mut members));
            let response = wire::FollowResponse {
                hits: some.iter().filter_map(|one| answer::hit(one, &asked.seen)).collect(),
                names: self.names(asked, members).await?,
            };
            sent.send(Ok(response)).await.map_err(|_| Status::cancelled("nobody reads"))?;
        }
        Ok(())
    }

    /// Everything that matches, page by page.
    async fn export_all(
        &self,
        asked: &Compiled,
        mut from: Cursor,
        format: wire::ExportFormat,
        sent: &mpsc::Sender<Result<wire::ExportResponse, Status>>,
    ) -> Result<(), Status> {
        let gone = || Status::cancelled("nobody reads");
        let (mut records, mut bytes, mut cut_short) = (0_u64, 0, false);
        let mut part = super::file::head(format);
        let limit = usize::try_from(super::PAGE_MAX).unwrap_or_default();
        loop {
            let began = Instant::now();
            let (ones, late) = self.page(asked, from, limit).await?;
            // A page that takes its whole time and finds nothing leads nowhere.
            cut_short |= late && began.elapsed() >= ANSWER_LIMIT && ones.is_empty();
            let mut members = BTreeSet::new();
            ones.iter().for_each(|one| answer::members(one, &mut members));
            let names = self.names(asked, members).await?;
            for one in &ones {
                super::file::line(format, one, &asked.seen, &names, &mut part);
                records += 1;
                if part.len() >= EXPORT_BYTES {
                    bytes += part.len();
                    let response =
                        wire::ExportResponse { bytes: std::mem::take(&mut part).into(), ..Default::default() };
                    sent.send(Ok(response)).await.map_err(|_| gone())?;
                }
            }
            match ones.last() {
                Some(last) if ones.len() >= limit || late => from.last = rank(last),
                _ => break,
            }
        }
        bytes += part.len();
        let completeness = self.completeness(&asked.seen, from.records, cut_short)?;
        self.answered(asked, (records, bytes, from.pinned)).await?;
        let last = wire::ExportResponse { bytes: part.into(), completeness: Some(completeness), records };
        sent.send(Ok(last)).await.map_err(|_| gone())
    }
}
