//! What the writer shows of itself.

use super::Writer;
use crate::seen::{Seen, Standing};

impl Writer {
    /// Where it shows how it goes.
    pub fn seen(&self) -> Seen {
        self.seen.clone()
    }

    /// Shows where it stands.
    pub(super) fn show(&self) {
        let state = self.spool.state();
        self.seen.stands(Standing {
            epoch: state.place.as_ref().map(|place| place.epoch),
            next_record: state.next_number,
            running: self.running.len() as u64,
            unsigned: state.pending.len() as u64,
            unshipped: state.unreceived.len() as u64,
            held: state.held.len() as u64,
            spool_bytes: self.spool.bytes(),
        });
    }
}
