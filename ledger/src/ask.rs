//! Questions of security teams and auditors: who asks, what they may see, the answer, and the record that they asked.
//!
//! What must hold: the workspaces that are seen come from the token, whatever the question says; of others nobody hears anything,
//! also not that they are there, or how much is committed in them. Every question of somebody who is known is on record, on disk,
//! before its answer leaves, refused ones too; a stream has a second record when it ends, in whichever way. Two are counted and no
//! more: an unknown token, because anybody can make one up, and what is pushed back because too much is asked, because a record of
//! each would be the load that it keeps off. A token that is ended ends its streams. Names of people are taken and shown for those
//! alone who may see them and say why. Nothing waits or runs without a bound.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError, Weak},
    thread::available_parallelism,
    time::{Duration, Instant},
};

use custody::{
    id::{MemberId, WorkspaceId},
    query::{self, Expr, Field},
    statement::RESERVED_NAME,
    strict::is_token,
    wire::{self, Decision, record::Kind as Record},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tonic::{Code, Status, metadata::MetadataMap};

use self::cursor::{Cursor, Cursors};
use crate::{
    clock,
    commit::{Chains, Request, Untaken, put_on_record},
    directory::{self, Ask},
    index::{AskError, Index, Question},
    log_view::report,
    metrics::Metrics,
    priority::{BEHIND, stand_back},
    store::{Rank, Store, StoreError},
    token::{self, Holder, Right},
};

mod alarms;
mod answer;
mod cursor;
mod file;
pub mod json;
mod openapi;
mod prove;
mod service;
mod silence;
mod stream;
mod trace;
mod web;

pub use prove::Prover;

/// How long one question may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Pages that are looked for at one time: some milliseconds of a processor each.
const AT_ONCE_MAX: usize = 32;
/// Those of one token: pages and their sums.
const OF_ONE_MAX: usize = 8;
/// Streams that are open at one time, and those of one token: some memory each, and a processor only while there is something to say.
const STREAMS_MAX: usize = 128;
const STREAMS_OF_ONE_MAX: usize = 8;
/// Questions of one token in a second, over [`BURST_SECONDS`]: each makes a record and a write to the disk.
const PER_SECOND_MAX: f64 = 20.0;
const BURST_SECONDS: f64 = 5.0;
/// Records of a page, if the question does not say, and at most.
const PAGE: u32 = 100;
const PAGE_MAX: u32 = 1_000;
/// Bytes of a question in its record.
const RECORDED_BYTES_MAX: usize = 4_096;
/// People of one name, at most: of more nobody knows who is meant.
const OF_NAME_MAX: usize = 1_000;

/// Answers questions. Clones share it.
#[derive(Clone)]
pub struct Asking(Arc<Parts>);

struct Parts {
    index: Arc<Index>,
    store: Weak<Store>,
    chains: Chains,
    writer: mpsc::Sender<Request>,
    directory: mpsc::Sender<Ask>,
    prover: Prover,
    metrics: Metrics,
    cursors: Cursors,
    /// Pages at work, and streams.
    places: [Arc<Semaphore>; 2],
    /// Sums at work: one processor is left to everything else.
    sums: Arc<Semaphore>,
    of_one: Mutex<HashMap<String, OfOne>>,
}

/// What one token takes.
struct OfOne {
    /// Questions, and streams.
    places: [Arc<Semaphore>; 2],
    /// Questions that it may ask at once, as of a moment.
    allowance: f64,
    at: Instant,
}

impl OfOne {
    fn new() -> Self {
        Self {
            places: [OF_ONE_MAX, STREAMS_OF_ONE_MAX].map(|most| Arc::new(Semaphore::new(most))),
            allowance: PER_SECOND_MAX * BURST_SECONDS,
            at: Instant::now(),
        }
    }

    /// Whether it may ask once more now.
    fn asks(&mut self) -> bool {
        let now = Instant::now();
        let earned = now.duration_since(self.at).as_secs_f64() * PER_SECOND_MAX;
        (self.at, self.allowance) = (now, (self.allowance + earned).min(PER_SECOND_MAX * BURST_SECONDS));
        let may = self.allowance >= 1.0;
        self.allowance -= f64::from(u8::from(may));
        may
    }
}

/// What somebody may see.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Workspaces that are asked.
    ids: BTreeSet<WorkspaceId>,
    /// Names of all that may be seen.
    names: BTreeMap<WorkspaceId, String>,
}

