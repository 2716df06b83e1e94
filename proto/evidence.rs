//! Evidence: one file that proves a run of records offline, to somebody who holds nothing but the audit policy
//! (FORMAT.md, 14).
//!
//! The file is a C2SP tlog-proof of the last segment's log entry; its extra line carries [`wire::Evidence`].

use std::collections::{BTreeMap, btree_map::Entry};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;

use crate::{
    archive,
    batch::{Header, Numbering, record_leaf},
    hash::header_hash,
    head::nodes,
    id::{Epoch, GatewayId, KeyId, WorkspaceId},
    key::Context,
    log::encode_seal_entry,
    merkle::{self, BatchTree, LogTree, Node, SegmentTree, log_leaf},
    note::SignedCheckpoint,
    policy::{BadPolicy, Policy},
    record,
    segment::{Leaf, Seal},
    statement::{Chain, RESERVED_NAME, Roots, Signed, encode_signed, writer},
    strict::{self, Malformed, NotStrict, table},
    verdict::{Check, Fault, ensure},
    wire::{self, LeafKind, Role},
};

/// Greatest length of an evidence file in bytes: a run of some hundred thousand records.
pub const EVIDENCE_BYTES_MAX: usize = 64 << 20;

/// Greatest number of hashes in an inclusion proof: sizes have 64 bits.
const PATH_MAX: usize = 64;

/// A tlog-proof taken apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Proof {
    /// What is ours.
    pub evidence: wire::Evidence,
    /// Index of the log entry.
    pub index: u64,
    /// Its inclusion proof.
    pub path: Vec<Node>,
    /// The checkpoint, with cosignatures.
    pub checkpoint: SignedCheckpoint,
}

const FIRST_LINE: &str = "c2sp.org/tlog-proof@v1";

impl Proof {
    /// Reads an evidence file.
    ///
    /// # Errors
    /// [`NotStrict`].
    pub fn parse(bytes: &[u8]) -> Result<Self, NotStrict> {
        let fault = |rule| NotStrict::from(Malformed::new("tlog-proof", 0, rule));
        if bytes.len() > EVIDENCE_BYTES_MAX {
            return Err(fault("longer than 64 MiB"));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| fault("not UTF-8"))?;
        let (head, note) = text.split_once("\n\n").ok_or_else(|| fault("no empty line before the checkpoint"))?;
        let mut lines = head.split('\n');
        if lines.next() != Some(FIRST_LINE) {
            return Err(fault("another first line"));
        }
        let extra = lines.next().and_then(|line| line.strip_prefix("extra ")).ok_or_else(|| fault("no extra line"))?;
        let extra = STANDARD.decode(extra).map_err(|_| fault("the extra line is not base64"))?;
        let index = lines.next().and_then(|line| line.strip_prefix("index ")).ok_or_else(|| fault("no index"))?;
        let index = archive::number(index).ok_or_else(|| fault("the index is no canonical number"))?;
        let hash = |line: &str| STANDARD.decode(line).ok().and_then(|bytes| bytes.try_into().ok());
        let path: Option<Vec<Node>> = lines.take(PATH_MAX.saturating_add(1)).map(hash).collect();
        if path.as_ref().is_some_and(|path| path.len() > PATH_MAX) {
            return Err(fault("more hashes than a tree of 64 bits can ask for"));
        }
        let path = path.ok_or_else(|| fault("a hash is not 32 bytes of base64"))?;
        let checkpoint = SignedCheckpoint::parse(note.as_bytes())?;
        // Last, for what is not in form around it is so whatever its version.
        let evidence = strict::decode_shared(&table::EVIDENCE, extra.into())?;
        if !has_positions(&evidence) {
            return Err(fault("positions have 64 bits"));
        }
        Ok(Self { evidence, index, path, checkpoint })
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        use prost::Message as _;
        let extra = STANDARD.encode(self.evidence.encode_to_vec());
        let mut text = format!("{FIRST_LINE}\nextra {extra}\nindex {}\n", self.index);
        for node in &self.path {
            text.push_str(&STANDARD.encode(node));
            text.push('\n');
        }
        text.push('\n');
        [text.into_bytes(), self.checkpoint.to_bytes()].concat()
    }
}

