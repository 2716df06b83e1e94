//! What the machine can do at all, one core, one at a time: the limits beside which the figures stand.

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use ::ledger::store::{Family, Store};
use custody::{
    batch::{Submitted, nonce, record_leaf},
    key::{Context, public, sign},
};
use ed25519_dalek::SigningKey;
use serde_json::json;

use crate::{Done, gateway::Chain, ledger, print, records};

const TIME: Duration = Duration::from_millis(1_500);

/// How often `step` can be done in a second of the clock, and in a second of one core: other programs slow the first alone.
struct Rate {
    clock: f64,
    core: f64,
}

fn rate(step: impl FnMut(u64) -> Done) -> Done<Rate> {
    rate_of(8, step)
}

/// The same, with the clock looked at after every so many steps.
fn rate_of(steps: u64, mut step: impl FnMut(u64) -> Done) -> Done<Rate> {
    let (began, cpu) = (Instant::now(), ledger::cpu_seconds("self")?);
    let mut count = 0;
    while began.elapsed() < TIME {
        for _ in 0..steps {
            step(count)?;
            count += 1;
        }
    }
    let used = ledger::cpu_seconds("self")? - cpu;
    Ok(Rate { clock: count as f64 / began.elapsed().as_secs_f64(), core: count as f64 / used.max(0.01) })
}

/// Prints all of them.
pub(crate) fn run(folder: &Path) -> Done {
    std::fs::create_dir_all(folder)?;
    let mut file = File::create(folder.join("syncs"))?;
    let mut times = hdrhistogram::Histogram::<u64>::new(3)?;
    let syncs = rate(|_| {
        let began = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        times.record(began.elapsed().as_micros() as u64)?;
        Ok(())
    })?;
    let times = [0.5, 0.99, 0.999].map(|share| times.value_at_quantile(share) as f64 / 1e3);
    print(
        &json!({"limit": "fdatasync", "rate": syncs.clock, "p50_ms": times[0], "p99_ms": times[1], "p999_ms": times[2]}),
    );
    for mib in [1, 8] {
        let block = vec![7; mib << 20];
        let synced = rate_of(1, |_| {
            file.write_all(&block)?;
            Ok(file.sync_data()?)
        })?;
        print(&json!({"limit": "synced", "mib": mib, "rate": synced.clock * mib as f64}));
    }
    drop(file);
    std::fs::remove_file(folder.join("syncs"))?;
    cores()?;
    admit()?;
    stores(folder)
}

/// What one core does with signatures and hashes.
fn cores() -> Done {
    let key = SigningKey::from_bytes(&[1; 32]);
    let (header, public) = ([7; 400], public(&key));
    let signature = sign(&key, Context::Batch, &header);
    let verified = rate(|_| match public.verifies(Context::Batch, &header, &signature) {
        true => Ok(()),
        false => Err("a signature does not verify".into()),
    })?;
    print(&json!({"limit": "verify_strict", "rate": verified.core}));
    let signed = rate(|_| {
        std::hint::black_box(sign(&key, Context::Batch, &header));
        Ok(())
    })?;
    print(&json!({"limit": "sign", "rate": signed.core}));
    let mut scratch = Vec::new();
    let leaves = rate(|number| {
        let leaf = record_leaf(&nonce(&[3; 32], number), &[number as u8; 200], &mut scratch);
        std::hint::black_box(leaf);
        Ok(())
    })?;
    print(&json!({"limit": "blake3 leaves of 200 bytes", "rate": leaves.core}));
    for with_trace in [true, false] {
        let length =
            (0..1_000).map(|number| records::encoded(1, number, with_trace, records::PACE_US).len()).sum::<usize>();
        print(&json!({"limit": "record bytes", "trace": with_trace, "rate": length as f64 / 1e3}));
    }
    Ok(())
}

/// One of the things that admit looks at.
type Step = fn(&Submitted, custody::key::PublicKey) -> bool;

/// What admit costs a batch of 256: parse, signature, form of each record, root.
fn admit() -> Done {
    let mut chain = Chain::fixed(1);
    let batch = chain.calls(256, true);
    let key = chain.public();
    let steps: [(&str, Step); 3] = [
        ("signature", |batch, key| batch.is_signed_by(key)),
        ("form of records", |batch, _| batch.check_records().is_ok()),
        ("root of records", |batch, _| batch.is_root_of_records()),
    ];
    let parse = rate(|_| {
        Submitted::parse(batch.bytes.clone()).map_err(|why| why.to_string())?;
        Ok(())
    })?;
    print(&json!({"limit": "admit: parse", "batch": 256, "rate": parse.core, "bytes": batch.bytes.len()}));
    let parsed = Submitted::parse(batch.bytes).map_err(|why| why.to_string())?;
    for (name, step) in steps {
        let rate = rate(|_| if step(&parsed, key) { Ok(()) } else { Err("a batch is not admitted".into()) })?;
        print(&json!({"limit": format!("admit: {name}"), "batch": 256, "rate": rate.core}));
    }
    Ok(())
}

/// Synced writes of the ledger's own store with its own options.
fn stores(folder: &Path) -> Done {
    let store = Store::open(&folder.join("limit-store"), 128 << 20, 128 << 20)?;
    let mut chain = Chain::fixed(2);
    for count in [1, 16, 256, 4_096] {
        // 4,096 records stand for what a busy group has: sixteen batches of 256.
        let parts = count / 256;
        let value = match parts {
            0 => vec![chain.calls(count, true).bytes],
            parts => (0..parts).map(|_| chain.calls(256, true).bytes).collect(),
        };
        let length: usize = value.iter().map(bytes::Bytes::len).sum();
        let mut key = 0_u64;
        let rate = rate(|_| {
            let mut change = store.change();
            for value in &value {
                key += 1;
                change.put(Family::Entries, [count.to_be_bytes(), key.to_be_bytes()].concat(), value);
            }
            Ok(store.commit(change)?)
        })?;
        print(
            &json!({"limit": "store", "records": count, "bytes": length, "rate": rate.clock, "records_rate": rate.clock * count as f64,
            "core_rate": rate.core}),
        );
    }
    Ok(())
}
