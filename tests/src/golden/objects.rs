//! Objects in memory as an archive, and as a folder.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use custody::{
    head::to_path,
    merkle::{SegmentTree, Tree},
    verify::{Archive, Unreadable},
    wire,
};
use prost::Message as _;

use super::{
    keys,
    ledger::{Committed, Ledger},
    render::Rendered,
};

/// An archive in memory.
#[derive(Clone, Debug, Default)]
pub struct Objects(pub BTreeMap<String, Bytes>);

impl Objects {
    /// Reads a folder.
    ///
    /// # Errors
    /// What the file system says.
    pub fn read(folder: &Path) -> io::Result<Self> {
        let mut objects = BTreeMap::new();
        read_below(folder, "", &mut objects)?;
        Ok(Self(objects))
    }
}

fn read_below(folder: &Path, prefix: &str, objects: &mut BTreeMap<String, Bytes>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            read_below(&entry.path(), &format!("{name}/"), objects)?;
        } else {
            objects.insert(name, fs::read(entry.path())?.into());
        }
    }
    Ok(())
}

impl Archive for Objects {
    fn get(&self, name: &str) -> Result<Option<Bytes>, Unreadable> {
        Ok(self.0.get(name).cloned())
    }

    fn list(&self, folder: &str) -> Result<Vec<String>, Unreadable> {
        let prefix = format!("{folder}/");
        let below = self.0.range(prefix.clone()..).map_while(|(name, _)| name.strip_prefix(&prefix));
        Ok(below.map(str::to_owned).collect())
    }

    fn expand(&self, frame: &[u8], length: u64) -> Option<Bytes> {
        verifier::reader::expand(frame, length)
    }
}

/// Writes one file and the folders above it.
///
/// # Errors
/// What the file system says.
pub fn write_one(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::File::create(path)?.write_all(bytes)
}

/// Writes all objects below a folder.
///
/// # Errors
/// What the file system says.
pub fn write_all(objects: &BTreeMap<String, Bytes>, folder: &Path) -> io::Result<()> {
    objects.iter().try_for_each(|(name, bytes)| write_one(&folder.join(name), bytes))
}

/// Files for `--known`, by name: checkpoints of three sizes, heads, and a receipt.
pub fn known_files(ledger: &Ledger, rendered: &Rendered) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let sizes: Vec<u64> = ledger.publications.iter().map(|publication| publication.checkpoint.size).collect();
    let places = [("oldest", sizes.first()), ("middle", sizes.get(sizes.len() / 2)), ("newest", sizes.last())];
    for (name, size) in places {
        let object = size.and_then(|size| rendered.objects.get(&custody::archive::checkpoint(*size)));
        files.extend(object.map(|bytes| (format!("checkpoint-{name}"), bytes.to_vec())));
    }
    for (workspace, gateway) in [("alpha", "g1"), ("alpha", "g2"), ("beta", "h1")] {
        let head = ledger.held_head(workspace, gateway);
        let line = format!("custody/v1/head {}\n", STANDARD.encode(&head));
        files.insert(format!("head-{workspace}-{gateway}"), line.into_bytes());
    }
    files.extend(receipt(ledger).map(|bytes| ("receipt-beta-h1".to_owned(), bytes)));
    files
}

/// The receipt that the last batch of beta's first gateway got.
fn receipt(ledger: &Ledger) -> Option<Vec<u8>> {
    let signed_head = ledger.held_head("beta", "h1");
    let newest = ledger.labels.iter().filter(|(label, _)| label.starts_with("beta/h1/")).max_by_key(|(_, at)| **at);
    let (label, (id, segment, leaf)) = newest?;
    let workspace = ledger.workspaces.iter().find(|w| w.id == *id)?;
    let leaves = &workspace.segments.get(usize::try_from(*segment).ok()?)?.leaves;
    let tree: Tree<SegmentTree> = leaves.iter().map(Committed::hash).collect();
    let committed = leaves.get(*leaf)?;
    let mut parts = label.split('/').skip(2);
    let inclusion = wire::BatchInclusion {
        version: 1,
        epoch: keys::epoch(parts.next()?).into(),
        batch_number: parts.next()?.parse().ok()?,
        segment: *segment,
        leaf_index: *leaf as u64,
        first_position: committed.leaf.first_position,
        received_at: committed.leaf.received_at,
        term: committed.leaf.term,
        path: to_path(&tree.inclusion(*leaf as u64, *leaf as u64 + 1)?),
        ..Default::default()
    };
    let receipt = wire::Receipt { version: 1, signed_head, consistency: None, batches: vec![inclusion] };
    Some(format!("custody/v1/receipt {}\n", STANDARD.encode(receipt.encode_to_vec())).into_bytes())
}
