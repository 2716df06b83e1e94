//! Scenarios of silence: somebody is not heard any more, or never was, and the ledger, which owns nearly all times in the
//! archive, would have nobody notice.

use custody::wire::Role;

use super::scenario::sequel;
use crate::golden::{
    DAY,
    ledger::{Batch, Hooks, Ledger},
    records,
};

/// The end of the year 9999 in microseconds: the last time that the format has.
const LAST_TIME: u64 = 253_402_300_799_999_999;

/// The hooks of a scenario.
pub(super) fn hooks(name: &str) -> Option<Hooks> {
    Some(match name {
        // The golden story as it is; only the question comes later, or is about another size.
        "nothing-more" => Hooks::default(),
        "gateway-of-which-nothing-is-taken" => sequel(|l| {
            l.enrol(Some("alpha"), None, Role::Gateway, "g8", "g8");
            l.cut_all();
        }),
        "ledgers-clock-stands-still" => sequel(|l| {
            let then = l.now();
            l.wait(5 * DAY);
            another_writes(l);
            l.set_clock(then);
            // What the gateway signed tells the day; all that the ledger writes beside it does not.
            if let Some(leaf) = l.workspace("alpha").open.last_mut() {
                leaf.leaf.received_at = then;
            }
            l.cut_all();
        }),
        "last-word-from-the-future" => sequel(|l| {
            // Whose batch came in the year 9999 cannot have been silent since.
            let calls = records::calls(20, 2, l.now());
            l.submit_batch("beta", Batch::new("h1", "f2", calls));
            if let Some(leaf) = l.workspace("beta").open.last_mut() {
                leaf.leaf.received_at = LAST_TIME;
            }
            l.cut_all();
            l.wait(5 * DAY);
            another_writes(l);
            l.cut_all();
        }),
        _ => return None,
    })
}

/// A gateway that the ledger lets go on, so that the archive looks alive.
fn another_writes(l: &mut Ledger) {
    let calls = records::calls(8, 2, l.now());
    l.submit_batch("alpha", Batch::new("g6", "s1", calls));
}
