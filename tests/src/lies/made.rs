//! Lies that are made from the golden archive by hand, and by no other story: each by the name of its scenario. Also other
//! policies, and known files that were written differently.

use custody::{
    note::cosign,
    policy::{Policy, Scope},
    segment::Seal,
    verdict::Claim,
};

use super::{Golden, ObjectMap, Strength, again, tamper, target::Target, whole};
use crate::golden::{
    AS_OF, keys,
    ledger::LogItem,
    render::{self, At, Liar},
};

/// The end of the year 9999 in microseconds: the last time that the format has.
const LAST_TIME: u64 = 253_402_300_799_999_999;

/// Archives that are made from the golden one, and not by another story.
pub(super) fn objects(name: &str, golden: &Golden) -> Option<Result<ObjectMap, String>> {
    let newest = (keys::workspace("alpha"), 17);
    Some(match name {
        "no-checkpoint" => {
            let mut objects = golden.rendered.objects.clone();
            objects.retain(|name, _| !name.starts_with("log/checkpoints/"));
            Ok(objects)
        }
        "objects-that-no-archive-has" => {
            let (alpha, nobody) = (keys::workspace("alpha"), "00".repeat(16));
            let mut objects = golden.rendered.objects.clone();
            for name in [
                "README.txt".to_owned(),
                "log/copy/0".to_owned(),
                "log/checkpoints/xx".to_owned(),
                "log/checkpoints/01".to_owned(),
                format!("workspaces/{alpha}/other/1"),
                format!("workspaces/{alpha}/seals/0/1"),
                format!("workspaces/{nobody}/seals/0"),
                format!("workspaces/{nobody}/seals/1"),
                "workspaces/file".to_owned(),
            ] {
                objects.insert(name, bytes::Bytes::from_static(b"x"));
            }
            Ok(objects)
        }
        "unsealed-passes" => whole::older(golden, "middle").map(|mut objects| {
            let segments = golden.rendered.objects.iter().filter(|(name, _)| name.contains("/segments/"));
            objects.extend(segments.map(|(name, bytes)| (name.clone(), bytes.clone())));
            objects
        }),
        "back-dated-and-cosignatures-removed" => Ok(without_cosignatures(tamper::rewrite(golden, |ledger| {
            let place = ledger.workspace("beta").segments.last_mut();
            for committed in place.into_iter().flat_map(|segment| &mut segment.leaves) {
                committed.leaf.received_at -= 30_000_000;
            }
        }))),
        "back-dated-to-before-its-term" => Ok(without_cosignatures(tamper::rewrite(golden, |ledger| {
            let place = ledger.workspace("beta").segments.last_mut();
            for committed in place.into_iter().flat_map(|segment| &mut segment.leaves) {
                committed.leaf.received_at -= 2 * 86_400_000_000;
            }
        }))),
        "tail-cut-and-cosignatures-removed" => {
            let tail = Target::Segment((keys::workspace("beta"), 14));
            whole::remove(golden, Strength::Resigned, &tail).map(without_cosignatures)
        }
        // A witness whose clock is wrong: fresh on the day that it names, and on none before.
        "cosigned-an-hour-ahead" => Ok(cosigned_at(golden, AS_OF / 1_000_000 + 3_600)),
        "cosigned-a-second-too-far-ahead" => Ok(cosigned_at(golden, AS_OF / 1_000_000 + 301)),
        "cosigned-a-little-ahead" => Ok(cosigned_at(golden, AS_OF / 1_000_000 + 300)),
        "cosigned-again-later" => Ok(cosigned_again(golden)),
        "seal-of-another-sha256" => Ok(other_sha256(golden, newest)),
        "seal-and-header-of-another-origin" => Ok(tamper::rewrite(golden, |ledger| {
            if let Some(segment) = ledger.workspace("alpha").segments.last_mut() {
                "ledger.example/other".clone_into(&mut segment.header.origin);
            }
        })),
        _ => return period(name, golden),
    })
}

