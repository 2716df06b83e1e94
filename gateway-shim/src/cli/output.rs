//! What people read: the only file of the command line that prints, and the words that several verbs share.

use std::io::Write as _;

const SECOND_US: u64 = 1_000_000;

/// What a verb found or did, in the command line's own voice: to standard error, so that a result on standard output stays
/// alone.
#[expect(clippy::print_stderr, reason = "the command line's own voice")]
pub fn say(text: &str) {
    eprintln!("gateway-shim: {text}");
}

/// A verb's result. Whoever reads no further (`head`) has seen enough.
pub(super) fn print(text: &str) {
    writeln!(std::io::stdout(), "{}", text.trim_end()).ok();
}

/// A file's text, to the byte: its SHA-256 is the file's.
pub(super) fn print_exactly(text: &str) {
    exactly(&mut std::io::stdout(), text);
}

fn exactly(out: &mut impl std::io::Write, text: &str) {
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).ok();
}

/// Columns side by side, as wide as they need to be; the first row is the heading.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// A row of a table.
pub(super) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.into_iter().map(str::to_owned).collect()
}

/// How long ago a moment was.
pub(super) fn ago(time_us: u64, now_us: u64) -> String {
    match time_us {
        0 => "never".to_owned(),
        _ => format!("{} ago", span(now_us.saturating_sub(time_us) / SECOND_US)),
    }
}

/// A moment in the future, or that it is past.
pub(super) fn until(time_us: u64, now_us: u64) -> String {
    let left = time_us.checked_sub(now_us).map_or_else(|| "EXPIRED".to_owned(), |left| span(left / SECOND_US));
    format!("{} ({left})", crate::clock::display(time_us))
}

/// Seconds as the greatest whole unit.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Bytes in the unit that reads best.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..=10_239 => format!("{bytes} bytes"),
        10_240..=10_485_759 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

#[cfg(test)]
mod tests {
    /// Whoever puts it back in a file puts back what is in force.
    #[test]
    fn a_files_text_is_printed_to_the_byte() {
        for text in ["", "a", "a\n", "\n a \n\n"] {
            let mut out = Vec::new();
            super::exactly(&mut out, text);
            assert_eq!(out, text.as_bytes());
        }
    }
}