/// Whether no run of the message passes the greatest position: what would stop there could hide how long it is.
fn has_positions(evidence: &wire::Evidence) -> bool {
    let ends = |leaf: &wire::EvidenceBatch| {
        leaf.first_position.checked_add(leaf.first_index)?.checked_add(leaf.records.len() as u64)
    };
    let mut leaves = evidence.segments.iter().flat_map(|part| &part.leaves);
    evidence.first_position.checked_add(evidence.record_count).is_some() && leaves.all(|leaf| ends(leaf).is_some())
}

/// A record that evidence proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// Its place in the workspace.
    pub position: u64,
    /// Who signed it.
    pub gateway: GatewayId,
    /// In which run.
    pub epoch: Epoch,
    /// Its number in that run.
    pub number: u64,
    /// Ledger's clock.
    pub received_at: u64,
    /// The record.
    pub bytes: Bytes,
}

/// What evidence shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Whose records.
    pub workspace: WorkspaceId,
    /// In order, nothing between.
    pub records: Vec<Proven>,
    /// Size of the log at the checkpoint.
    pub log_size: u64,
    /// How many of the records were signed by a key that the file's own statements put in doubt from there on: the answer
    /// is then undecided.
    pub suspect: u64,
}

/// Checks an evidence file against an audit policy; the inner error is the first check that did not pass.
///
/// # Errors
/// [`BadPolicy`] when the policy has no usable keys.
pub fn check(bytes: &[u8], policy: &Policy) -> Result<Result<Shown, Fault>, BadPolicy> {
    let roots = policy.roots()?;
    Ok(Proof::parse(bytes)
        .map_err(|why| Fault::form(Check::EvidenceForm, "the file", &why))
        .and_then(|proof| Checker::new(&proof, policy, roots).and_then(Checker::run)))
}

struct Checker<'a> {
    proof: &'a Proof,
    policy: &'a Policy,
    workspace: WorkspaceId,
    ledger: Chain,
    chain: Chain,
    records: Vec<Proven>,
    /// Of each gateway, what it may sign next: positions are the ledger's word alone, these numbers the gateway's.
    numbering: BTreeMap<GatewayId, Numbering>,
    suspect: u64,
}

impl<'a> Checker<'a> {
    fn new(proof: &'a Proof, policy: &'a Policy, mut roots: Roots) -> Result<Self, Fault> {
        let form = |why| Fault::form(Check::EvidenceForm, "workspace id", &NotStrict::from(why));
        let workspace = WorkspaceId::try_from(proof.evidence.workspace.as_ref()).map_err(form)?;
        let replay = |check, mut chain: Chain, objects: &[Bytes], roots: &mut Roots| {
            for (serial, object) in objects.iter().enumerate() {
                let place = format!("statement {serial}");
                let signed = Signed::parse(object).map_err(|why| Fault::form(check, place.clone(), &why))?;
                chain
                    .apply(&signed, roots)
                    .map_err(|why| Fault::new(check, place, "the next statement of the chain", why))?;
            }
            Ok(chain)
        };
        let start = Chain::new(&policy.origin, None);
        let ledger = replay(Check::LedgerChain, start, &proof.evidence.ledger_chain, &mut roots)?;
        let start = Chain::new(&policy.origin, Some(workspace));
        // Nothing here tells when a statement of the workspace stood: earlier roots count as well.
        let chain = replay(Check::WorkspaceChain, start, &proof.evidence.workspace_chain, &mut roots.with_past())?;
        Ok(Self {
            proof,
            policy,
            workspace,
            ledger,
            chain,
            records: Vec::new(),
            numbering: BTreeMap::new(),
            suspect: 0,
        })
    }

