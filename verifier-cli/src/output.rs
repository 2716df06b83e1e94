//! The only place that writes to the terminal or makes files.

use std::{
    borrow::Cow,
    fmt::Display,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use crate::failure::Failure;

/// Text from outside (an archive, evidence, a policy, the name of a file) as one line that a terminal shows and does not obey:
/// what has no picture of its own (control characters, line breaks, what turns the direction of writing, unassigned ones) is
/// written `\\u001b`, as in JSON. Whatever prints such text calls this.
pub fn plain(text: impl Display) -> String {
    escaped(&text.to_string(), |c| !has_picture(c)).into_owned()
}

/// Whole answers and messages, whose line breaks are ours: nothing that a terminal obeys leaves this program, even where
/// [`plain`] was forgotten. In JSON such a character stands within strings alone, where its escape means the same.
fn harmless(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c != '\n' && !has_picture(c))
}

fn escaped(text: &str, is_bad: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(&is_bad) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len().saturating_mul(2));
    for c in text.chars() {
        if is_bad(c) {
            out.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Whether it is a space or something that is seen. The standard library knows which characters are; that it asks whether a
/// mark has a letter before it is the reason for the letter.
fn has_picture(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    let (mut pair, mut bytes) = (String::from("a"), [0; 4]);
    pair.push_str(c.encode_utf8(&mut bytes));
    pair.escape_debug().eq(pair.chars())
}

/// Writes an answer to standard output; `false` when the reader of a pipe has gone, as `head` does when it has enough: that is
/// no failure, and what is found to be so stays so.
///
/// # Errors
/// [`io::Error`] of any other kind.
pub fn answer(text: &str) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    is_read(out.write_all(harmless(text).as_bytes()).and_then(|()| out.flush()))
}

/// The same for what somebody else wrote.
///
/// # Errors
/// As above.
pub fn is_read(written: io::Result<()>) -> io::Result<bool> {
    match written {
        Err(why) if why.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true),
    }
}

/// Writes a message to standard error.
pub fn message(text: &str) {
    // Nobody is left to be told when standard error is gone.
    drop(writeln!(io::stderr().lock(), "{}", harmless(text)));
}

/// Makes a file that must not be there yet, and its folders; it is on disk, under its name, when this returns.
///
/// # Errors
/// [`Failure::Unreadable`], also when it is there.
pub fn create(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let failed = |why: io::Error| {
        let hint = if why.kind() == io::ErrorKind::AlreadyExists {
            "\nhint: nothing is overwritten; name a new file"
        } else {
            ""
        };
        Failure::Unreadable(format!("cannot write {}: {why}{hint}", plain(path.display())))
    };
    let folder = folder_of(path);
    make_folder(folder).map_err(failed)?;
    let mut file = OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    sync_folder(folder).map_err(failed)
}

/// Where a file or folder is.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// Makes a folder and those above it; each new one's name is on disk when this returns.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() || folder == Path::new(".") {
        return Ok(());
    }
    let above = folder_of(folder);
    make_folder(above)?;
    match fs::create_dir(folder) {
        Err(why) if why.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        made => made,
    }?;
    sync_folder(above)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

/// Files below a folder whose names end so, sorted; no link is followed.
///
/// # Errors
/// [`Failure::Unreadable`].
pub fn files(folder: &Path, suffix: &str) -> Result<Vec<PathBuf>, Failure> {
    let failed = |why: io::Error| Failure::Unreadable(format!("cannot list {}: {why}", plain(folder.display())));
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && entry.file_name().to_string_lossy().ends_with(suffix) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Reads a file of at most `limit` bytes that the caller named.
///
/// # Errors
/// [`Failure::Unreadable`].
pub fn read(path: &Path, limit: usize) -> Result<Vec<u8>, Failure> {
    use io::Read as _;
    let shown = plain(path.display());
    let failed = |why: io::Error| {
        Failure::Unreadable(format!("cannot read {shown}: {why}\nhint: name a file that is there and may be read"))
    };
    // A pipe without a writer would keep us waiting, and a device never ends.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        let hint = "hint: of a pipe, a device or a folder nothing is read; save it to a file and name that";
        return Err(Failure::Unreadable(format!("{shown}: not a regular file\n{hint}")));
    }
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(failed)?;
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > limit {
        return Err(Failure::Unreadable(format!(
            "{shown} is longer than {limit} bytes\nhint: is it the file that you mean?"
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_written_out() {
        for (outside, shown) in [
            ("acme/eu 1 \\ \"ü\" 日本 e\u{301} हिन्दी", "acme/eu 1 \\ \"ü\" 日本 e\u{301} हिन्दी"),
            ("\u{1b}[2J\u{1b}]0;x\u{7}", "\\u001b[2J\\u001b]0;x\\u0007"),
            ("a\rb\nc\td\0\u{7f}", "a\\u000db\\u000ac\\u0009d\\u0000\\u007f"),
            ("\u{9b}2J", "\\u009b2J"),
            ("\u{202e}txt\u{2066}\u{200f}\u{200b}\u{2028}\u{feff}", "\\u202etxt\\u2066\\u200f\\u200b\\u2028\\ufeff"),
            ("\u{e0041}", "\\udb40\\udc41"),
        ] {
            assert_eq!(plain(outside), shown);
        }
        assert_eq!(harmless("a\n\u{1b}b\n"), "a\n\\u001bb\n");
    }

    #[test]
    fn json_means_the_same_when_it_is_harmless() {
        let value = serde_json::json!({"a\u{202e}": "\u{9b}\u{1b}\n\u{e0041}\u{7f}"});
        let text = serde_json::to_string_pretty(&value).unwrap();
        let shown = harmless(&text);
        assert!(shown.chars().all(|c| c == '\n' || has_picture(c)));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}
