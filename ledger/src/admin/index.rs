//! The index, for administrators: folders built again, or held against the store. On record before its answer; what a rebuild throws
//! away is still there then.

use std::pin::Pin;

use custody::wire::{self, LedgerEventKind, record::Kind};
use futures::{Stream, StreamExt as _, stream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request as Call, Response, Status};

use super::{AdminService, Answer, members::because, watch::ending};
use crate::{clock, commit::number, index::check::Checked};

/// What becomes of folders, as it becomes.
pub(super) type Reindexed = Pin<Box<dyn Stream<Item = Result<wire::ReindexResponse, Status>> + Send>>;

fn told(folder: crate::index::Folder, built_again: bool) -> wire::IndexFolder {
    wire::IndexFolder { day: folder.day, records: folder.records, built_again }
}

impl AdminService {
    pub(super) async fn reindexed(&self, call: Call<wire::ReindexRequest>) -> Answer<Reindexed> {
        let because = because(&call, call.get_ref().because.as_ref())?;
        let request = call.into_inner();
        let (index, checks) = &self.index;
        if request.check {
            let busy = || Status::resource_exhausted("others wait for a check already (hint: try again later)");
            let findings = checks.ask(request.day, because).ok_or_else(busy)?;
            // The checker puts on record what came of it, and who asked.
            let found = ReceiverStream::new(findings).map(|found| {
                let Checked { folder, differs } = found.map_err(Status::unavailable)?;
                Ok(wire::ReindexResponse { folders: vec![told(folder, differs)] })
            });
            return Ok(Response::new(Box::pin(found)));
        }
        let event = wire::LedgerEvent {
            at: clock::now_us(),
            kind: LedgerEventKind::Administration as i32,
            action: "index.rebuild".to_owned(),
            outcome: "ok".to_owned(),
            actor: because.actor,
            reason: because.reason,
            ticket: because.ticket,
            details: request.day.map(|day| number("day", day)).into_iter().collect(),
            ..Default::default()
        };
        self.tell(Kind::LedgerEvent(event)).await?;
        let built = index.rebuild(request.day).await.ok_or_else(ending)?;
        let folders = built.into_iter().map(|folder| told(folder, true)).collect();
        Ok(Response::new(Box::pin(stream::iter([Ok(wire::ReindexResponse { folders })]))))
    }
}
