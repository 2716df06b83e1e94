//! Measures a real ledger: `bench SECTION FOLDER [ARGUMENT…]`, called by `tests/scripts/bench.py`. Prints one JSON object a line.
//!
//! What must hold: records are distinct and batches signed before the clock starts; latency counts from when a batch was
//! due, not from when it could be sent; a refused batch ends the run; nothing is left out of a figure that the ledger does.
#![expect(clippy::print_stdout, reason = "figures are the output")]
#![expect(clippy::disallowed_methods, reason = "an open loop sends when a batch is due, by this machine's clock")]

mod ask;
mod decide;
mod detect;
mod gateway;
mod keep_up;
mod ledger;
mod limits;
mod load;
mod many;
mod proxy;
mod proxy_relay;
mod proxy_revoke;
mod proxy_setup;
mod questions;
mod records;
mod runs;
mod search;
mod stored;

/// A step that may fail; the text says which.
pub(crate) type Done<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn number(argument: Option<&String>, default: u64) -> Done<u64> {
    Ok(argument.map(|text| text.parse()).transpose()?.unwrap_or(default))
}

/// Prints a figure.
pub(crate) fn print(value: &serde_json::Value) {
    println!("{value}");
}

#[tokio::main]
async fn main() -> Done {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (Some(section), Some(folder)) = (words.first(), words.get(1)) else {
        return Err(
            "usage: bench limits|ingest|headline|sustained|size|archive|many|copy|rows|decide|detect|proxy|search|ask|keep-up FOLDER \
             [ARGUMENT…]"
                .into(),
        );
    };
    if let Some(kind) = proxy_relay::Kind::of(section) {
        return proxy_relay::run(kind, folder).await;
    }
    let folder = std::path::Path::new(folder);
    match section.as_str() {
        "limits" => limits::run(folder),
        "ingest" => runs::ingest(folder, words.get(2).map(String::as_str) != Some("plaintext")).await,
        "headline" => {
            runs::headline(
                folder,
                words.get(2).map(String::as_str) != Some("plaintext"),
                number(words.get(3), 1_000_000)?,
            )
            .await
        }
        "sustained" => runs::sustained(folder, number(words.get(2), 10_000_000)?).await,
        "size" => runs::size(folder, number(words.get(2), 250_000)?).await,
        "archive" => runs::archive(folder, number(words.get(2), 1_000_000)?).await,
        "many" => many::run(folder, number(words.get(2), 1_000)?, number(words.get(3), 60)?).await,
        "decide" => decide::run(),
        "detect" => detect::run(folder, number(words.get(2), 1)?, number(words.get(3), 3)?),
        "search" => tokio::task::block_in_place(|| search::run(folder, number(words.get(2), 1_000_000)?)),
        "ask" => ask::run(folder, number(words.get(2), 1_000_000)?, words.get(3).is_some()).await,
        "keep-up" => keep_up::run(folder, number(words.get(2), 1_000_000)?).await,
        "rows" => {
            let records = number(words.get(2), 1_000_000)?;
            records::write_rows(&folder.join("rows"), records, ask::GATEWAYS, ask::pace_us(records))
        }
        "proxy" => proxy::run(folder, number(words.get(2), 7)?).await,
        "copy" => records::write_copies(folder, number(words.get(2), 1_000_000)?, number(words.get(3), 4)?),
        other => Err(format!("no section {other}").into()),
    }
}
