//! Alarms, which are records of the ledger's own workspace: few see that, and what is told of them is what they are about.
//!
//! What must hold: whoever asks hears of alarms about workspaces that it asks of, and of no others.

use std::collections::BTreeSet;

use custody::{
    id::{GatewayId, WorkspaceId},
    query::{Expr, Facts, Field, Place, Text, Want},
    record::RecordKind,
    statement::RESERVED_NAME,
    wire::{self, record::Kind},
};
use prost::Message as _;
use tonic::Status;

use super::{Asking, Compiled, cursor::Cursor, ending, page};
use crate::{
    index::{AskError, Index, Question},
    tail::One,
    watch,
};

/// Alarms that are looked at in one go.
const AT_ONCE: usize = 512;

/// An alarm of the ledger's own, and what it is about.
pub(super) struct OwnAlarm {
    pub(super) alarm: wire::Alarm,
    pub(super) workspace: Option<WorkspaceId>,
    pub(super) gateway: Option<GatewayId>,
}

impl OwnAlarm {
    fn of(one: &One) -> Option<Self> {
        let record = wire::Record::decode(one.batch.records().get(one.index)?.clone()).ok()?;
        let Some(Kind::Alarm(alarm)) = record.kind else { return None };
        let id = |id: &Option<bytes::Bytes>| <[u8; 16]>::try_from(id.as_ref()?.as_ref()).ok();
        let (workspace, gateway) = (id(&alarm.workspace).map(WorkspaceId), id(&alarm.gateway).map(GatewayId));
        Some(Self { alarm, workspace, gateway })
    }

    /// What it says, as if it stood where it is about, if that is one of these workspaces; one about none is about the ledger itself.
    fn facts(self, one: &One, own: WorkspaceId, workspaces: &BTreeSet<WorkspaceId>) -> Option<Facts> {
        let workspace = self.workspace.unwrap_or(own);
        let place = one.batch.place(one.index).filter(|_| workspaces.contains(&workspace))?;
        let place = Place { workspace, gateway: self.gateway.unwrap_or(place.gateway), ..place };
        Some(Facts::of(&place, &wire::Record { kind: Some(Kind::Alarm(self.alarm)), ..wire::Record::default() }))
    }
}

/// Of which alarms, and where they stand.
pub(super) struct Wanted<'a> {
    pub(super) own: WorkspaceId,
    pub(super) expr: &'a Expr,
    pub(super) from: Cursor,
    pub(super) until: std::time::Instant,
    /// How many are looked at, at most.
    pub(super) most: usize,
}

/// Gives `take` the ledger's own alarms, newest first, until it has enough; whether there may be more that were not looked at.
pub(super) fn each(
    index: &Index,
    wanted: &Wanted<'_>,
    mut take: impl FnMut(One, OwnAlarm) -> bool,
) -> Result<bool, AskError> {
    let workspaces = BTreeSet::from([wanted.own]);
    let question =
        Question { workspaces: &workspaces, expr: wanted.expr, pinned: wanted.from.pinned, until: wanted.until };
    let (mut below, mut looked) = (wanted.from.last, 0);
    loop {
        let page = index.newest(&question, below, AT_ONCE)?;
        for rank in &page.ranks {
            let Some(one) = index.tail().one(*rank)? else { continue };
            if let Some(raised) = OwnAlarm::of(&one)
                && take(one, raised)
            {
                return Ok(false);
            }
        }
        looked += page.ranks.len();
        match page.ranks.last() {
            Some(last) if page.ranks.len() >= AT_ONCE && looked < wanted.most => below = *last,
            last => return Ok(page.cut_short || (last.is_some() && looked >= wanted.most)),
        }
    }
}

impl Asking {
    /// A page of alarms about the workspaces that are asked.
    pub(super) async fn alarms_found(
        &self,
        asked: &mut Compiled,
        request: &wire::FindRequest,
    ) -> Result<(wire::FindResponse, u64, usize), Status> {
        let limit = page(request.limit)?;
        let kind = Expr::test(Field::Kind, Want::Texts(vec![Text::Exact(RecordKind::Alarm.name().to_owned())]));
        let (wanted, about, from) = (asked.expr.clone(), asked.seen.ids.clone(), asked.from);
        asked.expr = Expr::All(vec![kind.clone(), wanted.clone()]);
        let own = watch::own_workspace(&self.0.chains).ok_or_else(ending)?;
        let (ones, cut_short) = self
            .work(move |index, until| {
                let mut ones = Vec::new();
                let all = Wanted { own, expr: &kind, from, until, most: usize::MAX };
                let cut_short = each(index, &all, |one, raised| {
                    if raised.facts(&one, own, &about).is_some_and(|facts| wanted.matches(&facts)) {
                        ones.push(one);
                    }
                    ones.len() >= limit
                })?;
                Ok((ones, cut_short))
            })
            .await?;
        let (mut response, hits) = self.paged(asked, &ones, limit, cut_short).await?;
        for hit in &mut response.hits {
            // In which workspace it stands is the ledger's name alone.
            RESERVED_NAME.clone_into(&mut hit.workspace_name);
            // Of the ledger's own numbers its position alone, by which it is disposed of.
            (hit.number, hit.epoch) = (0, bytes::Bytes::new());
        }
        let bytes = response.encoded_len();
        Ok((response, hits, bytes))
    }
}