    fn run(mut self) -> Result<Shown, Fault> {
        let scope = self.policy.workspaces().ok().flatten();
        let in_scope = scope.is_none_or(|ids| ids.contains(&self.workspace));
        ensure(
            Check::WorkspacePresent,
            in_scope,
            || "workspace id".to_owned(),
            || ("a workspace in the policy's scope", self.workspace),
        )?;
        self.check_checkpoint()?;
        let segments = &self.proof.evidence.segments;
        let mut before: Option<Seal> = None;
        for (at, part) in segments.iter().enumerate() {
            let is_last = at.checked_add(1) == Some(segments.len());
            let seal = self.check_seal(part, is_last)?;
            self.check_follows(before.as_ref(), &seal, part, is_last)?;
            self.check_leaves(&seal, part)?;
            before = Some(seal);
        }
        let said = (self.proof.evidence.first_position, self.proof.evidence.record_count);
        let first = self.records.first().map_or(0, |record| record.position);
        let found = (first, self.records.len() as u64);
        ensure(
            Check::EvidenceRun,
            said == found && found.1 > 0,
            || "the run".to_owned(),
            || (format!("{} records from position {}", said.1, said.0), format!("{} from {}", found.1, found.0)),
        )?;
        let (records, suspect) = (self.records, self.suspect);
        let log_size = self.proof.checkpoint.checkpoint.size;
        Ok(Shown { workspace: self.workspace, records, log_size, suspect })
    }

    fn check_checkpoint(&self) -> Result<(), Fault> {
        let found = &self.proof.checkpoint.checkpoint.origin;
        let place = || "checkpoint".to_owned();
        ensure(Check::CheckpointOrigin, *found == self.policy.origin, place, || (&self.policy.origin, found))?;
        let mut valid = self.ledger.keys().filter(|(_, key)| key.role == Role::Log && !key.revoked);
        let holds = valid.any(|(_, key)| self.proof.checkpoint.is_signed_by(key.public_key));
        ensure(Check::CheckpointSignature, holds, place, || ("a signature by a log key in force", "none"))
    }

    fn check_seal(&self, part: &wire::EvidenceSegment, is_last: bool) -> Result<Seal, Fault> {
        let seal = Seal::parse(&part.seal).map_err(|why| Fault::form(Check::SealForm, "seal", &why))?;
        let place = || format!("seal of segment {}", seal.segment);
        let bound = seal.origin == self.policy.origin && seal.workspace == self.workspace;
        ensure(Check::SealBinding, bound, place, || (self.workspace, seal.workspace))?;
        let path = nodes(&part.log_path).unwrap_or_default();
        let (index, path) = if is_last { (self.proof.index, &self.proof.path) } else { (part.log_index, &path) };
        let entry = encode_seal_entry(self.workspace, seal.segment, crate::hash::object_hash(&part.seal));
        let checkpoint = &self.proof.checkpoint.checkpoint;
        let holds = index == part.log_index
            && (!is_last || part.log_path.is_empty())
            && merkle::verify_inclusion::<LogTree>(index, checkpoint.size, &log_leaf(&entry), path, &checkpoint.root);
        ensure(Check::EvidenceLog, holds, place, || {
            (format!("entry {index} of the log"), "a path that does not lead there")
        })?;
        let of_ledger = self.ledger.head_at(seal.ledger_chain.count) == Some(seal.ledger_chain);
        ensure(Check::SealLedgerChain, of_ledger, place, || {
            (format!("{:?}", seal.ledger_chain), format!("{} statements", self.ledger.head().count))
        })?;
        let of_workspace = self.chain.head_at(seal.workspace_chain.count) == Some(seal.workspace_chain);
        ensure(Check::SealWorkspaceChain, of_workspace && seal.workspace_chain.count > 0, place, || {
            (format!("{:?}", seal.workspace_chain), format!("{} statements", self.chain.head().count))
        })?;
        Ok(seal)
    }

