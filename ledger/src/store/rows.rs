//! Keys and values of the store, as bytes.
//!
//! What must hold: numbers in keys are big-endian, so that a scan gives order; a value that does not read as what was written
//! is damage, and never a default.

use std::collections::BTreeMap;

use bytes::Bytes;
use custody::{
    batch::{EpochState, Numbering},
    id::{Epoch, GatewayId, HeaderHash, KeyId, MemberId, WorkspaceId},
};
use prost::Message as _;

use super::{Family, Store, StoreError};

/// After its word a gateway has so long for the way.
pub const SILENCE_GRACE_US: u64 = 60_000_000;

/// A big-endian number.
///
/// # Errors
/// [`StoreError::Damaged`].
pub fn as_number(value: &[u8]) -> Result<u64, StoreError> {
    value.try_into().map(u64::from_be_bytes).map_err(|_| StoreError::Damaged("a number"))
}

/// Key of workspace and number.
pub fn numbered(workspace: WorkspaceId, number: u64) -> [u8; 24] {
    let mut key = [0; 24];
    key[..16].copy_from_slice(&workspace.0);
    key[16..].copy_from_slice(&number.to_be_bytes());
    key
}

/// Key of a leaf.
pub fn leaf_key(workspace: WorkspaceId, segment: u64, leaf: u64) -> [u8; 32] {
    let mut key = [0; 32];
    key[..24].copy_from_slice(&numbered(workspace, segment));
    key[24..].copy_from_slice(&leaf.to_be_bytes());
    key
}

/// Key of a batch.
pub fn batch_key(workspace: WorkspaceId, gateway: GatewayId, epoch: Epoch, number: u64) -> Vec<u8> {
    [&workspace.0[..], &gateway.0, &epoch.0, &number.to_be_bytes()].concat()
}

/// Key of an epoch.
pub fn epoch_key(workspace: WorkspaceId, gateway: GatewayId, epoch: Epoch) -> Vec<u8> {
    [&workspace.0[..], &gateway.0, &epoch.0].concat()
}

/// Key of a statement; zeros stand for the ledger's chain.
pub fn statement_key(workspace: Option<WorkspaceId>, serial: u64) -> [u8; 24] {
    numbered(workspace.unwrap_or(WorkspaceId::ZERO), serial)
}

/// Where a leaf stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafPlace {
    /// Segment.
    pub segment: u64,
    /// Index in the segment.
    pub leaf: u64,
}

impl LeafPlace {
    /// As a value; for `Batches` the header hash follows.
    pub fn encode(self) -> [u8; 16] {
        let mut value = [0; 16];
        value[..8].copy_from_slice(&self.segment.to_be_bytes());
        value[8..].copy_from_slice(&self.leaf.to_be_bytes());
        value
    }

    /// From the first 16 bytes of a value.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn decode(value: &[u8]) -> Result<Self, StoreError> {
        let (segment, rest) = value.split_at_checked(8).ok_or(StoreError::Damaged("a place"))?;
        let leaf = rest.get(..8).ok_or(StoreError::Damaged("a place"))?;
        Ok(Self { segment: as_number(segment)?, leaf: as_number(leaf)? })
    }
}

/// What is remembered of an epoch.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EpochRow {
    /// Commit index at which it opened: the last one opened is the gateway's current epoch.
    #[prost(uint64, tag = "1")]
    pub opened_at_index: u64,
    /// Key that signs in it.
    #[prost(bytes = "bytes", tag = "2")]
    pub key_id: Bytes,
    /// Number of its last batch.
    #[prost(uint64, tag = "3")]
    pub last_batch: u64,
    /// Number of its next record.
    #[prost(uint64, tag = "4")]
    pub next_record: u64,
    /// Hash of its last header.
    #[prost(bytes = "bytes", tag = "5")]
    pub last_header_hash: Bytes,
    /// It was closed.
    #[prost(bool, tag = "6")]
    pub closed: bool,
    /// Received-at of its last batch, microseconds.
    #[prost(uint64, tag = "7")]
    pub heard_at: u64,
    /// The writer promised to be always on.
    #[prost(bool, tag = "8")]
    pub always_on: bool,
    /// Its longest silence, microseconds.
    #[prost(uint64, tag = "9")]
    pub silence_us_max: u64,
    /// An equivocation in it was kept already; further copies are only counted.
    #[prost(uint64, tag = "10")]
    pub equivocations: u64,
}

