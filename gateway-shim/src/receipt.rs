//! Holds the ledger to its word: replays the key chains from the pinned root, and checks every head, inclusion, consistency
//! and archived receipt. Pure.
//!
//! What must hold: a head is accepted only if an enrolled head key signed it, the chains that it names are ours, and it
//! extends the last accepted head; a batch counts as durable only with its inclusion under an accepted head, and as archived
//! only when its segment's seal is in the signed log *and* in the history of an accepted head. A signed word that contradicts
//! an earlier one is a [`Fork`]: both are kept as proof.

use std::collections::BTreeMap;

use bytes::Bytes;
use custody::{
    hash::object_hash,
    head::{Head, SignedHead, history_leaf, includes_batch, is_consistent, nodes},
    id::{Epoch, LeafHash, RootHash},
    key::PublicKey,
    log::encode_seal_entry,
    merkle::{self, HistoryTree, LogTree},
    note::{Checkpoint, SignedCheckpoint},
    statement::{Chain, ChainHead, Roots, Signed},
    strict::{self, table},
    wire::{self, Role},
};

use crate::key::Name;

/// Histories of accepted heads that are remembered: an archived receipt may be made for one a little older than the newest.
const HISTORIES_MAX: usize = 64;

/// Why a message of the ledger is not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It proves nothing: not in form, not signed, or about something else. The text completes "the ledger's message ...".
    Worthless(&'static str),
    /// The ledger signed two things that cannot both be true.
    Fork(Box<Fork>),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Worthless(why) => write!(f, "accept the ledger's message: it {why}"),
            Self::Fork(_) => f.write_str("reconcile two signed words of the ledger: it shows two histories"),
        }
    }
}

impl std::error::Error for Refusal {}

/// Two signed words of one ledger that exclude each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fork {
    /// What it says.
    pub finding: &'static str,
    /// What was accepted before: a `SignedHead`, or a signed checkpoint.
    pub before: Bytes,
    /// What came: a `SignedHead`, or a signed checkpoint.
    pub now: Bytes,
    /// The whole message in which that came.
    pub message: Bytes,
}

fn worthless<T>(why: &'static str) -> Result<T, Refusal> {
    Err(Refusal::Worthless(why))
}

/// A batch that is shown to be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its number.
    pub number: u64,
    /// Segment that holds it.
    pub segment: u64,
}

/// What a receipt that holds shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The `SignedHead`, to be made durable and named in the next batch.
    pub head: Bytes,
    /// Batches that it covers.
    pub durable: Vec<Durable>,
    /// It begins a new incarnation: batches that were durable and not archived may be lost there.
    pub new_incarnation: bool,
}

/// Header and signature of a batch that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Bytes under the signature.
    pub header: Bytes,
    /// The gateway's.
    pub signature: Bytes,
}

/// What is known of the ledger so far.
#[derive(Clone, Debug)]
pub struct Checker {
    who: Name,
    roots: Roots,
    ledger: Chain,
    workspace: Chain,
    /// Heads of both chains after each statement; heads may name one that is a little older than what was sent.
    ledger_heads: Vec<ChainHead>,
    workspace_heads: Vec<ChainHead>,
    last: Option<(Bytes, Head)>,
    /// History size to root, of accepted heads.
    histories: BTreeMap<u64, RootHash>,
    /// The greatest checkpoint seen.
    checkpoint: Option<(Bytes, Checkpoint)>,
}

impl Checker {
    /// Trusting nothing but the root.
    pub fn new(who: Name, roots: Roots) -> Self {
        let (ledger, workspace) = (Chain::new(&who.origin, None), Chain::new(&who.origin, Some(who.workspace)));
        Self {
            who,
            roots,
            ledger,
            workspace,
            ledger_heads: vec![ChainHead::GENESIS],
            workspace_heads: vec![ChainHead::GENESIS],
            last: None,
            histories: BTreeMap::new(),
            checkpoint: None,
        }
    }

    /// Takes up a head that was accepted before and kept.
    ///
    /// # Errors
    /// [`Refusal::Worthless`] when it is not in form.
    pub fn resume(&mut self, head: &Bytes) -> Result<(), Refusal> {
        let Ok(signed) = SignedHead::parse(head) else { return worthless("is not in strict form") };
        self.accept(head.clone(), signed.head);
        Ok(())
    }

    /// The last accepted `SignedHead`; empty for none.
    pub fn last_head(&self) -> Bytes {
        self.last.as_ref().map(|(bytes, _)| bytes.clone()).unwrap_or_default()
    }

