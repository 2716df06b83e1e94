//! Who matches: the newest page, and how many. Folders of the index newest first, and between and after them what they lack,
//! walked in memory or in the store.
//!
//! What must hold: whatever of a record's neighbours is indexed, memory and index give the same; a record that is committed
//! is in an answer to whoever asks later. An intent is found only while it stands for its call. Nothing runs past its time:
//! an answer that was cut short says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use custody::{
    id::{WorkspaceId, unhex},
    query::{Expr, Field, Test, Want},
    wire::Phase,
};
use tantivy::{
    DocId, DocSet as _, SegmentReader, TERMINATED, TantivyError,
    columnar::ColumnValues,
    query::{EnableScoring, Query as _, Weight},
};

use super::{
    Day, Index,
    compile::{Compiler, Ids, first_below},
    day::Payload,
    id_key,
    schema::RANK,
};
use crate::{
    store::{Family, Rank, StoreError, as_number},
    tail::{One, Tail},
};

/// Records looked at between two looks at the time.
const LOOKS: usize = 4_096;
/// Records that have one id, at most: more have no use for whoever looks for one of them.
const IDS_MAX: usize = 100_000;

/// What is asked.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    /// What may be seen: of the token, never of the caller.
    pub workspaces: &'a BTreeSet<WorkspaceId>,
    /// What is wanted.
    pub expr: &'a Expr,
    /// Next commit index when it was first asked: nothing of this one or later is in an answer.
    pub pinned: u64,
    /// When the answer must be there.
    pub until: Instant,
}

/// Records that were found.
#[derive(Debug, Default)]
pub struct Page {
    /// Newest first.
    pub ranks: Vec<Rank>,
    /// There may be more: the time was over, or too many calls run.
    pub cut_short: bool,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum AskError {
    /// The store.
    Store(StoreError),
    /// The index.
    Index(TantivyError),
    /// The question cannot be answered as it is, in words.
    Never(String),
}

impl std::fmt::Display for AskError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Store(_) => f.write_str("read the store"),
            Self::Index(_) => f.write_str("read the index"),
            Self::Never(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for AskError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(source) => Some(source),
            Self::Index(source) => Some(source),
            Self::Never(_) => None,
        }
    }
}

impl From<StoreError> for AskError {
    fn from(source: StoreError) -> Self {
        Self::Store(source)
    }
}

impl From<TantivyError> for AskError {
    fn from(source: TantivyError) -> Self {
        match source {
            TantivyError::InvalidArgument(why) => Self::Never(why),
            source => Self::Index(source),
        }
    }
}

/// A run of commits, and where its records are read.
pub(super) enum Span<'a> {
    /// From the first to before the second.
    Walked(u64, u64),
    Indexed(&'a Day),
}

impl Question<'_> {
    fn is_late(&self) -> bool {
        Instant::now() >= self.until
    }

    fn sees(&self, one: &One) -> bool {
        self.workspaces.contains(&one.batch.workspace())
    }
}

/// Commits below `end`, newest first: folders, and what lies between and beside them.
pub(super) fn spans(days: &[Day], end: u64, floor: u64) -> Vec<Span<'_>> {
    let mut spans = Vec::new();
    let mut upper = end;
    for day in days {
        let Payload { first, next, .. } = day.payload;
        if next < upper {
            spans.push(Span::Walked(next, upper));
        }
        if first < upper {
            spans.push(Span::Indexed(day));
        }
        upper = upper.min(first);
    }
    if floor < upper {
        spans.push(Span::Walked(floor, upper));
    }
    spans
}

