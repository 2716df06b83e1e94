//! Which batch may come in: pure decisions on form, origin, authority and signature. Numbering is decided by the writer,
//! in the same step as the append.

use bytes::Bytes;
use custody::{
    batch::{Header, Submitted},
    id::{GatewayId, KeyId, WorkspaceId},
    key::PublicKey,
    statement::{Chain, RESERVED_NAME},
    strict::NotStrict,
    wire::{RejectReason, Rejection, Role},
};

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

/// The key of a gateway that may sign in this workspace now.
///
/// # Errors
/// [`Reject`] with `Unauthorised` or `Revoked`.
pub fn signer(chain: &Chain, header: &Header) -> Result<PublicKey, Reject> {
    let key = chain.key(&header.key_id).filter(|key| key.role == Role::Gateway && key.gateway == Some(header.gateway));
    let Some(key) = key else {
        let detail =
            format!("key {} is not enrolled for this gateway (hint: ledger gateway enrol)", short(&header.key_id));
        return Err(Reject::new(RejectReason::Unauthorised, detail));
    };
    if key.revoked {
        return Err(Reject::new(RejectReason::Revoked, "the key is revoked (hint: enrol a new one)"));
    }
    if key.retired && header.opens() {
        return Err(Reject::new(
            RejectReason::Revoked,
            "the key is retired and opens no epoch (hint: use the new one)",
        ));
    }
    Ok(key.public_key)
}

fn short(id: &KeyId) -> String {
    id.to_string().chars().take(16).collect()
}

/// Everything about a batch that needs no numbering: whose it is, signature, records and their kinds.
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
    let key = signer(chain, header)?;
    if !batch.is_signed_by(key) {
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