impl EpochRow {
    /// Whether its gateway said that it is always on, and is silent beyond its word.
    pub fn is_silent(&self, now_us: u64) -> bool {
        let due = self.heard_at.saturating_add(self.silence_us_max).saturating_add(SILENCE_GRACE_US);
        self.always_on && !self.closed && due < now_us
    }

    /// The numbering's view.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn state(&self) -> Result<EpochState, StoreError> {
        let damaged = |_| StoreError::Damaged("an epoch");
        Ok(EpochState {
            key_id: Some(KeyId::try_from(self.key_id.as_ref()).map_err(damaged)?),
            last_batch: self.last_batch,
            next_record: self.next_record,
            last_header_hash: HeaderHash::try_from(self.last_header_hash.as_ref()).map_err(damaged)?,
            closed: self.closed,
        })
    }
}

/// A segment that was cut: what its seal will say, but for the object's hashes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CutRow {
    /// A seal whose object fields are zeros.
    #[prost(bytes = "bytes", tag = "1")]
    pub seal: Bytes,
    /// Roster bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub roster: Bytes,
}

/// Something that must become an entry of the log.
#[derive(Clone, PartialEq, prost::Message)]
pub struct QueueRow {
    /// A segment to be sealed: workspace and number.
    #[prost(bytes = "bytes", optional, tag = "1")]
    pub workspace: Option<Bytes>,
    /// Segment number.
    #[prost(uint64, tag = "2")]
    pub segment: u64,
    /// Else the bytes of a log entry.
    #[prost(bytes = "bytes", tag = "3")]
    pub entry: Bytes,
}

/// What is remembered of a member.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MemberRow {
    /// Its newest `DirectoryEntry`.
    #[prost(bytes = "bytes", tag = "1")]
    pub entry: Bytes,
    /// When it was erased, microseconds; 0: it was not.
    #[prost(uint64, tag = "2")]
    pub erased_at: u64,
}

/// What is kept of an API token.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ApiTokenRow {
    /// SHA-256 of its secret.
    #[prost(bytes = "bytes", tag = "1")]
    pub sha256: Bytes,
    /// What it is called.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Name of its role.
    #[prost(string, tag = "3")]
    pub role: String,
    /// Workspaces that it may see; none: all of them.
    #[prost(bytes = "bytes", repeated, tag = "4")]
    pub workspaces: Vec<Bytes>,
    /// It may see the names of people.
    #[prost(bool, tag = "5")]
    pub names: bool,
    /// Microseconds.
    #[prost(uint64, tag = "6")]
    pub created_at: u64,
    /// Microseconds; 0: it does not expire.
    #[prost(uint64, tag = "7")]
    pub expires_at: u64,
    /// Microseconds; 0: it was not revoked.
    #[prost(uint64, tag = "8")]
    pub revoked_at: u64,
}

