//! What a replay or a backtest takes: a store of so many records of a company, walked from the first as `ledger rule backtest` walks it.
//!
//! What must hold: the store is read from disk, as a replay reads it; nothing is in memory but what the walk itself holds.

use std::{path::Path, sync::Arc, time::Instant};

use ::ledger::{
    store::Store,
    tail::Tail,
    watch::{engine::Engine, replay::Replay, rules},
};
use bytes::Bytes;
use custody::record;
use custody_tests::company::{Company, Plan};
use serde_json::json;

use super::walk::team_id;
use crate::{Done, print, stored};

/// Records of a batch, and batches of a write.
const BATCH: usize = 256;
const WRITE: u64 = 64;
/// Commits of a step, as the service takes them.
const STEP: u64 = 2_000;
/// Memory of the store, in bytes.
const MEMORY: usize = 64 << 20;

fn fill(store: &Store, records: u64) -> Done<u64> {
    let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    let mut company = Company::new(Plan::of(1, 400, 3_650)).take(usize::try_from(records)?);
    let (mut committed, mut filled) = (0_u64, 0_u64);
    let mut change = store.change();
    loop {
        let items: Vec<_> = company.by_ref().take(BATCH).collect();
        let Some(last) = items.last() else { break };
        let received_at = last.received_at;
        let records: Vec<Bytes> = items.into_iter().map(|item| record::encode(item.record).into()).collect();
        let (batch, leaf) = stored::batch(&key, team_id(0), (committed, filled), received_at, &records)?;
        stored::put(&mut change, committed, &batch, &leaf);
        committed += 1;
        filled += records.len() as u64;
        if committed.is_multiple_of(WRITE) {
            store.commit(std::mem::replace(&mut change, store.change()))?;
        }
    }
    store.commit(change)?;
    Ok(filled)
}

/// Fills a store and walks it.
pub(super) fn run(folder: &Path, records: u64) -> Done {
    let store = Arc::new(Store::open(&folder.join("replayed"), MEMORY, MEMORY)?);
    let filled = fill(&store, records)?;
    let tail = Tail::open(&store)?;
    let engine = Engine::new(&rules::all(None)?)?;
    let began = Instant::now();
    let mut replay = Replay::new(&tail, None, engine, Some(0))?;
    let mut alarms = 0;
    while let Some((told, more)) = replay.step(STEP, &|| false)? {
        alarms += told.len();
        if !more {
            break;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    print(
        &json!({ "replayed": filled, "seconds": seconds, "records_per_second": filled as f64 / seconds, "alarms": alarms }),
    );
    Ok(())
}
