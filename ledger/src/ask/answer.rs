//! What is found, as the answers say it.

use std::collections::BTreeSet;

use custody::{
    id::MemberId,
    query::{Field, HistogramWish, Kind, Levels, PercentilesWish, Tally, Wishes},
    wire,
};
use tonic::Status;

use super::Seen;
use crate::tail::One;

/// Values of a facet, and of what percentiles are told apart by, if the question does not say.
const VALUES: u32 = 20;
const VALUES_MAX: u32 = 1_000;
/// Facets of one question: each is a column that is walked.
const FACETS_MAX: usize = 16;
const HOUR_US: u64 = 3_600_000_000;
/// Least width of a bucket: finer ones are more than anybody looks at.
const WIDTH_US_MIN: u64 = 1_000_000;

/// A record as it is told; `None` only for one that is not there.
pub(super) fn hit(one: &One, seen: &Seen) -> Option<wire::Hit> {
    let place = one.batch.place(one.index)?;
    Some(wire::Hit {
        workspace: place.workspace.into(),
        workspace_name: seen.names.get(&place.workspace).cloned().unwrap_or_default(),
        position: place.position,
        received_at: place.received_at,
        gateway: place.gateway.into(),
        epoch: place.epoch.into(),
        number: place.number,
        record: one.batch.records().get(one.index)?.clone(),
    })
}

/// Members that a record names.
pub(super) fn members(one: &One, found: &mut BTreeSet<MemberId>) {
    let facts = one.batch.fact(one.index);
    for field in [Field::Member, Field::Owner, Field::Actor] {
        found.extend(facts.texts(field).filter_map(MemberId::from_hex));
    }
}

fn field(name: &str, fits: impl Fn(Field) -> bool, what: &str) -> Result<Field, Status> {
    Field::named(name).filter(|field| fits(*field)).ok_or_else(|| {
        Status::invalid_argument(format!(
            "there is no field of this name for {what} (hint: docs/QUERY.md lists the fields)"
        ))
    })
}

fn limit(said: u32) -> usize {
    usize::try_from(if said == 0 { VALUES } else { said.min(VALUES_MAX) }).unwrap_or_default()
}

/// What is wanted of all that match.
pub(super) fn wishes(asked: &wire::SummariseRequest) -> Result<Wishes, Status> {
    if asked.facets.len() > FACETS_MAX {
        return Err(Status::invalid_argument("at most 16 facets are counted at a time (hint: ask twice)"));
    }
    let counted = |field: Field| field.kind() == Kind::Text;
    let facets = asked.facets.iter().map(|facet| field(&facet.field, counted, "a facet")).collect::<Result<_, _>>()?;
    let optional = |name: &str, what| (!name.is_empty()).then(|| field(name, counted, what)).transpose();
    let histogram = match &asked.histogram {
        None => None,
        Some(wish) => {
            let name = if wish.field.is_empty() { "at" } else { &wish.field };
            Some(HistogramWish {
                field: field(name, |field| field.kind() == Kind::Time, "a histogram")?,
                width: if wish.width_us == 0 { HOUR_US } else { wish.width_us.max(WIDTH_US_MIN) },
                split: optional(&wish.split, "a histogram's split")?,
            })
        }
    };
    let percentiles = match &asked.percentiles {
        None => None,
        Some(wish) => {
            let measured = |field: Field| matches!(field.kind(), Kind::Duration | Kind::Size);
            let of = field(&wish.field, measured, "percentiles")?;
            Some(PercentilesWish { field: of, by: optional(&wish.by, "percentiles")? })
        }
    };
    Ok(Wishes { facets, histogram, percentiles })
}

fn greatest(values: impl Iterator<Item = (String, u64)>, most: usize) -> Vec<wire::Counted> {
    let mut values: Vec<(String, u64)> = values.collect();
    values.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
    values.truncate(most);
    values.into_iter().map(|(value, count)| wire::Counted { value, count }).collect()
}

/// The sums as they are told.
pub(super) fn sums(asked: &wire::SummariseRequest, wishes: &Wishes, tally: Tally) -> wire::SummariseResponse {
    let facets = asked.facets.iter().zip(tally.facets).map(|(facet, values)| wire::FacetCounts {
        field: facet.field.clone(),
        distinct: values.len() as u64,
        values: greatest(values.into_iter(), limit(facet.limit)),
    });
    let buckets = tally.buckets.into_iter().map(|(start, bucket)| wire::Bucket {
        start,
        count: bucket.count,
        values: greatest(bucket.values.into_iter(), limit(VALUES_MAX)),
    });
    let wish = asked.percentiles.clone().unwrap_or_default();
    let thousandths = if wish.thousandths.is_empty() { vec![500, 950, 990] } else { wish.thousandths };
    let told = |levels: &Levels| thousandths.iter().take(16).map(|part| levels.percentile(*part)).collect::<Vec<_>>();
    let mut percentiles: Vec<wire::Ranked> = tally
        .levels
        .iter()
        .map(|(value, levels)| wire::Ranked { value: value.clone(), count: levels.count(), values: told(levels) })
        .collect();
    percentiles
        .sort_by(|one, other| other.values.last().cmp(&one.values.last()).then_with(|| one.value.cmp(&other.value)));
    percentiles.truncate(limit(wish.limit));
    wire::SummariseResponse {
        count: tally.count,
        facets: facets.collect(),
        width_us: wishes.histogram.map_or(0, |wish| wish.width),
        buckets: buckets.collect(),
        percentiles,
        ..Default::default()
    }
}
