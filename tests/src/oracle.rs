//! The oracle: an archive against what gateways were promised.
//!
//! What must hold after any history of crashes: the archive verifies; every acknowledged batch of an archived segment stands
//! at the place and position that its receipt says; no batch stands twice; positions are contiguous. Nothing is stopped for
//! it: an archive only grows, and what it holds under its newest checkpoint is whole at every moment.

use std::{collections::HashMap, path::Path};

use bytes::Bytes;
use custody::{
    archive as names,
    id::{Epoch, GatewayId, WorkspaceId},
    policy::Policy,
    segment::{Content, Entry, Object, Seal, split_frame},
    verdict::{Claim, State},
    verify::{Archive as _, Known, Log, Options},
};
use verifier::{reader::Folder, workers::AllCores};

use crate::{
    peer::{Acknowledged, Gateway, now_us},
    process::Home,
};

/// What gateways hold.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// Batches with a receipt.
    pub acknowledged: Vec<Acknowledged>,
    /// Heads and checkpoints that the archive must extend to. Only where all is archived that they cover.
    pub known: Vec<Known>,
    /// Every acknowledged batch must be in the archive, and not only those of archived segments.
    pub complete: bool,
}

type Name = (WorkspaceId, GatewayId, Epoch, u64);

/// Holds an archive against what was promised; the number of acknowledged batches that were found in it.
///
/// # Panics
/// When the archive does not verify, or anything promised is missing, stands elsewhere or stands twice.
pub fn check_ledger(archive: &Path, policy: &Path, expected: &Expected) -> usize {
    let policy = Policy::parse(&std::fs::read(policy).expect("a policy")).expect("the policy is in form");
    let archive = Folder::open(archive).expect("an archive");
    let options = Options { as_of: now_us(), known: expected.known.clone(), ..Options::default() };
    let verdict = custody::verify::run(&archive, &policy, &options, &AllCores::new()).expect("the archive can be read");
    assert!(verdict.faults.is_empty(), "the archive does not verify: {:#?}", verdict.faults);
    // Heads of some workspaces leave open whether the whole archive is the newest; that they are on its history is no fault above.
    let holds = |claim: &Claim| verdict.claim(*claim).0 == State::Verified;
    assert!(policy.required.iter().all(holds), "{verdict:#?}");
    let log = custody::verify::log(&archive, &policy, None).expect("the log can be read").expect("it verifies");
    let (found, sealed) = batches(&archive, &log);
    let mut held = 0;
    for promised in &expected.acknowledged {
        let name = (promised.workspace, promised.gateway, promised.epoch, promised.batch_number);
        match found.get(&name) {
            Some(there) => assert_eq!(there, promised, "a batch stands elsewhere than its receipt says"),
            None => {
                let archived = sealed.get(&promised.workspace).is_some_and(|sealed| promised.segment < *sealed);
                assert!(!archived && !expected.complete, "an acknowledged batch is not in the archive: {promised:?}");
                continue;
            }
        }
        held += 1;
    }
    held
}

/// The archive of a ledger in which all is archived: every batch that these gateways have a receipt for is in it.
///
/// # Panics
/// As [`check_ledger`].
pub fn check_all(home: &Home, policy: &Path, gateways: &[&Gateway]) {
    let acknowledged: Vec<_> = gateways.iter().flat_map(|gateway| gateway.acknowledged.clone()).collect();
    let count = acknowledged.len();
    let expected = Expected { acknowledged, complete: true, ..Expected::default() };
    assert_eq!(check_ledger(&home.archive(), policy, &expected), count);
}

/// All batches under the newest checkpoint, and the number of sealed segments of each workspace.
fn batches(archive: &Folder, log: &Log) -> (HashMap<Name, Acknowledged>, HashMap<WorkspaceId, u64>) {
    let (mut found, mut sealed) = (HashMap::new(), HashMap::new());
    for workspace in &log.workspaces {
        let mut position = 0;
        for (segment, (_, hash)) in (0..).zip(&workspace.seals) {
            let get = |name: String| archive.get(&name).expect("it can be read").unwrap_or_else(|| panic!("no {name}"));
            let seal = Seal::parse(&get(names::seal(workspace.id, segment, *hash))).expect("a seal");
            let object = get(names::segment(workspace.id, segment, seal.object_sha256));
            for (leaf_index, entry) in (0..).zip(entries(archive, object)) {
                assert_eq!(entry.leaf.first_position, position, "positions of {} are not contiguous", workspace.id);
                let Content::Batch(batch) = &entry.content else { continue };
                if entry.leaf.kind != custody::wire::LeafKind::Batch {
                    continue;
                }
                let header = &batch.header;
                position += u64::from(header.record_count);
                let stands = Acknowledged {
                    workspace: header.workspace,
                    gateway: header.gateway,
                    epoch: header.epoch,
                    batch_number: header.batch_number,
                    header_hash: batch.header_hash(),
                    records: u64::from(header.record_count),
                    segment,
                    leaf_index,
                    first_position: entry.leaf.first_position,
                    received_at: entry.leaf.received_at,
                    term: entry.leaf.term,
                };
                let name = (header.workspace, header.gateway, header.epoch, header.batch_number);
                let twice = found.insert(name, stands);
                assert!(twice.is_none(), "a batch stands twice: {twice:?}");
            }
        }
        sealed.insert(workspace.id, workspace.seals.len() as u64);
    }
    (found, sealed)
}

fn entries(archive: &Folder, object: Bytes) -> Vec<Entry> {
    let object = Object::parse(object).expect("a segment object");
    let mut entries = Vec::new();
    for frame in &object.frames {
        let content = archive.expand(object.frame(frame).expect("its frame"), frame.content_length);
        let split = split_frame(content.expect("the frame expands")).expect("its leaves");
        entries.extend(split.into_iter().map(|bytes| Entry::parse(bytes).expect("a leaf")));
    }
    entries
}