/// A question that may be answered.
struct Compiled {
    holder: Holder,
    expr: Expr,
    seen: Seen,
    /// It names no workspaces: all that the token sees, also those that are made while a stream is open.
    all_seen: bool,
    /// Names of people may be shown, and are wanted.
    names: bool,
    reason: String,
    /// Where its page begins.
    from: Cursor,
    /// What its cursors are bound to.
    bound: Vec<u8>,
    /// Given back when its answer was read.
    places: Held,
}

/// Places that an answer takes, until it was read: it goes with the response, whose body keeps it (`web.rs`).
#[derive(Clone, Default)]
struct Held(#[expect(dead_code, reason = "held")] Arc<Vec<OwnedSemaphorePermit>>);

/// Why somebody hears nothing.
fn unknown() -> Status {
    Status::unauthenticated(
        "no such token (hint: send `authorization: Bearer TOKEN`; ledger token list shows what stands)",
    )
}

fn ending() -> Status {
    Status::unavailable("the ledger is ending (hint: try again)")
}

fn busy() -> Status {
    let why =
        "too many questions are being answered (hint: ask again in a second; fewer at one time are answered sooner)";
    let mut status = Status::resource_exhausted(why);
    if let Ok(value) = "1000".parse() {
        status.metadata_mut().insert("retry-after-ms", value);
    }
    status
}

fn broke_off() -> Status {
    Status::internal("the question broke off (hint: the ledger's log says why)")
}

fn broken(why: &StoreError) -> Status {
    tracing::error!(why = report(why), "a question cannot be answered");
    Status::unavailable("the store cannot be read (hint: the ledger's log says why)")
}

fn unanswered(why: AskError) -> Status {
    match why {
        AskError::Never(why) => Status::invalid_argument(why),
        why => {
            tracing::error!(why = report(&why), "a question cannot be answered");
            Status::unavailable("the index cannot be read (hint: the ledger's log says why)")
        }
    }
}

/// What is told of an answer in its record.
#[derive(Default)]
struct Told {
    decision: Decision,
    query: String,
    hits: u64,
    bytes: u64,
    pinned: u64,
    names: bool,
    reason: String,
}

impl Asking {
    /// Of a ledger's parts.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(
        index: Arc<Index>,
        store: &Arc<Store>,
        chains: Chains,
        (writer, directory): (mpsc::Sender<Request>, mpsc::Sender<Ask>),
        prover: Prover,
        metrics: Metrics,
    ) -> Result<Self, StoreError> {
        Ok(Self(Arc::new(Parts {
            index,
            store: Arc::downgrade(store),
            chains,
            writer,
            directory,
            prover,
            metrics,
            cursors: Cursors::open(store)?,
            places: [AT_ONCE_MAX, STREAMS_MAX].map(|most| Arc::new(Semaphore::new(most))),
            sums: Arc::new(Semaphore::new(
                available_parallelism().map_or(1, |cores| cores.get().saturating_sub(1)).max(1),
            )),
            of_one: Mutex::default(),
        })))
    }

    fn store(&self) -> Result<Arc<Store>, Status> {
        self.0.store.upgrade().ok_or_else(ending)
    }

    /// Whose token it is.
    fn holder(&self, metadata: &MetadataMap) -> Result<Holder, Status> {
        let presented = metadata.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let found = token::authenticate(self.store()?.as_ref(), presented, clock::now_us());
        found.map_err(|why| broken(&why))?.ok_or_else(|| {
            self.0.metrics.add("custody_searches_unknown_total", 1);
            unknown()
        })
    }

    /// A place for a question, or for a stream.
    fn places(&self, holder: &Holder, right: Right) -> Result<Vec<OwnedSemaphorePermit>, Status> {
        let streams = matches!(right, Right::Follow | Right::Export);
        let own = {
            let mut of_one = self.0.of_one.lock().unwrap_or_else(PoisonError::into_inner);
            // Only tokens that stand come here, and of those there is a bound.
            let own = of_one.entry(holder.id.clone()).or_insert_with(OfOne::new);
            own.asks().then(|| Arc::clone(&own.places[usize::from(streams)]))
        };
        let pushed_back = || {
            self.0.metrics.add("custody_searches_pushed_back_total", 1);
            busy()
        };
        let mut places = vec![own.and_then(|own| own.try_acquire_owned().ok()).ok_or_else(pushed_back)?];
        if streams {
            places.push(Arc::clone(&self.0.places[1]).try_acquire_owned().map_err(|_| pushed_back())?);
        }
        Ok(places)
    }

    /// Refuses what could not be read, as any other question: on record, if it is known whose it is.
    async fn refuse(&self, metadata: &MetadataMap, right: Right, why: Status) -> Status {
        let refused = async {
            let holder = self.holder(metadata)?;
            let _places = self.places(&holder, right)?;
            self.record(&holder, Told { decision: Decision::Denied, ..Told::default() }).await
        };
        refused.await.err().unwrap_or(why)
    }

    /// What a token may see, and which of it is asked.
    fn seen(&self, holder: &Holder, asked: &[String]) -> Result<Seen, Status> {
        let chains = self.0.chains.read().unwrap_or_else(PoisonError::into_inner);
        let all = chains.workspaces.iter().filter(|(id, chain)| holder.sees(**id, chain.name() == RESERVED_NAME));
        let names: BTreeMap<WorkspaceId, String> = all.map(|(id, chain)| (*id, chain.name().to_owned())).collect();
        drop(chains);
        let find = |said: &String| {
            let named = names.iter().find(|(_, name)| *name == said).map(|(id, _)| *id);
            let found = WorkspaceId::from_hex(said).filter(|id| names.contains_key(id)).or(named);
            found.ok_or_else(|| {
                Status::not_found("there is no such workspace for this token (hint: ask without one: all that it sees)")
            })
        };
        let ids = asked.iter().map(find).collect::<Result<BTreeSet<_>, _>>()?;
        Ok(Seen { ids: if asked.is_empty() { names.keys().copied().collect() } else { ids }, names })
    }

    /// Who asks, whether they may, and what it is that they ask. Whoever is known and refused is on record.
    async fn admit(
        &self,
        metadata: &MetadataMap,
        right: Right,
        (asked, cursor): (wire::Question, &str),
    ) -> Result<Compiled, Status> {
        let holder = self.holder(metadata)?;
        let places = self.places(&holder, right)?;
        match self.compile(&holder, right, &asked, cursor).await {
            Ok(compiled) => Ok(Compiled { places: Held(Arc::new(places)), ..compiled }),
            Err(why) => {
                let reason = if is_reason(&asked.reason) { asked.reason } else { String::new() };
                // What was refused may hold names of people.
                let told = Told { decision: Decision::Denied, reason, ..Told::default() };
                self.record(&holder, told).await?;
                Err(why)
            }
        }
    }

    async fn compile(
        &self,
        holder: &Holder,
        right: Right,
        asked: &wire::Question,
        cursor: &str,
    ) -> Result<Compiled, Status> {
        if !holder.role.may(right) {
            let why = format!(
                "the role {} may not do this (hint: docs/OPERATIONS.md says what each may)",
                holder.role.name()
            );
            return Err(Status::permission_denied(why));
        }
        if !is_reason(&asked.reason) {
            return Err(Status::invalid_argument(
                "the reason is a code of at most 64 characters of [A-Za-z0-9_./:@+-]",
            ));
        }
        let names = asked.names && holder.names && !asked.reason.is_empty();
        if asked.names && !names {
            return Err(Status::permission_denied(
                "names of people are shown to tokens with that right, and for a reason (hint: --names --reason CODE)",
            ));
        }
        let seen = self.seen(holder, &asked.workspaces)?;
        let bound = cursor::bound(&holder.id, asked);
        let from = self.start(&seen, cursor, &bound)?;
        let expr = query::parse(&asked.query, from.now_us).map_err(|fault| {
            Status::with_details(Code::InvalidArgument, fault.drawn(&asked.query), fault_place(&fault))
        })?;
        let expr = self.with_ids(&expr, &seen, names).await?;
        let (all_seen, reason) = (asked.workspaces.is_empty(), asked.reason.clone());
        Ok(Compiled {
            holder: holder.clone(),
            expr,
            seen,
            all_seen,
            names,
            reason,
            from,
            bound,
            places: Held::default(),
        })
    }

    /// The question with ids for the names of workspaces, and of people where those may be asked for.
    async fn with_ids(&self, expr: &Expr, seen: &Seen, named: bool) -> Result<Expr, Status> {
        let mut ids: HashMap<(Field, String), Vec<String>> = HashMap::new();
        for (field, name) in query::names(expr) {
            let found: Vec<String> = if field == Field::Workspace {
                let of_name = seen.names.iter().filter(|(_, known)| **known == name);
                of_name.map(|(id, _)| id.to_string()).collect()
            } else if named {
                let who = name.clone();
                let found = directory::ask(&self.0.directory, move |directory| Ok(directory.ids(&who))).await;
                found.map_err(|_| ending())?.iter().map(ToString::to_string).collect()
            } else {
                return Err(Status::permission_denied(
                    "people are asked for by id, or by name with that right and for a reason (hint: --names --reason \
                     CODE)",
                ));
            };
            if found.len() > OF_NAME_MAX {
                let why = "more than 1000 people have this name (hint: ask for an address, or for ids)";
                return Err(Status::invalid_argument(why));
            }
            ids.insert((field, name), found);
        }
        let with = |field: Field, name: &str| ids.get(&(field, name.to_owned())).cloned().unwrap_or_default();
        Ok(query::with_ids(expr, &with))
    }

    /// Puts a question on record; it is on disk when this returns.
    async fn record(&self, holder: &Holder, told: Told) -> Result<(), Status> {
        let mut query = told.query;
        if query.len() > RECORDED_BYTES_MAX {
            let end = (0..=RECORDED_BYTES_MAX - 3).rev().find(|at| query.is_char_boundary(*at)).unwrap_or_default();
            query.truncate(end);
            query.push_str("...");
        }
        let search = wire::Search {
            at: clock::now_us(),
            actor: holder.id.clone(),
            decision: told.decision as i32,
            query,
            hits: told.hits,
            bytes: told.bytes,
            commit_index: told.pinned,
            names_shown: told.names,
            reason: told.reason,
        };
        self.0.metrics.add("custody_searches_total", 1);
        let told = put_on_record(&self.0.writer, Vec::new(), vec![Record::Search(search)]).await;
        told.ok_or_else(ending)?.map_err(|why| match why {
            Untaken::Later(why) => Status::unavailable(format!("nothing is answered that cannot be recorded: {why}")),
            Untaken::Held(_) => ending(),
        })
    }

    /// The record of an answer, or of why there is none.
    async fn answered(&self, asked: &Compiled, decision: Decision, (hits, bytes): (u64, usize)) -> Result<(), Status> {
        let told = Told {
            decision,
            query: asked.expr.to_string(),
            hits,
            bytes: bytes as u64,
            pinned: asked.from.pinned,
            names: asked.names,
            reason: asked.reason.clone(),
        };
        self.record(&asked.holder, told).await
    }

    /// Lets an answer go, its hits and its bytes being on record; so is a question without one.
    async fn answer<T>(
        &self,
        asked: &Compiled,
        answer: Result<(T, u64, usize), Status>,
    ) -> Result<tonic::Response<T>, Status> {
        match answer {
            Ok((answer, hits, bytes)) => {
                self.answered(asked, Decision::Allowed, (hits, bytes)).await?;
                let mut response = tonic::Response::new(answer);
                response.extensions_mut().insert(asked.places.clone());
                Ok(response)
            }
            Err(why) => {
                self.answered(asked, Decision::Denied, (0, 0)).await?;
                Err(why)
            }
        }
    }

    /// Whether whoever reads a stream may still do so.
    fn still(&self, holder: &Holder) -> Result<(), Status> {
        let stands = token::stands(self.store()?.as_ref(), holder, clock::now_us()).map_err(|why| broken(&why))?;
        stands.then_some(()).ok_or_else(unknown)
    }

    /// Whether a stream shows a workspace, which may be made while it is open.
    fn shows(&self, asked: &mut Compiled, workspace: WorkspaceId) -> bool {
        if asked.all_seen && !asked.seen.names.contains_key(&workspace) {
            let chains = self.0.chains.read().unwrap_or_else(PoisonError::into_inner);
            let name = chains.workspaces.get(&workspace).map(|chain| chain.name().to_owned());
            drop(chains);
            if let Some(name) = name.filter(|name| asked.holder.sees(workspace, name == RESERVED_NAME)) {
                asked.seen.names.insert(workspace, name);
                asked.seen.ids.insert(workspace);
            }
        }
        asked.seen.ids.contains(&workspace)
    }

    /// Looks for a page, and answers within the limit.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Index, Instant) -> Result<T, AskError> + Send + 'static,
    ) -> Result<T, Status> {
        let (index, until) = (Arc::clone(&self.0.index), Instant::now() + ANSWER_LIMIT);
        let place = Arc::clone(&self.0.places[0]).acquire_owned();
        let place = tokio::time::timeout(ANSWER_LIMIT, place).await.map_err(|_| busy())?.map_err(|_| ending())?;
        let done = tokio::task::spawn_blocking(move || {
            let _place = place;
            work(&index, until)
        });
        done.await.map_err(|_| broke_off())?.map_err(unanswered)
    }

    /// Sums up, in a thread that stands back behind everything else: it may take a processor for seconds. Its time begins when it
    /// is its turn.
    async fn sum<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Index, Instant) -> Result<T, AskError> + Send + 'static,
    ) -> Result<T, Status> {
        let index = Arc::clone(&self.0.index);
        let place = tokio::time::timeout(ANSWER_LIMIT, Arc::clone(&self.0.sums).acquire_owned());
        let place = place.await.map_err(|_| busy())?.map_err(|_| ending())?;
        let (done, answer) = oneshot::channel();
        let summing = std::thread::Builder::new().name("sum".to_owned()).spawn(move || {
            let _place = place;
            stand_back("a sum", BEHIND);
            done.send(work(&index, Instant::now() + ANSWER_LIMIT)).ok();
        });
        summing.map_err(|why| {
            tracing::warn!(%why, "no thread for a sum");
            busy()
        })?;
        answer.await.map_err(|_| broke_off())?.map_err(unanswered)
    }

    /// Records of the workspaces that are asked.
    fn records(&self, seen: &Seen) -> Result<u64, Status> {
        let store = self.store()?;
        let counts = seen.ids.iter().map(|id| store.next_position(*id));
        counts.sum::<Result<u64, StoreError>>().map_err(|why| broken(&why))
    }

    /// How complete an answer is.
    async fn completeness(&self, asked: &Compiled, cut_short: bool) -> Result<wire::Completeness, Status> {
        let (mut indexed, records) = (0, asked.from.records);
        for id in &asked.seen.ids {
            indexed += self.0.index.indexed(*id).map_err(unanswered)?;
        }
        let (silent, more) = self.silent(asked).await?;
        Ok(wire::Completeness { records, indexed: indexed.min(records), cut_short: cut_short || more, silent })
    }

    /// Names of members, where they are to be shown.
    async fn names(&self, asked: &Compiled, members: BTreeSet<MemberId>) -> Result<Vec<wire::MemberName>, Status> {
        if !asked.names || members.is_empty() {
            return Ok(Vec::new());
        }
        let members: Vec<MemberId> = members.into_iter().collect();
        let named = directory::ask(&self.0.directory, move |directory| directory.names(&members)).await;
        let named = named.map_err(|_| ending())?.into_iter();
        Ok(named.map(|(member, name)| wire::MemberName { member: member.into(), name }).collect())
    }
}

