//! What a question takes as a whole: `bench ask FOLDER [RECORDS] [brief]`. The real ledger, filled by gateways over TLS, asked over TLS with
//! tokens, so with authentication, the record of the question on disk, and encoding; then, the ledger ended, its executors over
//! the same store in this process. What comes in meanwhile is in it before both.
//!
//! What must hold: index and watch are at rest while nothing comes in; while records come in, batches are sent when they are due, and
//! no answer that is cut short counts as one.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ::ledger::{alarm::Alarms, index::Follower, metrics::Metrics, store::Store, tail::Tail};
use custody::{
    id::WorkspaceId,
    wire::{self, query_client::QueryClient},
};
use serde_json::json;
use tokio::task::JoinSet;
use tonic::{
    Code, Request,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};

use crate::{
    Done,
    ledger::Ledger,
    load::{self, Gateway, Outcome},
    print,
    questions::{self, Asked, Executor, HOUR, PAGE, Shape},
};

const NAME: &str = "asked";
pub(crate) const GATEWAYS: u64 = 4;
pub(crate) const BATCH: u64 = 256;
/// Over which calls are spread, by their own clocks; the ledger receives all of them in one.
const DAYS: u64 = 5;
/// Records that are signed at one time: they fit in memory.
const SHARE: u64 = 1_000_000;
/// One asks 20 times a second at most.
const TOKENS: usize = 64;
const CONNECTIONS: usize = 4;
/// Records a second that come in while questions are asked, and for how long.
const INTAKE: u64 = 20_000;
const INTAKE_SECONDS: u64 = 30;
/// Time between two looks at who is behind, and how many commits are nothing: each look makes one.
const LAG_EVERY: Duration = Duration::from_millis(50);
const LAG_NONE: u64 = 2;
/// Askers of sums over everything, at one time.
const HEAVY: usize = 50;

/// Microseconds between two records of each gateway.
pub(crate) fn pace_us(records: u64) -> u64 {
    DAYS * 24 * HOUR / (records / GATEWAYS).max(1)
}

/// Asks a running ledger. Clones share its tokens.
#[derive(Clone)]
pub(crate) struct Service {
    clients: Vec<QueryClient<Channel>>,
    tokens: Arc<Vec<MetadataValue<Ascii>>>,
    next: Arc<AtomicUsize>,
    /// Sums that were answered from counts by the hour.
    rolled: Arc<AtomicUsize>,
}

impl Service {
    async fn open(ledger: &Ledger) -> Done<Self> {
        let (mut clients, mut tokens) = (Vec::new(), Vec::new());
        for _ in 0..CONNECTIONS {
            clients.push(ledger.asker().await?);
        }
        for number in 0..TOKENS {
            tokens.push(ledger.token(format!("t{number}")).await?);
        }
        Ok(Self { clients, tokens: Arc::new(tokens), next: Arc::default(), rolled: Arc::default() })
    }