    /// What that one says.
    pub fn head(&self) -> Option<&Head> {
        self.last.as_ref().map(|(_, head)| head)
    }

    /// Number of statements of the ledger's chain, and of the workspace's.
    pub fn statements(&self) -> (u64, u64) {
        (self.ledger.head().count, self.workspace.head().count)
    }

    /// The workspace's chain, as far as it is known.
    pub fn workspace(&self) -> &Chain {
        &self.workspace
    }

    /// Takes the next statement of one of the two chains. `Ok(false)`: it was known.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn statement(&mut self, object: &[u8]) -> Result<bool, Refusal> {
        let Ok(signed) = Signed::parse(object) else { return worthless("is a statement that is not in strict form") };
        let of_ledger = signed.workspace().is_none();
        let (chain, heads) = match of_ledger {
            true => (&mut self.ledger, &mut self.ledger_heads),
            false => (&mut self.workspace, &mut self.workspace_heads),
        };
        let known = usize::try_from(signed.statement.serial).ok().and_then(|at| heads.get(at + 1));
        if known.is_some_and(|head| head.hash == signed.hash) {
            return Ok(false);
        }
        match chain.extended(&signed, &self.roots) {
            Ok((next, roots)) => {
                heads.push(next.head());
                *chain = next;
                self.roots = roots;
                Ok(true)
            }
            Err(refused) => worthless(refused.0),
        }
    }

    /// The enrolled key of the ledger in this role.
    fn ledger_key(&self, role: Role, id: Option<&[u8]>) -> Option<PublicKey> {
        let fits = |(key, state): &(&custody::id::KeyId, &custody::statement::KeyState)| {
            state.role == role && !state.revoked && id.is_none_or(|id| key.as_ref() == id)
        };
        self.ledger.keys().find(fits).map(|(_, state)| state.public_key)
    }

    /// Checks a receipt; `sent` knows the batches that this gateway sent and has no receipt for.
    ///
    /// # Errors
    /// [`Refusal`]; nothing has changed then.
    pub fn receipt(&mut self, message: &Bytes, sent: impl Fn(Epoch, u64) -> Option<Sent>) -> Result<Accepted, Refusal> {
        let Ok(receipt) = strict::decode_shared::<wire::Receipt>(&table::RECEIPT, message.clone()) else {
            return worthless("is a receipt that is not in strict form");
        };
        let Ok(signed) = SignedHead::parse(&receipt.signed_head) else {
            return worthless("holds a head that is not in strict form");
        };
        self.check_head(&signed)?;
        let new_incarnation = self.extends_last(&signed.head, &receipt, message)?;
        let mut durable = Vec::with_capacity(receipt.batches.len());
        for inclusion in &receipt.batches {
            let Ok(epoch) = Epoch::try_from(inclusion.epoch.as_ref()) else { return worthless("names no epoch") };
            // The answer to a batch that was sent twice may come twice.
            let Some(batch) = sent(epoch, inclusion.batch_number) else { continue };
            if !includes_batch(&signed.head, inclusion, &batch.header, &batch.signature) {
                return worthless("does not include the batch that it names");
            }
            durable.push(Durable { epoch, number: inclusion.batch_number, segment: inclusion.segment });
        }
        self.accept(receipt.signed_head.clone(), signed.head);
        Ok(Accepted { head: receipt.signed_head, durable, new_incarnation })
    }

    fn accept(&mut self, bytes: Bytes, head: Head) {
        self.histories.insert(head.segment, head.history_root);
        while self.histories.len() > HISTORIES_MAX {
            self.histories.pop_first();
        }
        self.last = Some((bytes, head));
    }

    /// Origin, workspace, chains and signature.
    fn check_head(&self, signed: &SignedHead) -> Result<(), Refusal> {
        let head = &signed.head;
        if head.origin != self.who.origin || head.workspace != self.who.workspace {
            return worthless("is of another origin or workspace");
        }
        let known = |heads: &[ChainHead], named: ChainHead| {
            usize::try_from(named.count).ok().and_then(|at| heads.get(at)).is_some_and(|head| *head == named)
        };
        if !known(&self.ledger_heads, head.ledger_chain) || !known(&self.workspace_heads, head.workspace_chain) {
            return worthless("names statements that were not sent");
        }
        if let Some((_, last)) = &self.last
            && head.incarnation == last.incarnation
            && (head.ledger_chain.count < last.ledger_chain.count
                || head.workspace_chain.count < last.workspace_chain.count)
        {
            return worthless("goes back behind a statement");
        }
        let key = self.ledger_key(Role::Head, Some(head.key_id.as_ref()));
        let Some(key) = key else { return worthless("is signed by a key that is not enrolled for heads") };
        if !signed.is_signed_by(key) {
            return worthless("has a signature that does not verify");
        }
        Ok(())
    }

    /// Whether the head extends the last one; `Ok(true)` when it begins a new incarnation instead.
    fn extends_last(&self, head: &Head, receipt: &wire::Receipt, message: &Bytes) -> Result<bool, Refusal> {
        let Some((last_bytes, last)) = &self.last else { return Ok(false) };
        if *last_bytes == receipt.signed_head {
            return Ok(false);
        }
        let consistent = match &receipt.consistency {
            Some(proof) => is_consistent(last, head, proof),
            None => false,
        };
        if consistent && head.incarnation >= last.incarnation {
            return Ok(false);
        }
        // The root said so: what was durable and not archived may be gone.
        if head.incarnation > last.incarnation && self.ledger.incarnation() >= head.incarnation {
            return Ok(true);
        }
        Err(Refusal::Fork(Box::new(Fork {
            finding: "a signed open head does not extend the one that this gateway holds",
            before: last_bytes.clone(),
            now: receipt.signed_head.clone(),
            message: message.clone(),
        })))
    }

    /// Checks an archived receipt; gives the last segment whose batches may leave the spool. So may those of the segments
    /// before it: the ledger publishes a workspace's seals in their order, and a gap refutes its archive.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn archived(&mut self, message: &Bytes) -> Result<u64, Refusal> {
        let Ok(receipt) = strict::decode_shared::<wire::ArchivedReceipt>(&table::ARCHIVED_RECEIPT, message.clone())
        else {
            return worthless("is an archived receipt that is not in strict form");
        };
        let Ok(seal) = strict::decode::<wire::Seal>(&table::SEAL, &receipt.seal) else {
            return worthless("holds a seal that is not in strict form");
        };
        if seal.origin != self.who.origin || seal.workspace.as_ref() != self.who.workspace.as_ref() {
            return worthless("holds a seal of another origin or workspace");
        }
        let checkpoint = self.check_checkpoint(&receipt.checkpoint, message)?;
        let (Some(log_path), Some(history_path)) = (nodes(&receipt.log_path), nodes(&receipt.history_path)) else {
            return worthless("holds a malformed path");
        };
        let entry = encode_seal_entry(self.who.workspace, seal.segment, object_hash(&receipt.seal));
        let leaf = merkle::log_leaf(&entry);
        let index = receipt.log_index;
        if !merkle::verify_inclusion::<LogTree>(index, checkpoint.size, &leaf, &log_path, &checkpoint.root) {
            return worthless("holds a seal that is not in the log");
        }
        let Some(history) = self.histories.get(&receipt.history_size) else {
            return worthless("is about a head that this gateway does not hold");
        };
        let Ok(root) = RootHash::try_from(seal.root.as_ref()) else { return worthless("holds a malformed root") };
        let last = LeafHash(history_leaf(seal.segment, seal.size, &root));
        let size = receipt.history_size;
        if !merkle::verify_inclusion::<HistoryTree>(seal.segment, size, &last, &history_path, history) {
            return Err(Refusal::Fork(Box::new(Fork {
                finding: "a seal in the log is not in the history of the head that this gateway holds",
                before: self.last_head(),
                now: receipt.checkpoint.clone(),
                message: message.clone(),
            })));
        }
        self.checkpoint = Some((receipt.checkpoint, checkpoint));
        Ok(seal.segment)
    }

    fn check_checkpoint(&self, bytes: &Bytes, message: &Bytes) -> Result<Checkpoint, Refusal> {
        let Ok(signed) = SignedCheckpoint::parse(bytes) else { return worthless("holds a malformed checkpoint") };
        if signed.checkpoint.origin != self.who.origin {
            return worthless("holds a checkpoint of another origin");
        }
        let enrolled = self.ledger.keys().filter(|(_, state)| state.role == Role::Log && !state.revoked);
        if !enrolled.map(|(_, state)| state.public_key).any(|key| signed.is_signed_by(key)) {
            return worthless("holds a checkpoint that no enrolled log key signed");
        }
        if let Some((before, known)) = &self.checkpoint
            && known.size == signed.checkpoint.size
            && known.root != signed.checkpoint.root
        {
            return Err(Refusal::Fork(Box::new(Fork {
                finding: "two signed checkpoints of one size have different roots",
                before: before.clone(),
                now: bytes.clone(),
                message: message.clone(),
            })));
        }
        Ok(signed.checkpoint)
    }
}

#[cfg(test)]
mod tests;