impl Index {
    /// The newest records that match and have a rank below `below`.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn newest(&self, question: &Question<'_>, below: Rank, limit: usize) -> Result<Page, AskError> {
        let mut page = Page::default();
        // Calls that run are looked at apart, and first: what ends one afterwards is found below, and is passed over.
        let mut unseen = false;
        let mut standing = self.standing(question, below, &mut unseen)?;
        let days = self.shown();
        let end = question.pinned.min(below.commit_index() + 1);
        for span in spans(&days, end, self.floor()?) {
            // Whatever is found from here on is older than what was found.
            if page.ranks.len() >= limit || page.cut_short {
                break;
            }
            let left = limit - page.ranks.len();
            match span {
                Span::Walked(first, next) => self
                    .walk(question, (first, next, below), |one| {
                        page.ranks.push(one.batch.rank(one.index));
                        page.ranks.len() < limit
                    })
                    .map(|whole| page.cut_short |= !whole)?,
                Span::Indexed(day) => {
                    let (ranks, whole) = self.newest_of(day, question, below, left)?;
                    page.ranks.extend(ranks);
                    page.cut_short |= !whole;
                }
            }
        }
        // Calls that run and are older than a page that was cut short are not next.
        let last = page.ranks.last().copied().filter(|_| page.cut_short || page.ranks.len() >= limit);
        standing.retain(|rank| last.is_none_or(|last| *rank > last));
        page.ranks.extend(standing);
        page.ranks.sort_unstable_by_key(|rank| std::cmp::Reverse(*rank));
        page.ranks.truncate(limit);
        page.cut_short |= unseen;
        Ok(page)
    }

    /// How many records match; and whether all were looked at.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn count(&self, question: &Question<'_>) -> Result<(u64, bool), AskError> {
        let below = Rank::first_of(question.pinned);
        let mut cut_short = false;
        let mut count = self.standing(question, below, &mut cut_short)?.len() as u64;
        let days = self.shown();
        let mut whole = !cut_short;
        for span in spans(&days, question.pinned, self.floor()?) {
            match span {
                Span::Walked(first, next) => {
                    whole &= self.walk(question, (first, next, below), |_| {
                        count += 1;
                        true
                    })?;
                }
                Span::Indexed(day) => {
                    whole &= self.each_of(day, question, |segment| {
                        count += segment.count(self.tail(), question)?;
                        Ok(())
                    })?;
                }
            }
        }
        Ok((count, whole))
    }

    /// Ranks of intents that match and stand for their calls as of the pinned commit, newest first.
    fn standing(&self, question: &Question<'_>, below: Rank, cut_short: &mut bool) -> Result<Vec<Rank>, AskError> {
        let mut found = Vec::new();
        self.each_standing(question, cut_short, |rank, _| found.push(rank))?;
        found.retain(|rank| *rank < below);
        Ok(found)
    }

    /// Intents that match and stand for their calls as of the pinned commit, newest first.
    ///
    /// # Errors
    /// [`AskError`].
    pub(super) fn each_standing(
        &self,
        question: &Question<'_>,
        cut_short: &mut bool,
        mut take: impl FnMut(Rank, &custody::query::Facts),
    ) -> Result<(), AskError> {
        if rules_out_intents(question.expr) {
            return Ok(());
        }
        let tail = self.tail();
        let running = tail.running();
        *cut_short |= running.cut;
        let (floor, pinned) = (Rank::first_of(self.floor()?), Rank::first_of(question.pinned));
        let mut intents: BTreeMap<_, _> =
            running.intents.into_iter().filter(|(rank, _)| (floor..pinned).contains(rank)).collect();
        // Those that ended after the question was first asked, as of the moment of those that run.
        if question.pinned < running.committed {
            let store = tail.store()?;
            for (at, step) in store.scan(Family::Ended, &[], &pinned.encode()).enumerate() {
                if at % LOOKS == LOOKS - 1 && question.is_late() {
                    *cut_short = true;
                    break;
                }
                let rank = Rank::decode(step?.0.get(8..).unwrap_or_default())?;
                if (floor..pinned).contains(&rank) {
                    intents.entry(rank).or_default();
                }
            }
            // Afterwards: what was forgotten meanwhile was perhaps not seen.
            if question.pinned < store.number(super::retain::ENDED_FLOOR)?.unwrap_or(0) {
                let why = "the pages of this answer are over: they began more than a day ago (hint: ask again)";
                return Err(AskError::Never(why.to_owned()));
            }
        }
        for (at, (rank, intent)) in intents.iter().rev().enumerate() {
            if at % 64 == 63 && question.is_late() {
                *cut_short = true;
                break;
            }
            if let Some((facts, one)) = tail.intent(*rank, intent)?
                && question.sees(one)
                && question.expr.matches(facts)
            {
                take(*rank, facts);
            }
        }
        Ok(())
    }

    /// Gives what matches between two commits, newest first, until `take` says `false`; `false`: the time was over.
    pub(super) fn walk(
        &self,
        question: &Question<'_>,
        (first, next, below): (u64, u64, Rank),
        mut take: impl FnMut(&One) -> bool,
    ) -> Result<bool, AskError> {
        let mut looked = 0;
        for commit_index in (first..next).rev() {
            let Some(batch) = self.tail().batch(commit_index)? else { continue };
            if !question.workspaces.contains(&batch.workspace()) {
                continue;
            }
            for (index, facts) in batch.facts().iter().enumerate().rev() {
                if batch.rank(index) >= below || facts.call_phase().is_some_and(|(_, phase)| phase == Phase::Intent) {
                    continue;
                }
                if question.expr.matches(facts) && !take(&One { batch: std::sync::Arc::clone(&batch), index }) {
                    return Ok(true);
                }
            }
            looked += batch.records().len();
            if looked >= LOOKS {
                looked = 0;
                if question.is_late() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Gives the segments of a folder in which something may match, those with the newest first; `false`: the time was over.
    pub(super) fn each_of(
        &self,
        day: &Day,
        question: &Question<'_>,
        mut take: impl FnMut(&Segment<'_>) -> Result<(), AskError>,
    ) -> Result<bool, AskError> {
        if !may_match(question.expr, &day.payload) {
            return Ok(true);
        }
        let mut segments = Vec::new();
        for reader in day.searcher.segment_readers() {
            let ranks = reader.fast_fields().column_first_or_default::<u64>(RANK)?;
            segments.push(Segment { day, reader, ranks });
        }
        segments.sort_by_key(|segment| std::cmp::Reverse(segment.ranks.max_value()));
        for segment in &segments {
            if question.is_late() {
                return Ok(false);
            }
            take(segment)?;
        }
        Ok(true)
    }

    fn newest_of(
        &self,
        day: &Day,
        question: &Question<'_>,
        below: Rank,
        limit: usize,
    ) -> Result<(Vec<Rank>, bool), AskError> {
        let mut best: Vec<Rank> = Vec::new();
        let mut late = false;
        let whole = self.each_of(day, question, |segment| {
            // Once there are enough, a segment counts only with what is newer than the last of them.
            let least = if best.len() < limit { Rank(0) } else { best.last().copied().unwrap_or(Rank(0)) };
            let mut found = 0;
            late |= !segment.each(self.tail(), question, below, |rank, _| {
                if best.len() >= limit && rank <= least {
                    return false;
                }
                best.push(rank);
                found += 1;
                found < limit
            })?;
            best.sort_unstable_by_key(|rank| std::cmp::Reverse(*rank));
            best.truncate(limit);
            Ok(())
        })?;
        Ok((best, whole && !late))
    }
}

/// One segment of a folder.
pub(super) struct Segment<'a> {
    day: &'a Day,
    /// Its reader.
    pub(super) reader: &'a SegmentReader,
    ranks: std::sync::Arc<dyn ColumnValues<u64>>,
}

impl Segment<'_> {
    fn weight(&self, tail: &Tail, question: &Question<'_>) -> Result<Box<dyn Weight>, AskError> {
        let ids = IdsOf { tail, workspaces: question.workspaces };
        let compiler = Compiler { reader: self.reader, workspaces: question.workspaces, ids: &ids };
        let query = compiler.question(question.expr)?;
        Ok(query.weight(EnableScoring::disabled_from_searcher(&self.day.searcher))?)
    }

    /// How many match.
    fn count(&self, tail: &Tail, question: &Question<'_>) -> Result<u64, AskError> {
        let pinned = Rank::first_of(question.pinned);
        if self.ranks.max_value() < pinned.0 {
            return Ok(u64::from(self.weight(tail, question)?.count(self.reader)?));
        }
        let mut count = 0;
        self.each(tail, question, pinned, |_, _| {
            count += 1;
            true
        })?;
        Ok(count)
    }

    /// Gives rank and number of each document that matches, newest first, until `take` says `false`; `false`: the time was over.
    pub(super) fn each(
        &self,
        tail: &Tail,
        question: &Question<'_>,
        below: Rank,
        mut take: impl FnMut(Rank, u32) -> bool,
    ) -> Result<bool, AskError> {
        let first = first_below(self.ranks.as_ref(), below.0.min(Rank::first_of(question.pinned).0));
        if first >= self.ranks.num_vals() {
            return Ok(true);
        }
        let weight = self.weight(tail, question)?;
        let mut matching = weight.scorer(self.reader, 1.0)?;
        let mut document = if matching.doc() < first { matching.seek(first) } else { matching.doc() };
        let mut looked = 0;
        while document != TERMINATED {
            if !take(Rank(self.ranks.get_val(document)), document) {
                return Ok(true);
            }
            looked += 1;
            if looked % LOOKS == 0 && question.is_late() {
                return Ok(false);
            }
            document = matching.advance();
        }
        Ok(true)
    }
}

impl Segment<'_> {
    /// Gives all that match, some at a time; `false`: the time was over.
    pub(super) fn each_block(
        &self,
        tail: &Tail,
        question: &Question<'_>,
        mut take: impl FnMut(&[DocId]),
    ) -> Result<bool, AskError> {
        let first = first_below(self.ranks.as_ref(), Rank::first_of(question.pinned).0);
        let ids = IdsOf { tail, workspaces: question.workspaces };
        let compiler = Compiler { reader: self.reader, workspaces: question.workspaces, ids: &ids };
        if compiler.is_everything(question.expr)? {
            return self.each_run(question, first, compiler.intents().as_ref(), take);
        }
        let (mut looked, mut late) = (0, false);
        self.weight(tail, question)?.for_each_no_score(self.reader, &mut |documents| {
            looked += documents.len();
            if looked >= LOOKS && !late {
                looked = 0;
                late = question.is_late();
            }
            if !late {
                // Ascending: what is too new stands first.
                let from = documents.partition_point(|document| *document < first);
                take(documents.get(from..).unwrap_or_default());
            }
        })?;
        Ok(!late)
    }

    /// Gives all from `first` on but intents, as runs of documents that stand together, which columns are read in quickest;
    /// `false`: the time was over.
    fn each_run(
        &self,
        question: &Question<'_>,
        first: DocId,
        intents: &dyn tantivy::query::Query,
        mut take: impl FnMut(&[DocId]),
    ) -> Result<bool, AskError> {
        let weight = intents.weight(EnableScoring::disabled_from_searcher(&self.day.searcher))?;
        let mut intents = weight.scorer(self.reader, 1.0)?;
        let (mut next, mut run) = (first, Vec::with_capacity(LOOKS));
        while next < self.reader.max_doc() {
            let intent = if intents.doc() < next { intents.seek(next) } else { intents.doc() };
            let end = intent.min(self.reader.max_doc());
            while next < end {
                if question.is_late() {
                    return Ok(false);
                }
                let to = end.min(next.saturating_add(u32::try_from(LOOKS).unwrap_or(u32::MAX)));
                run.clear();
                run.extend(next..to);
                take(&run);
                next = to;
            }
            next = end.saturating_add(1);
        }
        Ok(true)
    }
}