    /// As the next token, over the next connection.
    fn turn<T>(&self, message: T) -> (QueryClient<Channel>, Request<T>) {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.tokens[turn % TOKENS].clone());
        (self.clients[turn % CONNECTIONS].clone(), request)
    }

    async fn find(&self, query: &str, limit: u32, count: bool) -> Result<wire::FindResponse, tonic::Status> {
        let request = wire::FindRequest { question: question(query), limit, count, ..Default::default() };
        let (mut client, request) = self.turn(request);
        Ok(client.find(request).await?.into_inner())
    }

    async fn sums(&self, request: wire::SummariseRequest) -> Result<wire::SummariseResponse, tonic::Status> {
        let (mut client, request) = self.turn(request);
        Ok(client.summarise(request).await?.into_inner())
    }

    /// Hits of a whole answer.
    async fn answer(&self, shape: Shape, query: &str) -> Done<u64> {
        let (hits, completeness) = match shape {
            Shape::Page => {
                let found = self.find(query, PAGE, false).await?;
                (found.hits.len() as u64, found.completeness)
            }
            Shape::Count => {
                let found = self.find(query, 1, true).await?;
                (found.total.unwrap_or_default(), found.completeness)
            }
            Shape::Hourly(_) | Shape::ByTool => {
                let summed = self.sums(wanted(shape, query)).await?;
                self.rolled.fetch_add(usize::from(summed.from_rollups), Ordering::Relaxed);
                (summed.count, summed.completeness)
            }
        };
        let whole = completeness.is_some_and(|completeness| !completeness.cut_short);
        whole.then_some(hits).ok_or_else(|| format!("cut short: {query}").into())
    }

    /// Waits until index and watch have done everything: how long each took. What the index has is asked, because its metric says how it
    /// was when it last had something to do.
    pub(crate) async fn caught_up(&self, ledger: &Ledger) -> Done<[Duration; 2]> {
        let (began, mut looks) = (Instant::now(), tokio::time::interval(LAG_EVERY));
        let (mut index, mut watch) = (None, None);
        loop {
            looks.tick().await;
            if index.is_none() {
                let all = self.find("", 1, false).await?.completeness.unwrap_or_default();
                index = (all.indexed == all.records).then(|| began.elapsed());
            }
            let [_, behind] = ledger.lags().await?;
            watch = watch.or_else(|| (behind <= LAG_NONE).then(|| began.elapsed()));
            if let (Some(index), Some(watch)) = (index, watch) {
                return Ok([index, watch]);
            }
        }
    }

    async fn all(&self) -> Done {
        for asked in questions::all() {
            let one: &Asked = &asked;
            questions::measure("whole", one, |at| self.answer(one.shape, one.query(at))).await?;
        }
        print(&json!({ "sums_from_counts_by_the_hour": self.rolled.load(Ordering::Relaxed) }));
        Ok(())
    }
}

fn question(query: &str) -> Option<wire::Question> {
    Some(wire::Question { query: query.to_owned(), workspaces: vec![NAME.to_owned()], ..Default::default() })
}

fn wanted(shape: Shape, query: &str) -> wire::SummariseRequest {
    let mut request = wire::SummariseRequest { question: question(query), ..Default::default() };
    match shape {
        Shape::Hourly(field) => request.histogram = Some(by_hour(field.name(), "outcome")),
        _ => request.percentiles = Some(levels("duration", "tool")),
    }
    request
}

fn by_hour(field: &str, split: &str) -> wire::Histogram {
    wire::Histogram { field: field.to_owned(), width_us: HOUR, split: split.to_owned() }
}

fn levels(field: &str, by: &str) -> wire::Percentiles {
    wire::Percentiles { field: field.to_owned(), by: by.to_owned(), limit: 100, ..Default::default() }
}

/// The fifty heavy ones: each of another sort, of everything or nearly so.
fn heavy(at: usize) -> wire::SummariseRequest {
    let servers = crate::records::SERVERS;
    let query = if at < 5 { String::new() } else { format!("-server:{}", servers[at / 5 % servers.len()]) };
    let mut request = wire::SummariseRequest { question: question(&query), ..Default::default() };
    let facets =
        |fields: &[&str]| fields.iter().map(|field| wire::Facet { field: (*field).to_owned(), limit: 100 }).collect();
    match at % 5 {
        0 => request.percentiles = Some(levels("duration", "tool")),
        1 => request.facets = facets(&["member", "agent", "tool"]),
        2 => request.histogram = Some(by_hour("at", "member")),
        3 => request.percentiles = Some(levels("response_bytes", "agent")),
        _ => request.facets = facets(&["server", "rule", "client"]),
    }
    request
}

