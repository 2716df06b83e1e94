//! What people read: the only file of the command line that prints.

use std::io::Write as _;

/// A line of a command's result. Whoever reads no further (`head`) has seen enough.
pub(super) fn say(line: &str) {
    writeln!(std::io::stdout(), "{line}").ok();
}

/// Bytes of a file that a command gives.
pub(super) fn write(bytes: &[u8]) -> std::io::Result<()> {
    std::io::stdout().write_all(bytes)
}

/// Why a command failed, and what to do: to standard error.
pub(super) fn complain(text: &str) {
    eprintln!("ledger: {text}");
}

/// A wrong command line, or the help that was asked for.
pub(super) fn usage(why: &clap::Error) {
    if let Err(why) = why.print() {
        complain(&format!("failed to print: {why}"));
    }
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
