//! Progress on a terminal: how many records were read, how fast, and how many are known to come. Quiet elsewhere.
//!
//! It looks on from outside: an archive around the archive that counts what passes.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _, Write as _},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use custody::{
    segment::Seal,
    verify::{Archive, Unreadable},
};

/// Time between two drawings of the bar.
const REDRAW: Duration = Duration::from_millis(100);
/// Width of the bar in characters.
const WIDTH: usize = 30;

/// An archive that draws a bar while it is read.
#[derive(Debug)]
pub struct Watched<A> {
    inner: A,
    state: Option<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    began: Instant,
    drawn: Option<Instant>,
    /// Records of segments whose seals were seen and which were not read yet, by the end of the segment's name.
    expected: BTreeMap<String, u64>,
    known: u64,
    read: u64,
}

impl<A> Watched<A> {
    /// Draws only if standard error is a terminal.
    pub fn new(inner: A) -> Self {
        let state = State { began: Instant::now(), drawn: None, expected: BTreeMap::new(), known: 0, read: 0 };
        Self { inner, state: io::stderr().is_terminal().then(|| Mutex::new(state)) }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if self.state.is_some() {
            drop(write!(io::stderr().lock(), "\r\x1b[K"));
        }
    }
}

impl State {
    fn see(&mut self, name: &str, bytes: &[u8]) {
        let Some((folder, last)) = name.rsplit_once('/') else { return };
        if folder.ends_with("/seals") {
            if let Ok(seal) = Seal::parse(bytes) {
                let key = format!("{}-{}", seal.segment, seal.object_sha256);
                if self.expected.insert(key, seal.record_count).is_none() {
                    self.known = self.known.saturating_add(seal.record_count);
                }
            }
        } else if let Some(records) = self.expected.remove(last).filter(|_| folder.ends_with("/segments")) {
            self.read = self.read.saturating_add(records);
        }
        let now = Instant::now();
        if self.drawn.is_none_or(|drawn| now.duration_since(drawn) >= REDRAW) {
            self.drawn = Some(now);
            drop(write!(io::stderr().lock(), "\r\x1b[K{}", self.bar(now.duration_since(self.began))));
        }
    }

    fn bar(&self, elapsed: Duration) -> String {
        let part = self.read as f64 / self.known.max(1) as f64;
        let full = ((part * WIDTH as f64) as usize).min(WIDTH);
        let rate = self.read as f64 / elapsed.as_secs_f64().max(0.001);
        let (done, left) = ("#".repeat(full), ".".repeat(WIDTH - full));
        format!("[{done}{left}] {} of {} records, {rate:.0}/s", self.read, self.known)
    }
}

impl<A: Archive> Archive for Watched<A> {
    fn get(&self, name: &str) -> Result<Option<Bytes>, Unreadable> {
        let bytes = self.inner.get(name)?;
        if let (Some(state), Some(bytes)) = (&self.state, &bytes) {
            state.lock().unwrap_or_else(PoisonError::into_inner).see(name, bytes);
        }
        Ok(bytes)
    }

    fn list(&self, folder: &str) -> Result<Vec<String>, Unreadable> {
        self.inner.list(folder)
    }

    fn expand(&self, frame: &[u8], length: u64) -> Option<Bytes> {
        self.inner.expand(frame, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_says_how_far_and_how_fast() {
        let state =
            State { began: Instant::now(), drawn: None, expected: BTreeMap::new(), known: 2_000_000, read: 500_000 };
        let bar = state.bar(Duration::from_millis(500));
        assert_eq!(bar, "[#######.......................] 500000 of 2000000 records, 1000000/s");
    }
}
