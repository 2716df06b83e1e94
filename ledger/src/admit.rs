//! Which batch may come in: pure decisions on form, origin, authority and signature. Numbering, and whether the head that a
//! batch holds lies on the history, is decided by the writer, in the same step as the append.
//!
//! What must hold: no bytes of a gateway that a verifier would refute (FORMAT.md, 13.4) get past here and the writer. What is
//! archived stays: one such batch, and the whole archive is refuted for ever.

use bytes::Bytes;
use custody::{
    batch::{Header, Submitted},
    forensic::{self, Standing},
    head::{Head, SignedHead},
    id::{GatewayId, KeyId, WorkspaceId},
    record,
    statement::{Chain, KeyState, RESERVED_NAME},
    strict::NotStrict,
    wire::{RejectReason, Rejection, Role},
};

/// What a gateway of a workspace that was removed is told.
pub const REMOVED: &str = "the workspace was removed";

/// Whose stream it is; of a certificate, or of the first message where plaintext was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Name of the log.
    pub origin: String,
    /// Workspace.
    pub workspace: WorkspaceId,
    /// Gateway.
    pub gateway: GatewayId,
}

/// Why a batch is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// What the gateway does about it.
    pub reason: RejectReason,
    /// For people.
    pub detail: String,
    /// Number that comes next, where one is missing.
    pub expected_batch: u64,
}

impl Reject {
    /// A reason with a word for people.
    pub fn new(reason: RejectReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), expected_batch: 0 }
    }

    /// As a message about this header.
    pub fn message(self, header: &Header) -> Rejection {
        Rejection {
            epoch: header.epoch.into(),
            batch_number: header.batch_number,
            reason: self.reason as i32,
            detail: self.detail,
            expected_batch: self.expected_batch,
        }
    }
}

/// Reads a batch: form and limits.
///
/// # Errors
/// [`Reject`] with `Malformed` or `FutureVersion`.
pub fn read(bytes: Bytes) -> Result<Submitted, Reject> {
    Submitted::parse(bytes).map_err(|why| not_strict(&why))
}

fn not_strict(why: &NotStrict) -> Reject {
    match why {
        NotStrict::FutureVersion(_) => Reject::new(RejectReason::FutureVersion, why.to_string()),
        NotStrict::Malformed(_) => Reject::new(RejectReason::Malformed, why.to_string()),
    }
}

/// What the chain says of the key that signed for this gateway, whether it may still sign or not.
fn enrolled<'a>(chain: &'a Chain, header: &Header) -> Result<&'a KeyState, Reject> {
    let key = chain.key(&header.key_id).filter(|key| key.role == Role::Gateway && key.gateway == Some(header.gateway));
    key.ok_or_else(|| {
        let detail =
            format!("key {} is not enrolled for this gateway (hint: ledger gateway enrol)", short(&header.key_id));
        Reject::new(RejectReason::Unauthorised, detail)
    })
}

/// Whether the key of a batch may sign it in this workspace now.
///
/// # Errors
/// [`Reject`] with `Unauthorised` or `Revoked`.
pub fn may_sign(chain: &Chain, header: &Header) -> Result<(), Reject> {
    let key = enrolled(chain, header)?;
    if key.revoked {
        return Err(Reject::new(RejectReason::Revoked, "the key is revoked (hint: enrol a new one)"));
    }
    if key.retired && header.opens() {
        return Err(Reject::new(
            RejectReason::Revoked,
            "the key is retired and opens no epoch (hint: use the new one)",
        ));
    }
    Ok(())
}

/// Whether a gateway may open a stream or have its certificate renewed: its workspace takes batches, and one of its keys may
/// still sign some. A key that is retired may: it finishes its epochs.
///
/// # Errors
/// [`Reject`] with `Removed`, `Unauthorised` or `Revoked`.
pub fn may_come(chain: &Chain, gateway: GatewayId) -> Result<(), Reject> {
    if chain.is_removed() {
        return Err(Reject::new(RejectReason::Removed, REMOVED));
    }
    let keys = chain.keys().filter(|(_, key)| key.role == Role::Gateway && key.gateway == Some(gateway));
    let revoked: Vec<bool> = keys.map(|(_, key)| key.revoked).collect();
    if revoked.is_empty() {
        let detail = "the gateway has no key in this workspace (hint: ledger gateway enrol)";
        return Err(Reject::new(RejectReason::Unauthorised, detail));
    }
    if revoked.into_iter().all(|revoked| revoked) {
        return Err(Reject::new(RejectReason::Revoked, "the gateway's keys are revoked (hint: enrol a new one)"));
    }
    Ok(())
}

