//! The ledger's own records: an epoch of its own in the reserved workspace, signed by the record key, appended by the
//! writer in the same write as what they tell of.

use std::collections::BTreeMap;

use bytes::Bytes;
use custody::{
    batch::{Header, Submitted, encode_signed, seal_header},
    id::{Epoch, GatewayId, HeaderHash, KeyId, RootHash, WorkspaceId},
    key, record,
    statement::{Chain, RESERVED_NAME},
    wire::{self, ClockState, LeafKind, LedgerEventKind, OpeningReason, Role, WriterClass, record::Kind},
};
use ed25519_dalek::SigningKey;

use super::{Group, State, Writer, equivocations::EpochName};
use crate::{
    clock::{self, Jump},
    keys,
    store::{Notes, StoreError},
    workspace::Workspace,
};

/// Records that wait for the next write: what a group of batches brings about at most (a finding of each kind for each of its
/// 512 requests), and any burst of administration; past it the oldest would have to wait for ever, so the newest is dropped
/// and declared. As many of at most 300 bytes are below a batch's 1 MiB.
const PENDING_MAX: usize = 3_328;

/// Writes the ledger's own records.
pub struct OwnWriter {
    key: SigningKey,
    key_id: KeyId,
    gateway: Option<GatewayId>,
    workspace: Option<WorkspaceId>,
    epoch: Epoch,
    pending: Vec<Kind>,
    dropped: u64,
    closing: bool,
}

impl OwnWriter {
    pub(super) fn load(key: &SigningKey, chain: &Chain, workspaces: &BTreeMap<WorkspaceId, Workspace>) -> Self {
        let key_id = key::public(key).id(Role::Record);
        let mut own = Self {
            key: key.clone(),
            key_id,
            gateway: chain.key(&key_id).and_then(|state| state.gateway),
            workspace: None,
            epoch: Epoch(keys::random()),
            pending: Vec::new(),
            dropped: 0,
            closing: false,
        };
        own.find_workspace(workspaces);
        own.event(LedgerEventKind::Started, "ledger.start", "ok", |_| {});
        own
    }

    fn find_workspace(&mut self, workspaces: &BTreeMap<WorkspaceId, Workspace>) {
        self.workspace = workspaces.values().find(|w| w.chain.name() == RESERVED_NAME).map(|w| w.id);
    }

    pub(super) fn push(&mut self, kind: Kind) {
        if self.pending.len() < PENDING_MAX {
            self.pending.push(kind);
        } else {
            self.dropped += 1;
        }
    }

    /// A ledger event, with whatever else `fill` sets.
    pub(super) fn event(
        &mut self,
        kind: LedgerEventKind,
        action: &str,
        outcome: &str,
        fill: impl FnOnce(&mut wire::LedgerEvent),
    ) {
        let mut event = wire::LedgerEvent {
            at: clock::now_us(),
            kind: kind as i32,
            action: action.to_owned(),
            outcome: outcome.to_owned(),
            ..Default::default()
        };
        fill(&mut event);
        self.push(Kind::LedgerEvent(event));
    }

    /// So many copies under one number or another of an epoch; `batch` is the newest.
    pub(super) fn equivocation(&mut self, (workspace, gateway, epoch): EpochName, batch: u64, copies: u64) {
        self.event(LedgerEventKind::Equivocation, "batch.equivocation", "refused", |event| {
            event.workspace = Some(workspace.into());
            event.gateway = Some(gateway.into());
            event.epoch = Some(epoch.into());
            event.details = vec![number("batch", batch), number("copies", copies)];
        });
    }

    pub(super) fn clock_jumped(&mut self, jump: Jump) {
        self.event(LedgerEventKind::Clock, "clock.jump", "ok", |event| {
            event.details = vec![number("expected_us", jump.expected_us), number("found_us", jump.found_us)];
        });
    }

    pub(super) fn close(&mut self) {
        self.closing = true;
    }
}

/// A detail that is a number.
pub fn number(key: &str, value: u64) -> wire::Extension {
    wire::Extension { key: key.to_owned(), value: Some(wire::extension::Value::Number(value)) }
}