/// What the ledger alone dates out of a period, or leaves out at the end.
fn period(name: &str, golden: &Golden) -> Option<Result<ObjectMap, String>> {
    Some(match name {
        "last-segments-dated-to-the-beginning" => Ok(dated_and_removed(golden, &[16, 17], 0)),
        "last-segments-dated-to-the-last-year" => Ok(dated_and_removed(golden, &[16, 17], LAST_TIME)),
        "segment-dated-to-the-beginning" => Ok(dated_and_removed(golden, &[15], 0)),
        "received-before-the-period" => Ok(without_cosignatures(tamper::rewrite(golden, |ledger| {
            // The last leaf alone: no head that a gateway holds has it yet.
            let place = ledger.workspace("alpha").segments.last_mut();
            if let Some(last) = place.and_then(|segment| segment.leaves.last_mut()) {
                last.leaf.received_at -= 60_000_000;
            }
        }))),
        "last-batch-of-a-gateway-left-out" => Ok(without_cosignatures(tamper::rewrite(golden, |ledger| {
            if let Some(segment) = ledger.workspace("alpha").segments.last_mut() {
                segment.leaves.pop();
            }
        }))),
        "last-segments-of-a-workspace-left-out" => Ok(without_cosignatures(tamper::rewrite(golden, |ledger| {
            let place = ledger.workspace("alpha");
            let (id, kept) = (place.id, place.segments.len() - 3);
            place.segments.truncate(kept);
            ledger.log.retain(|item| !matches!(item, LogItem::Seal(of, at) if *of == id && *at >= kept as u64));
        }))),
        _ => return None,
    })
}

/// Seals of alpha that give their segments a time, and the objects of these removed: all that the ledger can do alone.
struct Dated<'a>(&'a [u64], u64);

impl Liar for Dated<'_> {
    fn seal(&mut self, at: At, seal: &mut Seal) {
        if at.0 == keys::workspace("alpha") && self.0.contains(&at.1) {
            (seal.first_received_at, seal.last_received_at) = (self.1, self.1);
        }
    }
}

fn dated_and_removed(golden: &Golden, segments: &[u64], time: u64) -> ObjectMap {
    let mut rendered = render::render(&golden.ledger, &mut Dated(segments, time));
    for at in segments {
        let name = rendered.segment_names.get(&(keys::workspace("alpha"), *at));
        name.and_then(|name| rendered.objects.remove(name));
    }
    without_cosignatures(rendered.objects)
}

fn without_cosignatures(mut objects: ObjectMap) -> ObjectMap {
    objects.retain(|name, _| !name.starts_with("log/cosignatures/"));
    objects
}

/// All witnesses cosigned the newest checkpoint at this time, in seconds.
fn cosigned_at(golden: &Golden, time: u64) -> ObjectMap {
    let mut objects = golden.rendered.objects.clone();
    if let Some(publication) = golden.ledger.publications.last() {
        for (witness, _) in &publication.cosignatures {
            let line = cosign(&publication.checkpoint, witness, &keys::signing(witness), time).text();
            objects.insert(custody::archive::cosignature(publication.checkpoint.size, witness), line.into());
        }
    }
    objects
}

/// Each witness cosigned the newest checkpoint long ago, and again on the day of the question.
fn cosigned_again(golden: &Golden) -> ObjectMap {
    let (long_ago, today) = (cosigned_at(golden, 1), cosigned_at(golden, AS_OF / 1_000_000));
    let newest = |name: &String| golden.rendered.objects.get(name) != long_ago.get(name);
    let both = |(name, first): (&String, &bytes::Bytes)| {
        let lines = [&first[..], today.get(name).map_or(&[][..], |second| &second[..])].concat();
        (name.clone(), if newest(name) { lines.into() } else { first.clone() })
    };
    long_ago.iter().map(both).collect()
}

