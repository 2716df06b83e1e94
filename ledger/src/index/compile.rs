//! A question as a query of one segment of the index.
//!
//! What must hold: a record is found exactly if [`Expr::matches`] says so of its facts, and stands in a workspace that may be
//! seen. Patterns become the texts that there are and that they fit, so that a page is read off lazily and nothing is walked in
//! advance.

use std::{collections::BTreeSet, ops::Bound};

use custody::{
    id::WorkspaceId,
    query::{Expr, Field, Kind, Test, Text, Want},
};
use tantivy::{
    DocId, DocSet, Score, SegmentReader, TERMINATED, TantivyError, Term,
    query::{
        AllQuery, BooleanQuery, ConstScorer, EmptyQuery, EnableScoring, ExistsQuery, Explanation, Occur, Query,
        RangeQuery, Scorer, TermQuery, Weight,
    },
    schema::IndexRecordOption,
};

use super::schema::{RANK, number_of};
use crate::store::Rank;

/// Which records have an id: what hardly two records share, the ledger keeps beside the index.
pub(super) trait Ids {
    /// Ranks of records of these workspaces that may have it; ascending.
    fn ranks(&self, field: Field, id: &str) -> tantivy::Result<Vec<Rank>>;
}

/// What a question is compiled against.
pub(super) struct Compiler<'a> {
    /// The segment.
    pub(super) reader: &'a SegmentReader,
    /// What may be seen.
    pub(super) workspaces: &'a BTreeSet<WorkspaceId>,
    /// Ids.
    pub(super) ids: &'a dyn Ids,
}

type Compiled = tantivy::Result<Box<dyn Query>>;

fn none() -> Box<dyn Query> {
    Box::new(EmptyQuery)
}

fn any(queries: Vec<Box<dyn Query>>) -> Box<dyn Query> {
    match queries.len() {
        0 => none(),
        1 => queries.into_iter().next().unwrap_or_else(none),
        _ => Box::new(BooleanQuery::new(queries.into_iter().map(|query| (Occur::Should, query)).collect())),
    }
}

impl Compiler<'_> {
    /// What matches, of what may be seen; intents apart, which are looked at where it is known which calls run.
    pub(super) fn question(&self, expr: &Expr) -> Compiled {
        let mut clauses = self.matching(expr)?;
        clauses.push((Occur::MustNot, self.intents()));
        Ok(all(clauses))
    }

    /// Whether all match but intents.
    pub(super) fn is_everything(&self, expr: &Expr) -> tantivy::Result<bool> {
        Ok(self.matching(expr)?.is_empty())
    }

    fn matching(&self, expr: &Expr) -> tantivy::Result<Vec<(Occur, Box<dyn Query>)>> {
        let mut clauses = self.clauses(expr)?;
        clauses.extend(self.seen()?.map(|seen| (Occur::Must, seen)));
        Ok(clauses)
    }

    /// Intents.
    pub(super) fn intents(&self) -> Box<dyn Query> {
        let term = Term::from_field_text(number_of(Field::Phase), "intent");
        Box::new(TermQuery::new(term, IndexRecordOption::Basic))
    }

    /// The workspaces that may be seen; nothing, if no other is in this segment.
    fn seen(&self) -> tantivy::Result<Option<Box<dyn Query>>> {
        let names: BTreeSet<String> = self.workspaces.iter().map(ToString::to_string).collect();
        let mut others = false;
        let mut seen = Vec::new();
        self.each_text(Field::Workspace, |text| match names.contains(text) {
            true => seen.push(Text::Exact(text.to_owned())),
            false => others = true,
        })?;
        if !others {
            return Ok(None);
        }
        self.texts(Field::Workspace, &seen).map(Some)
    }

    fn clauses(&self, expr: &Expr) -> tantivy::Result<Vec<(Occur, Box<dyn Query>)>> {
        Ok(match expr {
            Expr::All(all) => {
                let mut clauses = Vec::new();
                for expr in all {
                    clauses.extend(self.clauses(expr)?);
                }
                clauses
            }
            Expr::Not(expr) => vec![(Occur::MustNot, self.expr(expr)?)],
            other => vec![(Occur::Must, self.expr(other)?)],
        })
    }

    fn expr(&self, expr: &Expr) -> Compiled {
        Ok(match expr {
            Expr::All(_) | Expr::Not(_) => all(self.clauses(expr)?),
            Expr::Any(each) => any(each.iter().map(|expr| self.expr(expr)).collect::<tantivy::Result<_>>()?),
            Expr::Test(test) => self.test(test)?,
        })
    }

    fn test(&self, test: &Test) -> Compiled {
        Ok(match &test.want {
            Want::Present => Box::new(ExistsQuery::new(test.field.name().to_owned(), false)),
            Want::Texts(texts) if test.field.kind() == Kind::Unique => self.ids(test.field, texts)?,
            Want::Texts(texts) if test.field.is_text() => self.texts(test.field, texts)?,
            Want::Numbers(ranges) if !test.field.is_text() => {
                let number = |number| Bound::Included(Term::from_field_u64(number_of(test.field), number));
                let range = |(least, most): &(u64, u64)| -> Box<dyn Query> {
                    if least > most { none() } else { Box::new(RangeQuery::new(number(*least), number(*most))) }
                };
                any(ranges.iter().map(range).collect())
            }
            // A text where a number is, or a number where a text is, is nowhere.
            Want::Texts(_) | Want::Numbers(_) => none(),
        })
    }

    fn texts(&self, field: Field, wanted: &[Text]) -> Compiled {
        let mut exact: BTreeSet<String> = BTreeSet::new();
        if wanted.iter().any(|text| matches!(text, Text::Pattern(_))) {
            self.each_text(field, |text| {
                if wanted.iter().any(|wanted| wanted.fits(text)) {
                    exact.insert(text.to_owned());
                }
            })?;
        } else {
            exact.extend(wanted.iter().filter_map(|text| match text {
                Text::Exact(text) => Some(text.clone()),
                Text::Pattern(_) => None,
            }));
        }
        let term = |text: &String| -> Box<dyn Query> {
            Box::new(TermQuery::new(Term::from_field_text(number_of(field), text), IndexRecordOption::Basic))
        };
        Ok(any(exact.iter().map(term).collect()))
    }

    fn each_text(&self, field: Field, mut take: impl FnMut(&str)) -> tantivy::Result<()> {
        let index = self.reader.inverted_index(number_of(field))?;
        let mut terms = index.terms().stream()?;
        while terms.advance() {
            take(std::str::from_utf8(terms.key()).map_err(|_| damaged("a text"))?);
        }
        Ok(())
    }

    fn ids(&self, field: Field, wanted: &[Text]) -> Compiled {
        let mut ranks = BTreeSet::new();
        for text in wanted {
            match text {
                Text::Exact(id) => ranks.extend(self.ids.ranks(field, id)?),
                Text::Pattern(_) => {
                    return Err(TantivyError::InvalidArgument(format!("{} takes no pattern", field.name())));
                }
            }
        }
        Ok(Box::new(Ranks(ranks.into_iter().rev().collect())))
    }
}

