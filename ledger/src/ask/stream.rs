//! Streams: what comes in from now on, and files of any length.
//!
//! What must hold: a stream holds a page at a time, whoever reads it slowly makes nobody wait, and it ends with its token; what was sent is
//! on record when it ends, in whichever way.

use std::{collections::BTreeSet, time::Duration};

use custody::wire::{self, Decision};
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::Status;

use super::{
    Asking, Compiled, answer, file,
    prove::{Bundle, too_long},
    service::rank,
};
use crate::{store::StoreError, tail::One};

/// Records of one message of a follow.
const OF_MESSAGE: usize = 200;
/// Bytes of one message of an export.
const EXPORT_BYTES: usize = 64 << 10;

/// How long a message may wait for whoever reads.
const READ_LIMIT: Duration = Duration::from_secs(60);

/// What a stream has told.
#[derive(Default)]
pub(super) struct Sent {
    records: u64,
    bytes: usize,
}

pub(super) fn gone() -> Status {
    Status::cancelled("nobody reads")
}

/// Hands a message on to whoever reads, who may be slow, but not for ever: a stream's place is wanted.
async fn send<T>(to: &mpsc::Sender<Result<T, Status>>, message: T) -> Result<(), Status> {
    let sent = tokio::time::timeout(READ_LIMIT, to.send(Ok(message))).await;
    let slow = || Status::deadline_exceeded("nothing was read for a minute (hint: ask again, and read as it comes)");
    sent.map_err(|_| slow())?.map_err(|_| gone())
}

/// A file that is made page by page.
enum Output {
    Lines(wire::ExportFormat, Vec<u8>),
    Bundle(Bundle),
}

impl Output {
    fn new(format: wire::ExportFormat, at_us: u64) -> Self {
        match format {
            wire::ExportFormat::Evidence => Self::Bundle(Bundle::new(at_us)),
            format => Self::Lines(format, file::head(format)),
        }
    }
}

/// Where an export goes.
struct Way<'a> {
    to: &'a mpsc::Sender<Result<wire::ExportResponse, Status>>,
    sent: &'a mut Sent,
}

impl Asking {
    /// The second record of a stream; whether it could be made.
    pub(super) async fn ended(&self, asked: &Compiled, sent: &Sent) -> bool {
        let told = self.answered(asked, Decision::Allowed, (sent.records, sent.bytes)).await;
        if let Err(why) = &told {
            tracing::warn!(
                token = asked.holder.id,
                records = sent.records,
                why = why.message(),
                "the end of a stream is not on record"
            );
        }
        told.is_ok()
    }

    /// What matches from now on, batch by batch, until it is ended: why.
    pub(super) async fn follow_all(
        &self,
        asked: &mut Compiled,
        to: &mpsc::Sender<Result<wire::FollowResponse, Status>>,
        sent: &mut Sent,
    ) -> Status {
        let mut news = self.0.index.tail().watch();
        let mut next = asked.from.pinned;
        loop {
            let committed = *news.borrow_and_update();
            while next < committed {
                if let Err(why) = self.tell(asked, next, to, sent).await {
                    return why;
                }
                next += 1;
            }
            if news.changed().await.is_err() {
                return super::ending();
            }
        }
    }

    /// What matches of one batch, to whoever follows.
    async fn tell(
        &self,
        asked: &mut Compiled,
        commit_index: u64,
        to: &mpsc::Sender<Result<wire::FollowResponse, Status>>,
        sent: &mut Sent,
    ) -> Result<(), Status> {
        self.still(&asked.holder)?;
        let batch = self.0.index.tail().batch(commit_index).map_err(|why: StoreError| super::broken(&why))?;
        let Some(batch) = batch.filter(|batch| self.shows(asked, batch.workspace())) else { return Ok(()) };
        let matching = batch.facts().iter().enumerate().filter(|(_, facts)| asked.expr.matches(facts));
        let ones: Vec<One> = matching.map(|(index, _)| One { batch: std::sync::Arc::clone(&batch), index }).collect();
        for some in ones.chunks(OF_MESSAGE) {
            let mut members = BTreeSet::new();
            some.iter().for_each(|one| answer::members(one, &mut members));
            let response = wire::FollowResponse {
                hits: some.iter().filter_map(|one| answer::hit(one, &asked.seen)).collect(),
                names: self.names(asked, members).await?,
            };
            let (records, bytes) = (response.hits.len() as u64, response.encoded_len());
            self.still(&asked.holder)?;
            send(to, response).await?;
            sent.records += records;
            sent.bytes += bytes;
        }
        Ok(())
    }

    /// Everything that matches, page by page; gives the last part, which the caller sends.
    pub(super) async fn export_all(
        &self,
        asked: &Compiled,
        format: wire::ExportFormat,
        to: &mpsc::Sender<Result<wire::ExportResponse, Status>>,
        sent: &mut Sent,
    ) -> Result<wire::ExportResponse, Status> {
        let mut from = asked.from;
        let mut output = Output::new(format, asked.from.now_us);
        let mut way = Way { to, sent };
        let limit = usize::try_from(super::PAGE_MAX).unwrap_or_default();
        let mut cut_short = false;
        loop {
            self.still(&asked.holder)?;
            let (ones, late) = self.page(asked, from, limit).await?;
            let mut members = BTreeSet::new();
            ones.iter().for_each(|one| answer::members(one, &mut members));
            let names = self.names(asked, members).await?;
            self.export_page(asked, &ones, &names, &mut output, &mut way).await?;
            // What a page that took its whole time has passed over nobody knows.
            cut_short |= late;
            match ones.last() {
                Some(last) if ones.len() >= limit || late => from.last = rank(last),
                _ => break,
            }
        }
        self.still(&asked.holder)?;
        let completeness = self.completeness(asked, cut_short).await?;
        let records = way.sent.records;
        let part = match output {
            Output::Lines(_, part) => part,
            Output::Bundle(bundle) => bundle.end(&asked.expr.to_string(), records, &completeness)?,
        };
        way.sent.bytes += part.len();
        Ok(wire::ExportResponse { bytes: part.into(), completeness: Some(completeness), records })
    }

    async fn export_page(
        &self,
        asked: &Compiled,
        ones: &[One],
        names: &[wire::MemberName],
        output: &mut Output,
        way: &mut Way<'_>,
    ) -> Result<(), Status> {
        match output {
            Output::Lines(format, part) => {
                for one in ones {
                    file::line(*format, one, &asked.seen, names, part);
                    way.sent.records += 1;
                    if part.len() >= EXPORT_BYTES {
                        self.send_on(asked, std::mem::take(part), way).await?;
                    }
                }
            }
            Output::Bundle(bundle) => {
                let mut runs = bundle.page(ones, &asked.seen, names)?;
                runs.reverse();
                while let Some(run) = runs.pop() {
                    let Some(evidence) = self.prove(&run).await? else {
                        let [first, second] = run.halves().ok_or_else(too_long)?;
                        runs.extend([second, first]);
                        continue;
                    };
                    bundle.proof(&run, &evidence)?;
                    way.sent.records += run.positions.end - run.positions.start;
                    if let Some(part) = bundle.take(EXPORT_BYTES) {
                        self.send_on(asked, part, way).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Sends what is done, if whoever reads may still do so.
    async fn send_on(&self, asked: &Compiled, part: Vec<u8>, way: &mut Way<'_>) -> Result<(), Status> {
        self.still(&asked.holder)?;
        way.sent.bytes += part.len();
        send(way.to, wire::ExportResponse { bytes: part.into(), ..Default::default() }).await
    }
}
