//! Canaries: texts that may be in no file of ours, and the search for them.
//!
//! What must hold: a search finds a text as it is, in hex, and in base64 at any of the three places in a group; and a segment
//! object is searched as what it is packed from, because compression hides what it holds.

use std::{
    fs::create_dir_all,
    path::{Path, PathBuf},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use custody::{id::hex, segment::Object, verify::Archive as _};
use verifier::reader::Folder;

use crate::process::write;

/// What every canary has in it: letters and digits alone, which no escape and no change of case spells otherwise.
pub const CORE: &str = "kanarie7f3a";

/// The canary of this kind: text that a record may not hold as it is, because `~` is none of its characters.
pub fn canary(kind: &str) -> String {
    format!("{CORE}-{kind}~")
}

/// Every file under a folder.
pub fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder to search") {
        let path = entry.expect("an entry of it").path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

/// How these bytes may stand in a file.
fn forms(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = vec![bytes.to_vec(), hex(bytes).into_bytes(), hex(bytes).to_ascii_uppercase().into_bytes()];
    for skip in 0..3 {
        // Whole groups alone, which no neighbour changes.
        let from = &bytes[skip..];
        let groups = &from[..from.len() / 3 * 3];
        forms.push(STANDARD_NO_PAD.encode(groups).into_bytes());
        forms.push(URL_SAFE_NO_PAD.encode(groups).into_bytes());
    }
    forms.sort();
    forms.dedup();
    forms
}

/// Where one of the forms, which are not empty, stands in these bytes, and how long it is.
fn stands<'a>(forms: &'a [Vec<u8>], bytes: &[u8]) -> Option<(usize, usize)> {
    let mut by_first: [Vec<&'a [u8]>; 256] = std::array::from_fn(|_| Vec::new());
    for form in forms {
        by_first[usize::from(form[0])].push(form);
    }
    let at = |(at, first): (usize, &u8)| {
        let form = by_first[usize::from(*first)].iter().find(|form| bytes[at..].starts_with(form))?;
        Some((at, form.len()))
    };
    bytes.iter().enumerate().find_map(at)
}

/// The files under a folder that have one of these texts, each with what stands around it there.
pub fn found_in(folder: &Path, texts: &[&[u8]]) -> Vec<(PathBuf, String)> {
    let forms: Vec<Vec<u8>> = texts.iter().flat_map(|text| forms(text)).collect();
    let (mut all, mut found) = (Vec::new(), Vec::new());
    files(folder, &mut all);
    for path in all {
        // What ends in the meantime (a socket, a file of the store that is no longer needed) holds nothing any more.
        let Ok(bytes) = std::fs::read(&path) else { continue };
        if let Some((at, length)) = stands(&forms, &bytes) {
            let around = &bytes[at.saturating_sub(80)..bytes.len().min(at + length + 40)];
            found.push((path, String::from_utf8_lossy(around).into_owned()));
        }
    }
    found
}

/// No file under the folder has one of these texts, in any of their forms.
///
/// # Panics
/// When one has, or there are hardly any files.
pub fn nowhere(folder: &Path, texts: &[&[u8]]) {
    let mut all = Vec::new();
    files(folder, &mut all);
    assert!(all.len() > 10, "too few files: {all:?}");
    let found = found_in(folder, texts);
    assert!(found.is_empty(), "what may be nowhere is in {found:#?}");
}

/// Unpacks all segment objects of an archive into a folder, a file for each.
///
/// # Panics
/// When one cannot be unpacked, or there is none.
pub fn unpack(archive: &Path, into: &Path) {
    create_dir_all(into).expect("a folder for what is unpacked");
    let (reader, mut all) = (Folder::open(archive).expect("an archive"), Vec::new());
    files(&archive.join("workspaces"), &mut all);
    all.retain(|path| path.parent().is_some_and(|folder| folder.ends_with("segments")));
    assert!(!all.is_empty(), "the archive has no segment");
    for (path, number) in all.iter().zip(0..) {
        let object = Object::parse(std::fs::read(path).expect("a segment").into()).expect("a segment object");
        let frame = |frame| reader.expand(object.frame(frame).expect("its frame"), frame.content_length);
        let content: Vec<u8> = object.frames.iter().flat_map(|of| frame(of).expect("the frame expands")).collect();
        write(&into.join(format!("segment-{number}")), &content);
    }
}
