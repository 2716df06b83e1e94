//! The questions that are measured, in words, so that every executor is asked the same; and how what they took is told.
//!
//! What must hold: a question is asked a few times before the clock starts; the questions are of records that there are.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use ::ledger::{
    index::{Index, Question},
    store::Rank,
    tail::CommittedBatch,
};
use custody::{
    id::{WorkspaceId, hex},
    query::{self, Expr, Field, HistogramWish, PercentilesWish, Wishes},
};
use serde_json::json;

use crate::{Done, print, records};

/// Each question is asked so often; sums of everything less often.
const TIMES: usize = 200;
const SUMS: usize = 20;
/// Asked before, and not counted.
const WARM: usize = 5;
/// Microseconds.
pub(crate) const HOUR: u64 = 3_600_000_000;
/// Records of a page.
pub(crate) const PAGE: u32 = 100;

/// What is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The newest hundred.
    Page,
    /// How many there are.
    Count,
    /// How many in each hour of this time, by outcome.
    Hourly(Field),
    /// Percentiles of the duration, by tool.
    ByTool,
}

impl Shape {
    pub(crate) fn wishes(self) -> Wishes {
        let split = Some(Field::Outcome);
        match self {
            Self::Hourly(field) => {
                Wishes { histogram: Some(HistogramWish { field, width: HOUR, split }), ..Wishes::default() }
            }
            Self::ByTool => Wishes {
                percentiles: Some(PercentilesWish { field: Field::Duration, by: Some(Field::Tool) }),
                ..Wishes::default()
            },
            Self::Page | Self::Count => Wishes::default(),
        }
    }
}

/// A question, and the same of others.
pub(crate) struct Asked {
    pub(crate) name: &'static str,
    pub(crate) shape: Shape,
    pub(crate) times: usize,
    queries: Vec<String>,
}

impl Asked {
    fn new(name: &'static str, shape: Shape, queries: impl IntoIterator<Item = String>) -> Self {
        let times = if matches!(shape, Shape::Page | Shape::Count) { TIMES } else { SUMS };
        Self { name, shape, times, queries: queries.into_iter().collect() }
    }

    pub(crate) fn query(&self, at: usize) -> &str {
        self.queries.get(at % self.queries.len().max(1)).map_or("", String::as_str)
    }
}

fn members() -> impl Iterator<Item = String> {
    (0..records::MEMBERS).map(|which| hex(&records::member(which)))
}

/// What is compared: `tests/scripts/beside.py` has the same in SQL, by these names. Of gateway 1 the first few thousand records are there.
pub(crate) fn all() -> Vec<Asked> {
    let traces = (1..=TIMES as u64).map(|at| {
        let call = records::call(1, at * 13, true);
        format!("trace:{}", hex(&call.trace.map(|trace| trace.trace_id).unwrap_or_default()))
    });
    let everything = || [String::new()];
    vec![
        Asked::new("newest 100 by member", Shape::Page, members().map(|id| format!("member:{id}"))),
        Asked::new("newest 100 of all", Shape::Page, everything()),
        Asked::new(
            "newest 100 by member, outcome and prefix of tool",
            Shape::Page,
            members().map(|id| format!("member:{id} outcome:tool_error tool:github/*")),
        ),
        Asked::new("how many by member", Shape::Count, members().map(|id| format!("member:{id}"))),
        Asked::new("one by trace id", Shape::Page, traces),
        Asked::new("hourly by outcome, ledger's time", Shape::Hourly(Field::Received), everything()),
        Asked::new("hourly by outcome, call's time", Shape::Hourly(Field::At), everything()),
        Asked::new(
            "hourly by outcome, of calls of 10 ms and more",
            Shape::Hourly(Field::At),
            ["duration:>=10ms".to_owned()],
        ),
        Asked::new("tool by percentiles of duration", Shape::ByTool, everything()),
    ]
}