    /// A segment begins where the one before ended, if the run crosses from one to the other.
    fn check_follows(
        &self,
        before: Option<&Seal>,
        seal: &Seal,
        part: &wire::EvidenceSegment,
        is_last: bool,
    ) -> Result<(), Fault> {
        let end = part.first_leaf.saturating_add(part.leaves.len() as u64);
        let reaches_end = is_last || end == seal.size;
        let has_positions = seal.first_position.checked_add(seal.record_count).is_some();
        let begins = before.is_none_or(|before| {
            part.first_leaf == 0
                && before.segment.checked_add(1) == Some(seal.segment)
                && before.next_position() == seal.first_position
        });
        ensure(
            Check::EvidenceRun,
            reaches_end && begins && has_positions,
            || format!("segment {}", seal.segment),
            || ("segments that follow one another", "a gap"),
        )?;
        self.check_states(before, seal)
    }

    /// Which statements hold in a segment is its seal's word; but they are never taken back, what cuts a segment holds in
    /// the next one, and the ledger's chain counts the incarnations.
    fn check_states(&self, before: Option<&Seal>, seal: &Seal) -> Result<(), Fault> {
        let place = || format!("seal of segment {}", seal.segment);
        let incarnation = self.ledger.incarnation_at(seal.ledger_chain.count);
        ensure(Check::SealBinding, seal.incarnation == incarnation, place, || {
            (format!("incarnation {incarnation}"), seal.incarnation)
        })?;
        let Some(before) = before else { return Ok(()) };
        let (of_ledger, least) = (seal.ledger_chain.count, before.ledger_chain.count);
        ensure(Check::SealLedgerChain, of_ledger >= least, place, || {
            (format!("at least {least} statements, as in the segment before"), of_ledger)
        })?;
        let of_workspace = seal.workspace_chain.count;
        let expected = before.workspace_chain.count.saturating_add(before.statement_count);
        ensure(Check::SealWorkspaceChain, of_workspace == expected, place, || {
            (format!("{expected} statements, as the segment before left them"), of_workspace)
        })
    }

    fn check_leaves(&mut self, seal: &Seal, part: &wire::EvidenceSegment) -> Result<(), Fault> {
        let place = || format!("segment {} from leaf {}", seal.segment, part.first_leaf);
        let leaves: Vec<Node> =
            part.leaves.iter().map(|leaf| shape(leaf).hash(&leaf.signed, &leaf.signature)).collect();
        let path = nodes(&part.path).unwrap_or_default();
        let holds = merkle::verify_range::<SegmentTree>(part.first_leaf, seal.size, &leaves, &path, &seal.root);
        ensure(Check::SegmentRoot, holds, place, || (format!("root {}", seal.root), "leaves that do not lead there"))?;
        let (mut records, mut has_statement) = (0_u64, false);
        for (at, leaf) in (part.first_leaf..).zip(&part.leaves) {
            let place = format!("segment {} leaf {at}", seal.segment);
            let is_statement = leaf.kind() == LeafKind::Statement;
            ensure(
                Check::EntryStatement,
                is_statement || !has_statement,
                || place.clone(),
                || ("no batch after a statement", "one"),
            )?;
            has_statement = is_statement;
            if leaf.kind() == LeafKind::Batch {
                let shown = self.records.len();
                let header = self.check_batch(seal, leaf, &place)?;
                self.count_doubt(&header.key_id, part.log_index, shown);
                records = records.saturating_add(u64::from(header.record_count));
            } else {
                self.check_other(seal, leaf, &place)?;
            }
        }
        let is_whole = part.leaves.len() as u64 == seal.size;
        if is_whole { check_counts(seal, &part.leaves, records) } else { Ok(()) }
    }