/// A ledger with so many records in it, its gateways, and who asks it.
pub(crate) async fn filled(folder: &Path, records: u64, pace_us: u64) -> Done<(Ledger, Vec<Gateway>, Service)> {
    let ledger = Ledger::start(&folder.join("ledger"), true, |_| {}).await?;
    let mut gateways = Vec::new();
    // One more, which ships calls one by one.
    for mut chain in ledger.workspace(NAME, GATEWAYS + 1).await? {
        chain.pace_us = pace_us;
        gateways.push(Gateway::connect(&ledger, chain).await?);
    }
    let alone = gateways.split_off(GATEWAYS as usize);
    let (began, mut left) = (Instant::now(), records);
    while left >= GATEWAYS * BATCH {
        let share = left.min(SHARE);
        load::sign(&mut gateways, share / BATCH / GATEWAYS, BATCH, true);
        (gateways, _) = load::run(gateways, None).await?;
        ledger.settled().await?;
        left -= share;
    }
    print(&json!({ "stored": records, "seconds": began.elapsed().as_secs_f64() }));
    let service = Service::open(&ledger).await?;
    let [index, watch] = service.caught_up(&ledger).await?;
    print(&json!({ "index_behind_seconds": index.as_secs_f64(), "watch_behind_seconds": watch.as_secs_f64() }));
    gateways.extend(alone);
    Ok((ledger, gateways, service))
}

/// Intake for some seconds, while `ask` goes on until it is told to end: how receipts fared.
async fn under_intake<F>(
    name: &str,
    gateways: Vec<Gateway>,
    ask: impl FnOnce(Arc<AtomicBool>) -> F,
) -> Done<Vec<Gateway>>
where
    F: Future<Output = Done> + Send + 'static,
{
    let mut gateways = gateways;
    load::sign(&mut gateways, INTAKE * INTAKE_SECONDS / BATCH / GATEWAYS, BATCH, true);
    let over = Arc::new(AtomicBool::new(false));
    let asking = tokio::spawn(ask(Arc::clone(&over)));
    let (gateways, outcome) = load::run(gateways, Some(INTAKE as f64 / BATCH as f64)).await?;
    over.store(true, Ordering::Relaxed);
    asking.await??;
    receipts(name, &outcome);
    Ok(gateways)
}

fn receipts(name: &str, outcome: &Outcome) {
    let at = |share| outcome.latency.value_at_quantile(share) as f64 / 1e3;
    print(&json!({
        "receipts": name, "rate": outcome.records as f64 / outcome.seconds, "p50_ms": at(0.5), "p99_ms": at(0.99),
    }));
}