/// Fifty different ones, of ten sorts.
pub(crate) fn mixed() -> Vec<String> {
    let sort = |sort: usize, of: usize| {
        let member = hex(&records::member((7 * sort + of) as u64 % records::MEMBERS));
        let agent = hex(&records::agent((11 * sort + 3 * of) as u64 % records::MEMBERS));
        let server = records::SERVERS[(sort + 2 * of) % records::SERVERS.len()];
        let tool = records::TOOLS[(sort + of) % records::TOOLS.len()];
        match sort {
            0 => format!("member:{member}"),
            1 => format!("member:{member} outcome:tool_error"),
            2 => format!("tool:{server}/*"),
            3 => format!("member:{member} -server:{server}"),
            4 => format!("duration:>{}ms", 100 + 20 * of),
            5 => format!("tool:*/{tool} (member:{member} OR client:cursor)"),
            6 => format!("server:({server} mail) outcome:tool_error"),
            7 => format!("agent:{agent} decision:allowed duration:<{}ms", 3 + of),
            8 => format!("response_bytes:>=4KiB request_bytes:<200B tool:{tool}"),
            _ => format!("client:vscode rule:rule-{of} -tool:{server}/{tool} at:2026-03-0{}", 1 + of),
        }
    };
    (0..50).map(|at| sort(at % 10, at / 10)).collect()
}

/// Says what a question took: median and 99th of a hundred, in milliseconds.
pub(crate) fn told(by: &str, name: &str, hits: u64, mut took: Vec<f64>) {
    took.sort_by(f64::total_cmp);
    let at = |percent: usize| took.get((took.len() * percent / 100).min(took.len().saturating_sub(1))).copied();
    print(
        &json!({ "question": name, "by": by, "asked": took.len(), "hits": hits, "p50_ms": at(50), "p99_ms": at(99) }),
    );
}

/// Asks each of them again and again.
pub(crate) async fn measure<F: Future<Output = Done<u64>>>(by: &str, asked: &Asked, ask: impl Fn(usize) -> F) -> Done {
    let (mut took, mut hits) = (Vec::new(), 0);
    for at in 0..WARM {
        ask(at).await?;
    }
    for at in 0..asked.times {
        let began = Instant::now();
        hits = ask(at).await?;
        took.push(began.elapsed().as_secs_f64() * 1e3);
    }
    told(by, asked.name, hits, took);
    Ok(())
}

/// Asks the ledger's executors in this process, as of the newest record.
pub(crate) struct Executor<'a> {
    index: &'a Index,
    seen: BTreeSet<WorkspaceId>,
}

impl<'a> Executor<'a> {
    pub(crate) fn new(index: &'a Index, workspace: WorkspaceId) -> Self {
        Self { index, seen: BTreeSet::from([workspace]) }
    }

    pub(crate) fn question<'b>(&'b self, expr: &'b Expr) -> Question<'b> {
        let until = Instant::now() + Duration::from_secs(60);
        Question { workspaces: &self.seen, expr, pinned: self.index.tail().committed(), until }
    }

    /// Ranks of a page, and with `fetch` also its records.
    pub(crate) fn newest(&self, expr: &Expr, fetch: bool) -> Done<u64> {
        let question = self.question(expr);
        let page = self.index.newest(&question, Rank::first_of(question.pinned), PAGE as usize)?;
        let mut batch: Option<Arc<CommittedBatch>> = None;
        for rank in page.ranks.iter().filter(|_| fetch) {
            if batch.as_ref().is_none_or(|batch| batch.commit_index != rank.commit_index()) {
                batch = self.index.tail().batch(rank.commit_index())?;
            }
            batch.as_ref().and_then(|batch| batch.records().get(rank.index())).ok_or("a record is gone")?;
        }
        Ok(page.ranks.len() as u64)
    }

    fn answer(&self, shape: Shape, expr: &Expr, fetch: bool) -> Done<u64> {
        match shape {
            Shape::Page => self.newest(expr, fetch),
            Shape::Count => Ok(self.index.count(&self.question(expr))?.0),
            Shape::Hourly(_) | Shape::ByTool => {
                let (tally, whole, _) = self.index.tally(&self.question(expr), &shape.wishes())?;
                whole.then_some(tally.count).ok_or_else(|| "a sum was cut short".into())
            }
        }
    }

    /// Measures all of them; pages with their records read, and without.
    pub(crate) async fn all(&self) -> Done {
        for asked in all() {
            let exprs = asked.queries.iter().map(|query| parsed(query)).collect::<Done<Vec<_>>>()?;
            let answer = |at: usize, fetch| self.answer(asked.shape, &exprs[at % exprs.len()], fetch);
            measure("executor", &asked, |at| std::future::ready(answer(at, true))).await?;
            if asked.shape == Shape::Page {
                measure("index alone", &asked, |at| std::future::ready(answer(at, false))).await?;
            }
        }
        Ok(())
    }
}

/// A question that says nothing of now.
pub(crate) fn parsed(query: &str) -> Done<Expr> {
    query::parse(query, 0).map_err(|fault| fault.drawn(query).into())
}
