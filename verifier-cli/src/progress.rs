//! Progress on a terminal: how many records were read, how fast, and how many are to come. Quiet elsewhere.
//!
//! It looks on from outside: an archive around the archive that counts what passes. The total comes from the seals in scope,
//! as they lie in the archive, before anything is verified: a lie in them makes the bar wrong and nothing else.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _, Write as _},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use custody::{
    policy::Policy,
    segment::Seal,
    verify::{Archive, Options, Unreadable},
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
    drawn: Option<Instant>,
    /// When the first segment was asked for; before that it is the log that is read.
    began: Option<Instant>,
    /// Records of segments whose seals were seen and which were not read yet, by the end of the segment's name.
    expected: BTreeMap<String, u64>,
    /// Records in scope, where that can be known.
    total: Option<u64>,
    read: u64,
}

impl<A: Archive> Watched<A> {
    /// Draws only if standard error is a terminal.
    pub fn new(inner: A, policy: &Policy, options: &Options) -> Self {
        let watch = || {
            draw("reading the seals");
            // Whoever verifies says what cannot be read.
            let total = records_in_scope(&inner, policy, options).ok().flatten();
            Mutex::new(State { drawn: None, began: None, expected: BTreeMap::new(), total, read: 0 })
        };
        let state = io::stderr().is_terminal().then(watch);
        Self { inner, state }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if self.state.is_some() {
            draw("");
        }
    }
}

fn draw(line: &str) {
    // Nobody sees a bar when standard error is gone.
    drop(write!(io::stderr().lock(), "\r\x1b[K{line}"));
}

/// Records in the segments that this question asks to read; `None` where only the log would say it, as for an earlier size.
///
/// # Errors
/// [`Unreadable`].
pub fn records_in_scope(objects: &impl Archive, policy: &Policy, options: &Options) -> Result<Option<u64>, Unreadable> {
    if options.at_size.is_some() {
        return Ok(None);
    }
    let scope = policy.workspaces().map_err(|why| Unreadable(why.to_string()))?;
    let folders = match scope {
        Some(ids) => ids.iter().map(|id| format!("workspaces/{id}/seals")).collect(),
        None => vec!["workspaces".to_owned()],
    };
    // Which segments are read depends on the times of all.
    let mut seals: BTreeMap<[u8; 16], Vec<Seal>> = BTreeMap::new();
    let mut outcome = Ok(());
    for folder in folders {
        objects.each(&folder, &mut |name| {
            let name = format!("{folder}/{name}");
            if outcome.is_err() || !matches!(name.split('/').collect::<Vec<_>>().as_slice(), [_, _, "seals", _]) {
                return;
            }
            match objects.get(&name) {
                Ok(bytes) => {
                    if let Some(seal) = bytes.and_then(|bytes| Seal::parse(&bytes).ok()) {
                        seals.entry(seal.workspace.0).or_default().push(seal);
                    }
                }
                Err(why) => outcome = Err(why),
            }
        })?;
    }
    outcome?;
    let mut total = 0_u64;
    for of_one in seals.values_mut() {
        of_one.sort_unstable_by_key(|seal| seal.segment);
        let run = of_one.get(options.run_of(of_one)).unwrap_or_default();
        total = run.iter().fold(total, |sum, seal| sum.saturating_add(seal.record_count));
    }
    Ok(Some(total))
}

impl State {
    /// Notes that an object will be read.
    fn ask(&mut self, name: &str) {
        if self.began.is_none() && name.contains("/segments/") {
            self.began = Some(Instant::now());
        }
    }

    fn see(&mut self, name: &str, bytes: &[u8]) {
        let Some((folder, last)) = name.rsplit_once('/') else { return };
        if folder.ends_with("/seals") {
            if let Ok(seal) = Seal::parse(bytes) {
                self.expected.insert(format!("{}-{}", seal.segment, seal.object_sha256), seal.record_count);
            }
        } else if let Some(records) = self.expected.remove(last).filter(|_| folder.ends_with("/segments")) {
            self.read = self.read.saturating_add(records);
        }
        let now = Instant::now();
        if self.drawn.is_none_or(|drawn| now.duration_since(drawn) >= REDRAW) {
            self.drawn = Some(now);
            draw(&self.line(now));
        }
    }

    fn line(&self, now: Instant) -> String {
        let Some(began) = self.began else { return "reading the log".to_owned() };
        let rate = self.read as f64 / now.duration_since(began).as_secs_f64().max(0.001);
        let Some(total) = self.total else { return format!("{} records, {rate:.0}/s", self.read) };
        let part = self.read as f64 / total.max(1) as f64;
        let full = ((part * WIDTH as f64) as usize).min(WIDTH);
        let (done, left) = ("#".repeat(full), ".".repeat(WIDTH - full));
        format!("[{done}{left}] {} of {total} records, {rate:.0}/s", self.read)
    }
}

impl<A: Archive> Watched<A> {
    fn state(&self, note: impl FnOnce(&mut State)) {
        if let Some(state) = &self.state {
            note(&mut state.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

impl<A: Archive> Archive for Watched<A> {
    fn get(&self, name: &str) -> Result<Option<Bytes>, Unreadable> {
        self.state(|state| state.ask(name));
        let bytes = self.inner.get(name)?;
        if let Some(bytes) = &bytes {
            self.state(|state| state.see(name, bytes));
        }
        Ok(bytes)
    }

    fn list(&self, folder: &str) -> Result<Vec<String>, Unreadable> {
        self.inner.list(folder)
    }

    fn each(&self, folder: &str, see: &mut dyn FnMut(&str)) -> Result<(), Unreadable> {
        self.inner.each(folder, see)
    }

    fn expand(&self, frame: &[u8], length: u64) -> Option<Bytes> {
        self.inner.expand(frame, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far_and_how_fast() {
        let began = Instant::now();
        let mut state = State { drawn: None, began: None, expected: BTreeMap::new(), total: Some(2_000_000), read: 0 };
        let line = |state: &State| state.line(began + Duration::from_millis(500));
        assert_eq!(line(&state), "reading the log");
        (state.began, state.read) = (Some(began), 500_000);
        assert_eq!(line(&state), "[#######.......................] 500000 of 2000000 records, 1000000/s");
        state.total = None;
        assert_eq!(line(&state), "500000 records, 1000000/s");
        (state.total, state.read) = (Some(0), 0);
        assert_eq!(line(&state), "[..............................] 0 of 0 records, 0/s");
    }
}