    /// A leaf that takes no position: whoever sealed it may put anything there that nobody judges.
    fn check_other(&self, seal: &Seal, leaf: &wire::EvidenceBatch, place: &str) -> Result<(), Fault> {
        let at = || place.to_owned();
        // The leaf's hash does not bind them.
        let is_bare =
            leaf.records.is_empty() && leaf.nonces.is_empty() && leaf.path.is_empty() && leaf.first_index == 0;
        ensure(Check::EvidenceForm, is_bare, at, || ("no records in such a leaf", "some"))?;
        if leaf.kind() != LeafKind::Statement {
            return self.check_signer(seal, leaf, place).map(drop);
        }
        let signature = leaf.signature.as_ref().try_into().unwrap_or([0; 64]);
        let signed = Signed::parse(&encode_signed(&leaf.signed, signature));
        let signed = signed.map_err(|why| Fault::form(Check::EntryForm, place, &why))?;
        // Those that cut the last segment need not be in the file.
        let after = signed.statement.serial.saturating_add(1);
        let chained = self.chain.head_at(after).map(|head| head.hash);
        let follows = after > seal.workspace_chain.count && chained.is_none_or(|hash| hash == signed.hash);
        ensure(Check::EntryStatement, follows, at, || {
            (format!("statement {chained:?} of the chain"), format!("{} under number {after}", signed.hash))
        })
    }

    /// Counts the records from `first` on if all statements of the file together put their signer in doubt.
    fn count_doubt(&mut self, key_id: &KeyId, log_index: u64, first: usize) {
        let since = |chain: &Chain, role| chain.key(key_id).filter(|key| key.role == role)?.suspect_since;
        let (of_gateway, of_ledger) = (since(&self.chain, Role::Gateway), since(&self.ledger, Role::Record));
        let is_suspect = |record: &&Proven| {
            of_gateway.is_some_and(|since| record.position >= since)
                || of_ledger.is_some_and(|since| log_index >= since)
        };
        let count = self.records.iter().skip(first).filter(is_suspect).count();
        self.suspect = self.suspect.saturating_add(count as u64);
    }

    fn check_signer(&self, seal: &Seal, leaf: &wire::EvidenceBatch, place: &str) -> Result<(Header, Role), Fault> {
        let header = Header::parse(&leaf.signed).map_err(|why| Fault::form(Check::EntryForm, place, &why))?;
        let at = || place.to_owned();
        let bound = header.origin == self.policy.origin && header.workspace == self.workspace;
        ensure(Check::BatchBinding, bound, at, || (self.workspace, header.workspace))?;
        let workspace = (&self.chain, seal.workspace_chain.count);
        let key = writer(workspace, (&self.ledger, seal.ledger_chain.count), &header.key_id, header.gateway);
        let Some(key) = key else {
            let expected = format!("a key of gateway {} alone", header.gateway);
            return Err(Fault::new(Check::KeyEnrolled, place, expected, header.key_id));
        };
        ensure(Check::KeyValid, !(key.revoked || key.retired && header.opens()), at, || {
            ("a key in force", header.key_id)
        })?;
        let signed = key.public_key.verifies(Context::Batch, &leaf.signed, &leaf.signature);
        ensure(Check::BatchSignature, signed, at, || ("the gateway's signature", "one that does not verify"))?;
        Ok((header, key.role))
    }

    fn check_batch(&mut self, seal: &Seal, leaf: &wire::EvidenceBatch, place: &str) -> Result<Header, Fault> {
        let (header, role) = self.check_signer(seal, leaf, place)?;
        self.check_numbering(&header, &leaf.signed, place)?;
        self.check_records(seal, &header, leaf, role, place)?;
        Ok(header)
    }

    /// Who holds the log's key can leave batches out, show one twice and turn their order round, and number all positions
    /// anew; the gateway's own numbers (6.4) tell.
    fn check_numbering(&mut self, header: &Header, signed: &[u8], place: &str) -> Result<(), Fault> {
        let hash = header_hash(signed);
        let numbering = match self.numbering.entry(header.gateway) {
            Entry::Vacant(first) => {
                first.insert(Numbering::from_middle(header, hash));
                return Ok(());
            }
            Entry::Occupied(before) => before.into_mut(),
        };
        let admitted = numbering.admit(header);
        ensure(
            Check::EvidenceRun,
            admitted.is_ok(),
            || place.to_owned(),
            || {
                let found = format!("batch {} from record {}: {admitted:?}", header.batch_number, header.first_record);
                (format!("the next batch of gateway {}", header.gateway), format!("epoch {} {found}", header.epoch))
            },
        )?;
        numbering.take(header, hash);
        Ok(())
    }

