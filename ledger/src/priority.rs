//! How far threads stand back from intake and from pages.

/// Followers, and sums over everything.
pub const BEHIND: i32 = 10;
/// What nobody waits for.
pub const LAST: i32 = 19;

/// Sets this thread back, and the threads that it makes: where processors are short, others go first.
pub fn stand_back(who: &str, nice: i32) {
    if let Err(why) = rustix::process::setpriority_process(None, nice) {
        tracing::warn!(who, %why, "it runs at the priority of everything else");
    }
}