/// Ids of the records of these workspaces.
struct IdsOf<'a> {
    tail: &'a Tail,
    workspaces: &'a BTreeSet<WorkspaceId>,
}

impl Ids for IdsOf<'_> {
    fn ranks(&self, field: Field, id: &str) -> tantivy::Result<Vec<Rank>> {
        let failed = |why: StoreError| TantivyError::SystemError(crate::log_view::report(&why));
        // Ids are written in hex; nothing else is one.
        let Some(id) = unhex(id) else { return Ok(Vec::new()) };
        let store = self.tail.store().map_err(failed)?;
        let mut ranks = Vec::new();
        for workspace in self.workspaces {
            for step in store.scan(Family::Ids, &id_key(field, *workspace, &id), &[]) {
                let (key, indexes) = step.map_err(failed)?;
                let commit_index = key.last_chunk::<8>().map(|number| as_number(number));
                let commit_index = commit_index.transpose().map_err(failed)?.unwrap_or_default();
                for index in indexes.chunks_exact(2) {
                    let index = index.try_into().map_or(0, u16::from_be_bytes);
                    ranks.push(Rank::new(commit_index, u32::from(index)));
                }
                if ranks.len() > IDS_MAX {
                    let why = format!("more than {IDS_MAX} records have this {}", field.name());
                    return Err(TantivyError::InvalidArgument(format!(
                        "{why} (hint: ask with other conditions alone)"
                    )));
                }
            }
        }
        ranks.sort_unstable();
        Ok(ranks)
    }
}