/// Seal and name of a segment say a SHA-256 that is not that of the object.
struct OtherSha256(At);

impl Liar for OtherSha256 {
    fn seal(&mut self, at: At, seal: &mut Seal) {
        if at == self.0 {
            seal.object_sha256.0[3] ^= 1;
        }
    }
}

fn other_sha256(golden: &Golden, at: At) -> ObjectMap {
    let mut objects = render::render(&golden.ledger, &mut OtherSha256(at)).objects;
    if let Some(name) = golden.rendered.segment_names.get(&at)
        && let Some(bytes) = objects.remove(name)
    {
        let mut hash = custody::hash::object_hash(&bytes);
        hash.0[3] ^= 1;
        objects.insert(custody::archive::segment(at.0, at.1, hash), bytes);
    }
    objects
}

/// The auditor holds another policy than the archive's.
pub(super) fn change_policy(name: &str, policy: &mut Policy) {
    match name {
        "policy-of-another-root" => {
            for root in &mut policy.roots {
                root.public_key = custody::id::hex(&keys::public("impostor").to_bytes());
            }
        }
        "policy-of-another-successor" => {
            for root in &mut policy.roots {
                root.successor_hash = custody::id::hex(&[7; 32]);
            }
        }
        "policy-of-another-origin" => "ledger.example/other".clone_into(&mut policy.origin),
        "policy-names-an-absent-workspace" => {
            policy.scope = Scope::Workspaces(vec![keys::workspace("delta").to_string()]);
        }
        "policy-knows-another-witness-key" => {
            // A policy that names a key or a name twice is unusable, and then there is nothing to find.
            for (at, witness) in policy.witnesses.iter_mut().enumerate() {
                witness.public_key = custody::id::hex(&keys::public(&format!("impostor {at}")).to_bytes());
            }
        }
        "policy-wants-a-witness-that-never-signed" => {
            for (at, witness) in policy.witnesses.iter_mut().enumerate() {
                witness.name = format!("witness.example/silent-{at}");
            }
        }
        "policy-requires-nothing" => policy.required.clear(),
        "policy-requires-a-claim-twice" => policy.required.push(Claim::Unaltered),
        "policy-names-a-workspace-twice" => {
            policy.scope = Scope::Workspaces(vec![keys::workspace("alpha").to_string(); 2]);
        }
        "policy-wants-a-younger-word" => policy.greatest_age_seconds = 60,
        _ => {}
    }
}

/// A known file, written differently.
pub(super) fn change_known(file: &mut Vec<u8>, edit: &str) -> Result<(), String> {
    match edit {
        // A checkpoint beside it, which speaks of all workspaces, has to keep its own.
        "no-newline" if file.starts_with(b"custody/") => drop(file.pop()),
        "no-newline" => {}
        "two-newlines" => file.push(b'\n'),
        "carriage-return" => {
            file.pop();
            file.extend_from_slice(b"\r\n");
        }
        // U+00A0 is white space to some languages and not to others.
        "no-break-space" => {
            file.pop();
            file.extend_from_slice("\u{a0}\n".as_bytes());
        }
        // So is the information separator, the other way round.
        "information-separator" => {
            file.pop();
            file.extend_from_slice(b"\x1f\n");
        }
        "two-spaces" => {
            let at = file.iter().position(|byte| *byte == b' ').ok_or("no space")?;
            file.insert(at, b' ');
        }
        "head-of-the-open-segment" | "superseded-head" => {
            // A checkpoint beside it stays what it is.
            if file.starts_with(b"custody/v1/receipt ") {
                *file = again::receipt(edit).ok_or("no such receipt")?;
            }
        }
        "too-long" => file.resize(custody::verify::KNOWN_BYTES_MAX + 1, b'\n'),
        _ => return Err(format!("no such edit of a known file: {edit}")),
    }
    Ok(())
}
