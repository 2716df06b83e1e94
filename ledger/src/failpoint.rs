//! Named places between two durable steps where a test may kill the process.
//!
//! `CUSTODY_FAILPOINT=name:n` kills this process with SIGKILL's effect (abort without unwinding or flushing) at the n-th
//! passage of `name`; `name:n:panic` breaks off the thread there, and nothing else. Set by tests of crashes alone; without the
//! variable a passage costs one load.
//!
//! `CUSTODY_CLOCK_SHIFT=FILE` adds the microseconds in FILE, if there is one, to what the wall clock says: a test makes it jump.
//! As with the kill, whoever can set this process's environment can do worse.

use std::{
    path::PathBuf,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// Name, passage, and whether the thread alone ends.
static TARGET: LazyLock<Option<(String, u64, bool)>> = LazyLock::new(|| {
    let setting = std::env::var("CUSTODY_FAILPOINT").ok()?;
    let (name, count) = setting.split_once(':')?;
    let thread = count.strip_suffix(":panic");
    Some((name.to_owned(), thread.unwrap_or(count).parse().ok()?, thread.is_some()))
});
static PASSED: AtomicU64 = AtomicU64::new(0);

static CLOCK_SHIFT: LazyLock<Option<PathBuf>> =
    LazyLock::new(|| std::env::var_os("CUSTODY_CLOCK_SHIFT").map(PathBuf::from));

/// Microseconds by which a test moves the wall clock.
pub fn clock_shift_us() -> i64 {
    let Some(file) = CLOCK_SHIFT.as_ref() else { return 0 };
    std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// All names, in the order of the data's way.
pub const NAMES: &[&str] = &[
    "start-after-term",
    "start-after-claim",
    "start-before-writer",
    "store-before-commit",
    "store-after-commit",
    "commit-before-answer",
    "index-before-commit",
    "index-prepared",
    "index-after-commit",
    "day-over",
    "day-merging",
    "day-merged",
    "day-floor",
    "day-removed",
    "day-rows",
    "watch-raised",
    "watch-told",
    "watch-condition-raised",
    "watch-condition-told",
    "watch-webhook-taken",
    "seal-before-staging",
    "seal-after-staging",
    "seal-after-seal",
    "archive-after-segment",
    "archive-after-seal",
    "publish-before-claim",
    "publish-after-claim",
    "publish-after-entries",
    "publish-between-tiles",
    "publish-after-tiles",
    "publish-after-checkpoint",
    "publish-after-mark",
];

/// Dies here if a test asked for it.
pub fn hit(name: &str) {
    if let Some((target, count, thread)) = TARGET.as_ref()
        && target == name
        && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *count
    {
        if *thread {
            std::panic::panic_any("a failpoint");
        }
        std::process::abort();
    }
}