fn is_reason(text: &str) -> bool {
    text.len() <= 64 && (text.is_empty() || is_token(text))
}

/// Where a question is wrong, for programs: first byte and the one after the last.
fn fault_place(fault: &query::Fault) -> bytes::Bytes {
    format!("{} {}", fault.start, fault.end).into_bytes().into()
}

fn page(limit: u32) -> Result<usize, Status> {
    if limit > PAGE_MAX {
        return Err(Status::invalid_argument("a page has at most 1000 records (hint: the cursor leads to the next)"));
    }
    Ok(usize::try_from(if limit == 0 { PAGE } else { limit }).unwrap_or_default())
}

impl Asking {
    /// What a page begins below.
    fn start(&self, seen: &Seen, cursor: &str, bound: &[u8]) -> Result<Cursor, Status> {
        if cursor.is_empty() {
            // Counted before: what is committed in between is seen, and not counted.
            let records = self.records(seen)?;
            let committed = self.0.index.tail().committed();
            return Ok(Cursor { pinned: committed, last: Rank::first_of(committed), records, now_us: clock::now_us() });
        }
        self.0.cursors.read(cursor, bound).ok_or_else(|| {
            Status::invalid_argument(
                "the cursor is of another question or another token (hint: ask the same as for the page before)",
            )
        })
    }
}

/// A question for the index.
fn question<'a>(expr: &'a Expr, seen: &'a Seen, pinned: u64, until: Instant) -> Question<'a> {
    Question { workspaces: &seen.ids, expr, pinned, until }
}