impl Writer {
    /// Whether so many records of the ledger's own go with the next write, and none of them is dropped.
    pub(super) fn own_is_ready(&mut self, count: usize) -> bool {
        self.find_own();
        self.own.workspace.is_some() && self.own.gateway.is_some() && self.own.pending.len() + count <= PENDING_MAX
    }

    fn find_own(&mut self) {
        if self.own.workspace.is_none() {
            self.own.find_workspace(&self.workspaces);
            self.own.gateway = self.ledger_chain.key(&self.own.key_id).and_then(|state| state.gateway);
        }
    }

    /// Puts the pending records of the ledger's own into the group's write.
    pub(super) fn append_own(&mut self, group: &mut Group<'_>) -> Result<(), StoreError> {
        self.find_own();
        let (Some(id), Some(gateway)) = (self.own.workspace, self.own.gateway) else { return Ok(()) };
        if self.state != State::Serving || (self.own.pending.is_empty() && !self.own.closing) {
            return Ok(());
        }
        let Some(workspace) = self.workspaces.get(&id) else { return Ok(()) };
        let numbering = workspace.gateways.get(&gateway).map(|known| &known.numbering);
        let header = self.own.header(&self.parts.origin, id, gateway, numbering);
        if header.opens() && self.own.pending.is_empty() {
            return Ok(());
        }
        let batch = self.own.batch(header)?;
        let notes = Notes::of(&batch.records);
        self.append(LeafKind::Batch, batch, &notes, group)?;
        Ok(())
    }
}

impl OwnWriter {
    fn header(
        &self,
        origin: &str,
        workspace: WorkspaceId,
        gateway: GatewayId,
        numbering: Option<&custody::batch::Numbering>,
    ) -> Header {
        let last = numbering.and_then(|known| known.epochs.get(&known.last_opened?));
        let current = numbering.and_then(|known| known.epochs.get(&self.epoch));
        let previous = current.or(last).map_or(HeaderHash::ZERO, |state| state.last_header_hash);
        let dropped = current.map_or(0, |_| self.dropped);
        Header {
            origin: origin.to_owned(),
            workspace,
            gateway,
            key_id: self.key_id,
            epoch: self.epoch,
            batch_number: current.map_or(0, |state| state.last_batch + 1),
            first_record: current.map_or(0, |state| state.next_record) + dropped,
            record_count: 0,
            previous,
            opening_reason: (previous == HeaderHash::ZERO).then_some(OpeningReason::First),
            batch_root: RootHash::ZERO,
            last_head: Bytes::new(),
            dropped,
            drop_reason: (dropped > 0).then_some(wire::DropReason::SpoolFull),
            heartbeat: false,
            close: self.closing,
            created_at: clock::now_us(),
        }
    }

    fn batch(&mut self, mut header: Header) -> Result<Submitted, StoreError> {
        let mut records = Vec::new();
        if header.opens() {
            records.push(record::encode(Kind::GatewayEvent(opened())));
        }
        records.extend(self.pending.drain(..).map(record::encode));
        let records: Vec<Bytes> = records.into_iter().map(Bytes::from).collect();
        let seed: [u8; 32] = keys::random();
        seal_header(&mut header, &seed, &records);
        self.dropped -= header.dropped;
        self.closing = false;
        let bytes = encode_signed(&header.encode(), &self.key, &seed, &records);
        Submitted::parse(bytes.into()).map_err(|_| StoreError::Damaged("a record of the ledger's own"))
    }
}

/// The record of the writer. The ledger promises no heartbeat of its own: its silence shows in the log's terms.
fn opened() -> wire::GatewayEvent {
    let opened = wire::Opened {
        product: "custody-ledger".to_owned(),
        product_version: env!("CARGO_PKG_VERSION").to_owned(),
        configuration_digest: Bytes::from_static(&[0; 32]),
        clock: ClockState::Unknown as i32,
        class: WriterClass::Intermittent as i32,
        silence_us_max: 0,
    };
    wire::GatewayEvent { at: clock::now_us(), event: Some(wire::gateway_event::Event::Opened(opened)) }
}