impl Store {
    /// Gateways of a workspace, each with its newest epoch.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn newest_epochs(&self, workspace: WorkspaceId) -> Result<BTreeMap<GatewayId, EpochRow>, StoreError> {
        let mut newest: BTreeMap<GatewayId, EpochRow> = BTreeMap::new();
        for (gateway, _, row) in self.epochs(workspace)? {
            if newest.get(&gateway).is_none_or(|known| known.opened_at_index <= row.opened_at_index) {
                newest.insert(gateway, row);
            }
        }
        Ok(newest)
    }

    /// Gateways that said that they are always on, and are silent beyond their word, each with its newest epoch.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn silent_gateways(
        &self,
        workspace: WorkspaceId,
        now_us: u64,
    ) -> Result<Vec<(GatewayId, EpochRow)>, StoreError> {
        let mut newest = self.newest_epochs(workspace)?;
        newest.retain(|_, row| row.is_silent(now_us));
        Ok(newest.into_iter().collect())
    }

    /// An API token's row.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn api_token(&self, token: &[u8; 16]) -> Result<Option<ApiTokenRow>, StoreError> {
        self.value(Family::ApiTokens, token)?.map(as_token).transpose()
    }

    /// All API tokens.
    ///
    /// # Errors
    /// Each step may fail with [`StoreError`].
    pub fn api_tokens(&self) -> impl Iterator<Item = Result<([u8; 16], ApiTokenRow), StoreError>> {
        self.scan(Family::ApiTokens, &[], &[]).map(|step| {
            let (key, value) = step?;
            let token = key.as_ref().try_into().map_err(|_| StoreError::Damaged("an API token"))?;
            Ok((token, as_token(value)?))
        })
    }

    /// A member's row.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn member(&self, member: MemberId) -> Result<Option<MemberRow>, StoreError> {
        self.value(Family::Members, member.0)?.map(as_member).transpose()
    }

    /// Rows of members in the order of their ids, from this one on.
    ///
    /// # Errors
    /// Each step may fail with [`StoreError`].
    pub fn members(&self, from: MemberId) -> impl Iterator<Item = Result<(MemberId, MemberRow), StoreError>> {
        self.scan(Family::Members, &[], &from.0).map(|step| {
            let (key, value) = step?;
            let member = MemberId::try_from(key.as_ref()).map_err(|_| StoreError::Damaged("a member"))?;
            Ok((member, as_member(value)?))
        })
    }

    /// Numbering and rows of every gateway of a workspace.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn epochs(&self, workspace: WorkspaceId) -> Result<Vec<(GatewayId, Epoch, EpochRow)>, StoreError> {
        let damaged = |_| StoreError::Damaged("an epoch");
        let mut found = Vec::new();
        for step in self.scan(Family::Epochs, &workspace.0, &[]) {
            let (key, value) = step?;
            let gateway = GatewayId::try_from(key.get(16..32).unwrap_or_default()).map_err(damaged)?;
            let epoch = Epoch::try_from(key.get(32..48).unwrap_or_default()).map_err(damaged)?;
            let row = EpochRow::decode(value).map_err(|_| StoreError::Damaged("an epoch"))?;
            found.push((gateway, epoch, row));
        }
        Ok(found)
    }
}

fn as_member(value: Bytes) -> Result<MemberRow, StoreError> {
    MemberRow::decode(value).map_err(|_| StoreError::Damaged("a member"))
}

fn as_token(value: Bytes) -> Result<ApiTokenRow, StoreError> {
    ApiTokenRow::decode(value).map_err(|_| StoreError::Damaged("an API token"))
}

/// Puts rows of one gateway into a numbering.
///
/// # Errors
/// [`StoreError::Damaged`].
pub fn numbering<'a>(rows: impl IntoIterator<Item = (&'a Epoch, &'a EpochRow)>) -> Result<Numbering, StoreError> {
    let mut numbering = Numbering::default();
    let mut newest = None;
    for (epoch, row) in rows {
        numbering.epochs.insert(*epoch, row.state()?);
        if newest.is_none_or(|at| row.opened_at_index >= at) {
            newest = Some(row.opened_at_index);
            numbering.last_opened = Some(*epoch);
        }
    }
    // An epoch is over once the next one has opened, whether or not it was closed.
    for (epoch, state) in &mut numbering.epochs {
        state.closed |= Some(*epoch) != numbering.last_opened;
    }
    Ok(numbering)
}