    fn check_records(
        &mut self,
        seal: &Seal,
        header: &Header,
        leaf: &wire::EvidenceBatch,
        role: Role,
        place: &str,
    ) -> Result<(), Fault> {
        let at = || place.to_owned();
        let count = leaf.records.len() as u64;
        let end = leaf.first_index.saturating_add(count);
        let continues = self
            .records
            .last()
            .is_none_or(|before| leaf.first_index == 0 && before.position.checked_add(1) == Some(leaf.first_position));
        let last = self.proof.evidence.first_position.saturating_add(self.proof.evidence.record_count);
        let whole = end == u64::from(header.record_count) || leaf.first_position.saturating_add(end) == last;
        let bare = count > 0 || (header.record_count == 0 && leaf.first_index == 0);
        ensure(Check::EvidenceRun, continues && whole && bare, at, || ("records without a gap", "a gap"))?;
        let nonces = nodes(&leaf.nonces).unwrap_or_default();
        let mut scratch = Vec::new();
        let leaves: Vec<Node> =
            nonces.iter().zip(&leaf.records).map(|(nonce, record)| record_leaf(nonce, record, &mut scratch)).collect();
        let path = nodes(&leaf.path).unwrap_or_default();
        let size = u64::from(header.record_count);
        let holds = nonces.len() == leaf.records.len()
            && if count == 0 {
                path.is_empty() && header.batch_root == crate::batch::empty_root()
            } else {
                merkle::verify_range::<BatchTree>(leaf.first_index, size, &leaves, &path, &header.batch_root)
            };
        ensure(Check::BatchRoot, holds, at, || {
            (format!("root {}", header.batch_root), "records that do not lead there")
        })?;
        let reserved = self.chain.name() == RESERVED_NAME;
        for (index, bytes) in (leaf.first_index..).zip(&leaf.records) {
            let kind = record::check(bytes).map_err(|why| Fault::form(Check::RecordForm, place, &why))?;
            ensure(Check::RecordKind, kind.may_be_written_by(role, reserved), at, || {
                ("what that key may write", kind.name())
            })?;
            self.records.push(Proven {
                position: leaf.first_position.saturating_add(index),
                gateway: header.gateway,
                epoch: header.epoch,
                number: header.first_record.saturating_add(index),
                received_at: leaf.received_at,
                bytes: bytes.clone(),
            });
        }
        let within = leaf.first_position.saturating_add(end) <= seal.next_position();
        ensure(Check::EvidenceRun, within, at, || ("positions of the segment", "others"))
    }
}

/// Of a segment that is shown whole, what its seal counts.
fn check_counts(seal: &Seal, leaves: &[wire::EvidenceBatch], records: u64) -> Result<(), Fault> {
    let of = |kind| leaves.iter().filter(|leaf| leaf.kind() == kind).count() as u64;
    let times = || leaves.iter().map(|leaf| leaf.received_at);
    let found = (
        [records, of(LeafKind::Batch), of(LeafKind::Equivocation), of(LeafKind::Statement)],
        [times().min(), times().max()],
    );
    let expected = (
        [seal.record_count, seal.batch_count, seal.equivocation_count, seal.statement_count],
        [Some(seal.first_received_at), Some(seal.last_received_at)],
    );
    let place = || format!("seal of segment {}", seal.segment);
    ensure(Check::SealCounts, found == expected, place, || (format!("{expected:?}"), format!("{found:?}")))
}

fn shape(leaf: &wire::EvidenceBatch) -> Leaf {
    Leaf { kind: leaf.kind(), first_position: leaf.first_position, received_at: leaf.received_at, term: leaf.term }
}
