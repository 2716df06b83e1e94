//! Sums over all that match: from counts that are kept by the minute where the question allows, else from the columns of the
//! index and from memory.
//!
//! What must hold: every way gives the same sums ([`Tally`]), whatever part of the records each of them sees.

use std::collections::HashMap;

use custody::{
    id::hex,
    query::{Expr, Facts, Field, HistogramWish, Levels, Tally, Test, Want, Wishes},
    wire::{Decision, Outcome},
};
use tantivy::{
    DocId,
    columnar::{Column, ColumnIndex, StrColumn, column_index::Set as _},
};

use super::{
    Index,
    find::{AskError, Question, Segment, Span, spans},
    retain::FORGOTTEN,
};
use crate::store::{Cell, Rank, Rollup};

/// Counters that are laid out in advance for one segment's histogram: 8 MB. Of more there are only those that count.
const LAID_OUT_MAX: u64 = 1 << 20;

/// Records by workspace in hex, beginning of the span, and cell.
type Counted = HashMap<(String, u64, Cell), u64>;

impl Index {
    /// Sums over all that match; and whether all were looked at, and whether the counts by the minute were enough.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn tally(&self, question: &Question<'_>, wishes: &Wishes) -> Result<(Tally, bool, bool), AskError> {
        if let Some(tally) = self.rolled_up(question, wishes)? {
            return Ok((tally, true, true));
        }
        let mut tally = Tally::new(wishes);
        let below = Rank::first_of(question.pinned);
        let mut cut_short = false;
        self.each_standing(question, &mut cut_short, |_, facts| tally.take(wishes, facts))?;
        let mut whole = !cut_short;
        let days = self.shown();
        for span in spans(&days, question.pinned, self.floor()?) {
            whole &= match span {
                Span::Walked(first, next) => self.walk(question, (first, next, below), |one| {
                    if let Some(facts) = one.batch.facts().get(one.index) {
                        tally.take(wishes, facts);
                    }
                    true
                })?,
                Span::Indexed(day) => {
                    let mut late = false;
                    let seen = self.each_of(day, question, |segment| {
                        let mut columns = Columns::of(segment, wishes)?;
                        late |= !segment.each_block(self.tail(), question, |documents| columns.take(documents))?;
                        columns.add_to(&mut tally)
                    })?;
                    seen && !late
                }
            };
        }
        Ok((tally, whole, false))
    }

    /// From the counts by the minute or by the hour, where all that is asked and wanted is in them.
    fn rolled_up(&self, question: &Question<'_>, wishes: &Wishes) -> Result<Option<Tally>, AskError> {
        let Some(width) = rollup_width(question.expr, wishes) else { return Ok(None) };
        let store = self.tail().store()?;
        // They count everything that was committed and that retention has not taken back.
        let floor = self.floor()?;
        if self.tail().committed() != question.pinned || !self.is_taken_back(floor)? {
            return Ok(None);
        }
        let Some(below) = self.running_below(floor, width)? else { return Ok(None) };
        let (from, to) = times(question.expr);
        let mut tally = Tally::new(wishes);
        for workspace in question.workspaces {
            let name = hex(&workspace.0);
            for step in store.rollups((*workspace, width), from, to) {
                let (start, cells) = step?;
                for (cell, count) in cells.counts() {
                    let count = count.saturating_sub(below.get(&(name.clone(), start, cell)).copied().unwrap_or(0));
                    let Some(facts) = of_cell(&name, start, cell).filter(|_| count > 0) else { continue };
                    if question.expr.matches(&facts) {
                        take_cell(&mut tally, wishes, &facts, count);
                    }
                }
            }
        }
        // What came or went meanwhile is in some of them and not in others; what is on disk is counted before anybody is told of it.
        let same = store.committed(question.pinned)?.is_none() && self.floor()? == floor;
        Ok(same.then_some(tally))
    }

    /// Whether counts have nothing any more of what is below the floor.
    fn is_taken_back(&self, floor: u64) -> Result<bool, AskError> {
        Ok(floor == 0 || self.tail().store()?.number(FORGOTTEN)?.unwrap_or(0) >= floor)
    }

    /// Calls that run and began below the floor, which are counted until they end; `None`: too many
    /// run to know.
    fn running_below(&self, floor: u64, width: u64) -> Result<Option<Counted>, AskError> {
        let mut below = Counted::new();
        if floor == 0 {
            return Ok(Some(below));
        }
        let tail = self.tail();
        let running = tail.running();
        for (rank, intent) in &running.intents {
            if *rank < Rank::first_of(floor)
                && let Some((facts, one)) = tail.intent(*rank, intent)?
            {
                let at = facts.number(Field::At).unwrap_or_default();
                let denied = facts.texts(Field::Decision).any(|decision| decision == "denied");
                let name = hex(&one.batch.workspace().0);
                *below.entry((name, at - at % width, Cell::running(denied))).or_default() += 1;
            }
        }
        Ok((!running.cut).then_some(below))
    }
}