/// Whether something in a folder may match, as far as times say.
fn may_match(expr: &Expr, payload: &Payload) -> bool {
    match expr {
        Expr::All(all) => all.iter().all(|expr| may_match(expr, payload)),
        Expr::Any(any) => any.iter().any(|expr| may_match(expr, payload)),
        Expr::Not(_) => true,
        Expr::Test(Test { field, want: Want::Numbers(ranges) }) => {
            let (least, most) = match field {
                Field::At => payload.at,
                Field::Received => payload.received,
                _ => return true,
            };
            ranges.iter().any(|(from, to)| *from <= most && least <= *to)
        }
        Expr::Test(_) => true,
    }
}

/// Whether no intent can match: what runs has no duration and no outcome but `running`.
fn rules_out_intents(expr: &Expr) -> bool {
    match expr {
        Expr::All(all) => all.iter().any(rules_out_intents),
        Expr::Any(any) => any.iter().all(rules_out_intents),
        Expr::Not(_) => false,
        Expr::Test(Test { field, want }) => match (field, want) {
            (Field::Duration | Field::ResponseBytes, _) => true,
            (Field::Outcome, Want::Texts(texts)) => !texts.iter().any(|text| text.fits("running")),
            (Field::Phase, Want::Texts(texts)) => !texts.iter().any(|text| text.fits("intent")),
            (Field::Kind, Want::Texts(texts)) => !texts.iter().any(|text| text.fits("call")),
            _ => false,
        },
    }
}
