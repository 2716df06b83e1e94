//! Runs independent work on all processors, and gives the results in order.
//!
//! Memory is bounded: at most [`AHEAD`] tasks more than there are threads are begun and not yet taken. A task that panics
//! ends the whole, with its panic.

use std::{
    collections::BTreeMap,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use custody::verify::{InTurn, Workers};

/// Results that may wait, in tasks: enough that a short task after a long one keeps its thread busy; each costs up to some
/// 20 MB for a segment of 65,536 leaves: its tree and its headers.
const AHEAD: usize = 1;
/// Greatest number of threads: each holds one segment object in memory, at most 160 MiB and in practice 10 to 20, and one frame.
const THREADS_MAX: usize = 64;

/// As many threads as there are processors.
#[derive(Clone, Copy, Debug)]
pub struct AllCores {
    threads: usize,
}

impl AllCores {
    /// One thread for each processor that this process may use.
    pub fn new() -> Self {
        Self { threads: thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX) }
    }

    /// So many threads.
    pub fn with_threads(threads: usize) -> Self {
        Self { threads: threads.clamp(1, THREADS_MAX) }
    }
}

impl Default for AllCores {
    fn default() -> Self {
        Self::new()
    }
}

struct Shared<R> {
    state: Mutex<Progress<R>>,
    changed: Condvar,
}

struct Progress<R> {
    /// The next task to begin.
    next: usize,
    /// Tasks whose results were taken.
    taken: usize,
    /// No more tasks are begun.
    stopped: bool,
    ready: BTreeMap<usize, R>,
}

impl<R> Shared<R> {
    fn lock(&self) -> MutexGuard<'_, Progress<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, Progress<R>>) -> MutexGuard<'a, Progress<R>> {
        self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// The next task to begin, once there is room for its result.
    fn begin(&self, tasks: usize, ahead: usize) -> Option<usize> {
        let mut state = self.lock();
        loop {
            if state.stopped || state.next >= tasks {
                return None;
            }
            if state.next < state.taken + ahead {
                state.next += 1;
                return Some(state.next - 1);
            }
            state = self.wait(state);
        }
    }

    fn put(&self, at: usize, result: R) {
        self.lock().ready.insert(at, result);
        self.changed.notify_all();
    }

    /// The result of task `at`; `None` when a worker died.
    fn take(&self, at: usize) -> Option<R> {
        let mut state = self.lock();
        loop {
            if let Some(result) = state.ready.remove(&at) {
                state.taken = at + 1;
                self.changed.notify_all();
                return Some(result);
            }
            if state.stopped {
                return None;
            }
            state = self.wait(state);
        }
    }

    fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }
}

/// Stops everybody when its thread ends by a panic, so that nobody waits for a result that never comes.
struct StopOnPanic<'a, R>(&'a Shared<R>);

impl<R> Drop for StopOnPanic<'_, R> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.stop();
        }
    }
}

impl Workers for AllCores {
    fn ordered<T: Sync, R: Send>(&self, tasks: &[T], work: impl Fn(&T) -> R + Sync, mut take: impl FnMut(R) -> bool) {
        let threads = self.threads.min(tasks.len());
        if threads <= 1 {
            return InTurn.ordered(tasks, work, take);
        }
        let progress = Progress { next: 0, taken: 0, stopped: false, ready: BTreeMap::new() };
        let shared = Shared { state: Mutex::new(progress), changed: Condvar::new() };
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let _guard = StopOnPanic(&shared);
                    while let Some(at) = shared.begin(tasks.len(), threads + AHEAD) {
                        let Some(task) = tasks.get(at) else { return };
                        shared.put(at, work(task));
                    }
                });
            }
            let _guard = StopOnPanic(&shared);
            for at in 0..tasks.len() {
                let Some(result) = shared.take(at) else { return };
                if !take(result) {
                    return shared.stop();
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn results_come_in_order_and_few_wait() {
        let (begun, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let tasks: Vec<usize> = (0..500).collect();
        let mut seen = Vec::new();
        AllCores::with_threads(4).ordered(
            &tasks,
            |task| {
                let ahead = begun.fetch_add(1, Ordering::SeqCst) + 1 - taken.load(Ordering::SeqCst);
                // A task counts as taken to the workers a moment before this test counts it.
                assert!(ahead <= 4 + AHEAD + 1, "{ahead} begun and not taken");
                // Uneven work, so that results are ready out of order.
                (0..(task % 7) * 1_000).fold(*task, |sum, at| sum ^ at ^ at)
            },
            |result| {
                taken.fetch_add(1, Ordering::SeqCst);
                seen.push(result);
                true
            },
        );
        assert_eq!(seen, tasks);
    }

    #[test]
    fn a_no_stops_the_work() {
        let begun = AtomicUsize::new(0);
        let tasks: Vec<usize> = (0..1_000).collect();
        let mut seen = 0;
        AllCores::with_threads(3).ordered(
            &tasks,
            |_| begun.fetch_add(1, Ordering::SeqCst),
            |_| {
                seen += 1;
                seen < 5
            },
        );
        assert_eq!(seen, 5);
        assert!(begun.load(Ordering::SeqCst) <= 5 + 3 + AHEAD);
    }

    #[test]
    #[should_panic(expected = "a scoped thread panicked")]
    fn a_panic_ends_it_instead_of_waiting() {
        let tasks: Vec<usize> = (0..100).collect();
        AllCores::with_threads(4).ordered(&tasks, |task| assert_ne!(*task, 17), |()| true);
    }
}