/// Fields that rollups tell apart.
const ROLLED: [Field; 5] = [Field::Kind, Field::Workspace, Field::Decision, Field::Outcome, Field::At];

/// The widest rollups from which this can be answered.
fn rollup_width(expr: &Expr, wishes: &Wishes) -> Option<u64> {
    let told = |field: &Field| ROLLED.contains(field) && *field != Field::At;
    let when = wishes.histogram.as_ref();
    let fits = |width: u64| {
        let aligned = when.is_none_or(|wish| wish.field == Field::At && wish.width.is_multiple_of(width));
        aligned && is_rolled(expr, width)
    };
    let wanted = wishes.percentiles.is_none()
        && wishes.facets.iter().all(told)
        && when.is_none_or(|wish| wish.split.as_ref().is_none_or(told));
    [Rollup::HOUR, Rollup::MINUTE].into_iter().find(|width| wanted && fits(*width))
}

fn is_rolled(expr: &Expr, width: u64) -> bool {
    match expr {
        Expr::All(each) | Expr::Any(each) => each.iter().all(|expr| is_rolled(expr, width)),
        Expr::Not(expr) => is_rolled(expr, width),
        Expr::Test(Test { field: Field::At, want: Want::Numbers(ranges) }) => ranges.iter().all(|(least, most)| {
            least.is_multiple_of(width) && (*most == u64::MAX || most.wrapping_add(1).is_multiple_of(width))
        }),
        Expr::Test(Test { field, .. }) => ROLLED.contains(field),
    }
}

/// Times outside of which nothing matches: the first, and one after the last.
fn times(expr: &Expr) -> (u64, u64) {
    match expr {
        Expr::All(all) => {
            all.iter().map(times).fold((0, u64::MAX), |(from, to), (least, most)| (from.max(least), to.min(most)))
        }
        Expr::Test(Test { field: Field::At, want: Want::Numbers(ranges) }) => {
            let least = ranges.iter().map(|(least, _)| *least).min().unwrap_or_default();
            (least, ranges.iter().map(|(_, most)| most.saturating_add(1)).max().unwrap_or(u64::MAX))
        }
        _ => (0, u64::MAX),
    }
}

/// What the records of a cell say, as far as rollups tell them apart.
fn of_cell(workspace: &str, start: u64, cell: Cell) -> Option<Facts> {
    let (kind, denied, outcome) = cell.parts()?;
    let decision = if denied { Decision::Denied } else { Decision::Allowed };
    Some(Facts::counted(workspace, start, kind, decision, Outcome::try_from(outcome).ok()?))
}

fn take_cell(tally: &mut Tally, wishes: &Wishes, facts: &Facts, count: u64) {
    tally.count = tally.count.saturating_add(count);
    for (at, field) in wishes.facets.iter().enumerate() {
        facts.texts(*field).for_each(|text| tally.add_value(at, text, count));
    }
    let at = facts.number(Field::At).unwrap_or_default();
    if let Some(wish) = &wishes.histogram {
        let start = wish.start(at);
        tally.add_bucket(start, count);
        if let Some(split) = wish.split {
            facts.texts(split).for_each(|text| tally.add_split(start, text, count));
        }
    }
}

/// One column of a segment, read some documents at a time.
struct Numbers {
    column: Column<u64>,
    /// Of the documents that were read last, in their order, where each has one at most.
    read: Vec<Option<u64>>,
    whole: Vec<u64>,
}

impl Numbers {
    fn of(segment: &Segment<'_>, field: Field) -> Result<Self, AskError> {
        Ok(Self::over(segment.reader.fast_fields().u64(field.name())?))
    }

    fn over(column: Column<u64>) -> Self {
        Self { column, read: Vec::new(), whole: Vec::new() }
    }

    fn read(&mut self, documents: &[DocId]) {
        self.read.clear();
        let rows = self.rows(documents).filter(|rows| rows.len() == documents.len());
        if let Some(rows) = rows {
            self.whole.resize(documents.len(), 0);
            self.column.values.get_range(u64::from(rows.start), &mut self.whole);
            self.read.extend(self.whole.iter().copied().map(Some));
        } else {
            self.read.resize(documents.len(), None);
            self.column.first_vals(documents, &mut self.read);
        }
    }