/// First pages of fifty mixed questions, one after the other; of all, and of the slowest of them.
async fn pages(service: Service, over: Arc<AtomicBool>) -> Done {
    let queries = questions::mixed();
    let mut took: Vec<Vec<f64>> = vec![Vec::new(); queries.len()];
    let mut hits = 0;
    while !over.load(Ordering::Relaxed) {
        for (query, took) in queries.iter().zip(&mut took) {
            let began = Instant::now();
            hits = service.answer(Shape::Page, query).await?;
            took.push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    let p99 = |took: &Vec<f64>| {
        let mut sorted = took.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() * 99 / 100).copied().unwrap_or_default()
    };
    let slowest = queries.iter().zip(&took).max_by(|one, other| p99(one.1).total_cmp(&p99(other.1)));
    questions::told("whole", "first page of fifty mixed questions, under intake", hits, took.concat());
    if let Some((query, took)) = slowest {
        questions::told("whole", &format!("of them the slowest: `{query}`"), hits, took.clone());
    }
    Ok(())
}

/// Fifty askers of heavy sums, each of its own, again and again.
async fn sums(service: Service, over: Arc<AtomicBool>) -> Done {
    let mut askers = JoinSet::new();
    for at in 0..HEAVY {
        let (service, over) = (service.clone(), Arc::clone(&over));
        askers.spawn(async move {
            let (mut took, mut cut_short, mut later, mut hits) = (Vec::new(), 0_u64, 0_u64, 0);
            while !over.load(Ordering::Relaxed) {
                let began = Instant::now();
                match service.sums(heavy(at)).await {
                    Ok(summed) if summed.completeness.as_ref().is_some_and(|how| how.cut_short) => cut_short += 1,
                    Ok(summed) => {
                        hits = summed.count;
                        took.push(began.elapsed().as_secs_f64() * 1e3);
                    }
                    Err(why) if why.code() == Code::ResourceExhausted => {
                        later += 1;
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    Err(why) => return Err(why.into()),
                }
            }
            Done::Ok((took, cut_short, later, hits))
        });
    }
    let (mut took, mut cut_short, mut later, mut hits) = (Vec::new(), 0, 0, 0);
    while let Some(asker) = askers.join_next().await {
        let asker = asker??;
        took.extend(asker.0);
        cut_short += asker.1;
        later += asker.2;
        hits = asker.3.max(hits);
    }
    questions::told("whole", "fifty heavy sums at one time, under intake", hits, took);
    print(&json!({ "heavy_cut_short": cut_short, "heavy_asked_later": later }));
    Ok(())
}

/// How long after its receipt a call is in an answer.
async fn found(service: Service, mut gateway: Gateway, over: Arc<AtomicBool>) -> Done {
    let query = format!("gateway:{}", gateway.chain.gateway);
    let (mut took, mut again) = (Vec::new(), 0_u64);
    while !over.load(Ordering::Relaxed) {
        let number = gateway.ship_one().await?;
        let began = Instant::now();
        while service.find(&query, 1, false).await?.hits.first().is_none_or(|hit| hit.number != number) {
            again += 1;
        }
        took.push(began.elapsed().as_secs_f64() * 1e3);
    }
    questions::told("whole", "acknowledged to found, under intake", 1, took);
    print(&json!({ "not_found_at_once": again }));
    Ok(())
}

/// The executors over what the ledger left on disk.
async fn executors(config: &::ledger::config::Config, workspace: WorkspaceId) -> Done {
    let store = Arc::new(Store::open(&config.paths.data.join("store"), 64 << 20, 64 << 20)?);
    let tail = Arc::new(Tail::open(&store)?);
    let told = (Alarms::new(), Metrics::new());
    let follower = Follower::open(config.paths.data.join("index"), tail, 3_650, told)?;
    Executor::new(&follower.index(), workspace).all().await
}

/// Runs it; `brief`: with nothing that comes in.
pub(crate) async fn run(folder: &Path, records: u64, brief: bool) -> Done {
    let (ledger, mut gateways, service) = filled(folder, records, pace_us(records)).await?;
    let workspace = gateways.first().map(|gateway| gateway.chain.workspace).ok_or("no gateway")?;
    let alone = gateways.pop().ok_or("no gateway")?;
    if !brief {
        gateways = under_intake("nothing is asked", gateways, |_| std::future::ready(Ok(()))).await?;
        service.caught_up(&ledger).await?;
        gateways = under_intake("pages are asked", gateways, |over| pages(service.clone(), over)).await?;
        service.caught_up(&ledger).await?;
        gateways = under_intake("a call is looked for", gateways, |over| found(service.clone(), alone, over)).await?;
        service.caught_up(&ledger).await?;
        gateways = under_intake("fifty heavy sums are asked", gateways, |over| sums(service.clone(), over)).await?;
    }
    // What the index does not have would be walked, here in memory and below in the store.
    service.caught_up(&ledger).await?;
    service.all().await?;
    service.caught_up(&ledger).await?;
    let stored = service.find("", 1, false).await?.completeness.unwrap_or_default().records;
    drop((gateways, service));
    let config = ledger.end().await?;
    let bytes = |name: &str| crate::search::size(&config.paths.data.join(name));
    print(&json!({
        "store_bytes": bytes("store")?, "index_bytes": bytes("index")?, "archive_bytes": crate::search::size(&config.archive.folder)?,
        "records": stored,
    }));
    executors(&config, workspace).await
}