fn all(mut clauses: Vec<(Occur, Box<dyn Query>)>) -> Box<dyn Query> {
    if clauses.iter().all(|(occur, _)| *occur == Occur::MustNot) {
        if clauses.is_empty() {
            return Box::new(AllQuery);
        }
        clauses.push((Occur::Must, Box::new(AllQuery)));
    }
    Box::new(BooleanQuery::new(clauses))
}

fn damaged(what: &str) -> TantivyError {
    TantivyError::DataCorruption(tantivy::error::DataCorruption::comment_only(format!("{what} of the index")))
}

/// First document of a segment whose rank is below `rank`: documents stand newest first.
pub(super) fn first_below(ranks: &dyn tantivy::columnar::ColumnValues<u64>, rank: u64) -> DocId {
    let (mut low, mut high) = (0, ranks.num_vals());
    while low < high {
        let middle = low + (high - low) / 2;
        if ranks.get_val(middle) >= rank { low = middle + 1 } else { high = middle }
    }
    low
}

/// The records of these ranks, newest first.
#[derive(Clone, Debug)]
struct Ranks(Vec<Rank>);

impl Query for Ranks {
    fn weight(&self, _: EnableScoring<'_>) -> tantivy::Result<Box<dyn Weight>> {
        Ok(Box::new(self.clone()))
    }
}

impl Weight for Ranks {
    fn scorer(&self, reader: &SegmentReader, _: Score) -> tantivy::Result<Box<dyn Scorer>> {
        let column = reader.fast_fields().column_first_or_default::<u64>(RANK)?;
        let there = |rank: &Rank| {
            let document = first_below(column.as_ref(), rank.0.saturating_add(1));
            (document < column.num_vals() && column.get_val(document) == rank.0).then_some(document)
        };
        Ok(Box::new(ConstScorer::new(Listed { documents: self.0.iter().filter_map(there).collect(), at: 0 }, 1.0)))
    }

    fn explain(&self, _: &SegmentReader, _: DocId) -> tantivy::Result<Explanation> {
        Err(TantivyError::InvalidArgument("nothing is scored here".to_owned()))
    }
}

/// Documents in a list, ascending.
struct Listed {
    documents: Vec<DocId>,
    at: usize,
}

impl DocSet for Listed {
    fn advance(&mut self) -> DocId {
        self.at += 1;
        self.doc()
    }

    fn doc(&self) -> DocId {
        self.documents.get(self.at).copied().unwrap_or(TERMINATED)
    }

    fn size_hint(&self) -> u32 {
        u32::try_from(self.documents.len()).unwrap_or(u32::MAX)
    }
}