    /// Where the values of documents stand that stand together, where each has one at most.
    fn rows(&self, documents: &[DocId]) -> Option<std::ops::Range<u32>> {
        let (first, last) = (*documents.first()?, *documents.last()?);
        let together = usize::try_from(last - first).is_ok_and(|span| span + 1 == documents.len());
        match &self.column.index {
            ColumnIndex::Full if together => Some(first..last + 1),
            ColumnIndex::Optional(index) if together => Some(index.rank(first)..index.rank(last + 1)),
            _ => None,
        }
    }
}

/// A field of texts of one segment.
struct Texts(Option<(StrColumn, Numbers)>);

impl Texts {
    fn of(segment: &Segment<'_>, field: Field) -> Result<Self, AskError> {
        // Of what hardly two records share there are no values.
        let column = if field.kind() == custody::query::Kind::Text {
            segment.reader.fast_fields().str(field.name())?
        } else {
            None
        };
        Ok(Self(column.map(|column| {
            let ords = Numbers::over(column.ords().clone());
            (column, ords)
        })))
    }

    fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |(column, _)| column.num_terms())
    }

    /// Gives the index of each document among these, and the number of each of its texts.
    fn each(&mut self, documents: &[DocId], mut take: impl FnMut(usize, usize)) {
        let Some((_, ords)) = &mut self.0 else { return };
        let number = |ord| usize::try_from(ord).unwrap_or(usize::MAX);
        if ords.column.get_cardinality().is_multivalue() {
            for (at, document) in documents.iter().enumerate() {
                ords.column.values_for_doc(*document).for_each(|ord| take(at, number(ord)));
            }
        } else {
            ords.read(documents);
            let read = ords.read.iter().enumerate();
            read.for_each(|(at, ord)| ord.iter().for_each(|ord| take(at, number(*ord))));
        }
    }

    fn text(&self, ord: usize) -> Result<String, AskError> {
        let mut text = String::new();
        if let Some((column, _)) = &self.0 {
            column.ord_to_str(ord as u64, &mut text).map_err(tantivy::TantivyError::from)?;
        }
        Ok(text)
    }
}

/// A histogram of one segment.
struct When {
    wish: HistogramWish,
    times: Numbers,
    split: Option<Texts>,
    /// First bucket, and how many there may be.
    first: u64,
    /// For each bucket the count of all, and of each value.
    laid_out: Vec<u64>,
    /// Where there would be too many.
    sparse: HashMap<(u64, usize), u64>,
    /// Bucket of each document that is read, counted from the first.
    buckets: Vec<Option<u64>>,
}

impl When {
    fn of(segment: &Segment<'_>, wish: HistogramWish) -> Result<Self, AskError> {
        let times = Numbers::of(segment, wish.field)?;
        let split = wish.split.map(|field| Texts::of(segment, field)).transpose()?;
        let first = times.column.min_value() / wish.width;
        let buckets = (times.column.max_value() / wish.width).saturating_sub(first).saturating_add(1);
        let room = buckets.saturating_mul(split.as_ref().map_or(0, Texts::len) as u64 + 1);
        let laid_out =
            if room <= LAID_OUT_MAX { vec![0; usize::try_from(room).unwrap_or_default()] } else { Vec::new() };
        Ok(Self { wish, times, split, first, laid_out, sparse: HashMap::new(), buckets: Vec::new() })
    }

    fn take(&mut self, documents: &[DocId]) {
        self.times.read(documents);
        self.buckets.clear();
        let width = self.wish.width;
        // Neighbours were hardly ever further apart than a bucket is wide: most need no division.
        let (mut start, mut bucket) = (self.first * width, 0);
        self.buckets.extend(self.times.read.iter().map(|at| {
            let at = (*at)?;
            if at.wrapping_sub(start) >= width {
                let of_all = at / width;
                (start, bucket) = (of_all * width, of_all - self.first);
            }
            Some(bucket)
        }));
        let (laid_out, sparse, buckets) = (&mut self.laid_out, &mut self.sparse, &self.buckets);
        let values = self.split.as_ref().map_or(0, Texts::len) + 1;
        // 0 counts all of the bucket.
        let mut add = |bucket: u64, value: usize, more: u64| {
            let at = usize::try_from(bucket).ok().and_then(|at| at.checked_mul(values)?.checked_add(value));
            match at.and_then(|at| laid_out.get_mut(at)) {
                Some(count) => *count += more,
                None => *sparse.entry((bucket, value)).or_default() += more,
            }
        };
        for run in buckets.chunk_by(|one, next| one == next) {
            if let Some(bucket) = run.first().copied().flatten() {
                add(bucket, 0, run.len() as u64);
            }
        }
        if let Some(split) = &mut self.split {
            split.each(documents, |at, ord| {
                if let Some(bucket) = buckets.get(at).copied().flatten() {
                    add(bucket, ord + 1, 1);
                }
            });
        }
    }