/// A head of ours that a gateway holds: it is of the stream's workspace, and a head key that was in force signed it. Whether
/// it lies on the history, the writer knows. Made by [`held_head`] alone.
#[derive(Clone, Debug)]
pub struct Held {
    bytes: Bytes,
    head: Head,
}

impl Held {
    /// The `SignedHead` as it came.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// What it says.
    pub fn head(&self) -> &Head {
        &self.head
    }
}

/// Reads the head that a gateway holds; `None` for an empty one. By the rules of `held-head-signature` (FORMAT.md, 13.4).
///
/// # Errors
/// [`Reject`] with `Malformed`, `FutureVersion` or `Forged`.
pub fn held_head(bytes: &Bytes, peer: &Peer, ledger: &Chain) -> Result<Option<Held>, Reject> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let signed = SignedHead::parse(bytes).map_err(|why| not_strict(&why))?;
    let head = &signed.head;
    if (&head.origin, head.workspace) != (&peer.origin, peer.workspace) {
        return Err(Reject::new(RejectReason::Forged, "the head that is held is of another origin or workspace"));
    }
    // As the key stood when the head was signed: what a key said before it was revoked stays said.
    let key = ledger.key_at(&head.key_id, head.ledger_chain.count).filter(|key| key.role == Role::Head && !key.revoked);
    if !key.is_some_and(|key| signed.is_signed_by(key.public_key)) {
        return Err(Reject::new(RejectReason::Forged, "the head that is held was not signed by this ledger"));
    }
    Ok(Some(Held { bytes: bytes.clone(), head: signed.head }))
}

/// A forensic receipt that a batch shows, verified as far as its record goes. Whether its signer is enrolled, and whether it was
/// shown before, the writer knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Which record of the batch, from 0.
    pub record: u32,
    /// Digest of the receipt.
    pub digest: [u8; 32],
    /// The key that it names.
    pub signer: [u8; 32],
    /// What the record alone says of it.
    pub standing: Standing,
}

/// The forensic receipts of a batch that passed [`check`], in order. Nothing is refused for what they are.
pub fn receipts(batch: &Submitted) -> Vec<Shown> {
    let shown = |(record, bytes): (u32, &Bytes)| {
        let kept = record::receipt(bytes)?;
        let standing = forensic::standing(&kept);
        let (digest, signer) = (kept.digest.as_ref().try_into().ok()?, kept.signer.as_ref().try_into().ok()?);
        Some(Shown { record, digest, signer, standing })
    };
    (0..).zip(&batch.records).filter_map(shown).collect()
}

fn short(id: &KeyId) -> String {
    id.to_string().chars().take(16).collect()
}

/// Everything about a batch that needs neither numbering nor history: whose it is, signature, records and their kinds.
///
/// # Errors
/// [`Reject`].
pub fn check(batch: &Submitted, peer: &Peer, chain: &Chain) -> Result<(), Reject> {
    let header = &batch.header;
    let of_stream = (&header.origin, header.workspace, header.gateway) == (&peer.origin, peer.workspace, peer.gateway);
    if !of_stream {
        let detail = "the batch is of another origin, workspace or gateway than this stream's certificate";
        return Err(Reject::new(RejectReason::WrongStream, detail));
    }
    if !batch.is_signed_by(enrolled(chain, header)?.public_key) {
        return Err(Reject::new(RejectReason::Forged, "the header's signature does not verify"));
    }
    let kinds = batch.check_records().map_err(|why| not_strict(&why))?;
    if !batch.is_root_of_records() {
        return Err(Reject::new(RejectReason::Forged, "the records are not those whose root was signed"));
    }
    let reserved = chain.name() == RESERVED_NAME;
    if let Some(kind) = kinds.iter().find(|kind| !kind.may_be_written_by(Role::Gateway, reserved)) {
        let detail = format!("a gateway may not write a record of kind {}", kind.name());
        return Err(Reject::new(RejectReason::Unauthorised, detail));
    }
    if header.opens() && batch.opened().is_none() {
        return Err(Reject::new(RejectReason::Malformed, "an epoch's first record is that of its writer"));
    }
    Ok(())
}