    fn add_to(&self, tally: &mut Tally) -> Result<(), AskError> {
        let width = self.split.as_ref().map_or(0, Texts::len) + 1;
        let laid_out = self.laid_out.iter().enumerate().filter(|(_, count)| **count > 0);
        let laid_out = laid_out.map(|(at, count)| (((at / width) as u64, at % width), *count));
        for ((bucket, value), count) in laid_out.chain(self.sparse.iter().map(|(key, count)| (*key, *count))) {
            let start = (self.first + bucket) * self.wish.width;
            match (value, &self.split) {
                (0, _) => tally.add_bucket(start, count),
                (value, Some(split)) => tally.add_split(start, &split.text(value - 1)?, count),
                (_, None) => {}
            }
        }
        Ok(())
    }
}

/// Percentiles of one segment.
struct How {
    numbers: Numbers,
    by: Option<Texts>,
    levels: Vec<Vec<u32>>,
}

impl How {
    fn add(levels: &mut [Vec<u32>], value: usize, level: u16) {
        let Some(counts) = levels.get_mut(value) else { return };
        let level = usize::from(level);
        if counts.len() <= level {
            counts.resize(level + 1, 0);
        }
        counts[level] += 1;
    }

    fn take(&mut self, documents: &[DocId]) {
        self.numbers.read(documents);
        let (read, levels) = (&self.numbers.read, &mut self.levels);
        match &mut self.by {
            None => read.iter().flatten().for_each(|number| Self::add(levels, 0, Levels::level(*number))),
            Some(by) => by.each(documents, |at, ord| {
                if let Some(number) = read.get(at).copied().flatten() {
                    Self::add(levels, ord, Levels::level(number));
                }
            }),
        }
    }
}

/// The columns that are summed of one segment, and the sums so far.
struct Columns {
    count: u64,
    facets: Vec<(Texts, Vec<u64>)>,
    when: Option<When>,
    how: Option<How>,
}

impl Columns {
    fn of(segment: &Segment<'_>, wishes: &Wishes) -> Result<Self, AskError> {
        let mut facets = Vec::new();
        for field in &wishes.facets {
            let texts = Texts::of(segment, *field)?;
            let counts = vec![0; texts.len()];
            facets.push((texts, counts));
        }
        let when = wishes.histogram.map(|wish| When::of(segment, wish)).transpose()?;
        let how = match &wishes.percentiles {
            None => None,
            Some(wish) => {
                let by = wish.by.map(|field| Texts::of(segment, field)).transpose()?;
                let levels = vec![Vec::new(); by.as_ref().map_or(1, Texts::len)];
                Some(How { numbers: Numbers::of(segment, wish.field)?, by, levels })
            }
        };
        Ok(Self { count: 0, facets, when, how })
    }

    fn take(&mut self, documents: &[DocId]) {
        self.count += documents.len() as u64;
        for (texts, counts) in &mut self.facets {
            texts.each(documents, |_, ord| counts[ord] += 1);
        }
        if let Some(when) = &mut self.when {
            when.take(documents);
        }
        if let Some(how) = &mut self.how {
            how.take(documents);
        }
    }

    fn add_to(&self, tally: &mut Tally) -> Result<(), AskError> {
        tally.count += self.count;
        for (at, (texts, counts)) in self.facets.iter().enumerate() {
            for (ord, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
                tally.add_value(at, &texts.text(ord)?, *count);
            }
        }
        if let Some(when) = &self.when {
            when.add_to(tally)?;
        }
        if let Some(how) = &self.how {
            for (ord, counts) in how.levels.iter().enumerate().filter(|(_, counts)| !counts.is_empty()) {
                let value = how.by.as_ref().map_or_else(|| Ok(String::new()), |by| by.text(ord))?;
                for (level, count) in (0..).zip(counts).filter(|(_, count)| **count > 0) {
                    tally.add_level(&value, level, u64::from(*count));
                }
            }
        }
        Ok(())
    }
}
