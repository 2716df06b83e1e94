//! Sums over the records that match: how many, of which values, when, and how great.
//!
//! What must hold: a sum is the same in whatever parts it is made and in whatever order these are put together ([`Tally::merge`]),
//! so that folders of an index, memory and an archive can be added up; all numbers are whole. Memory has a bound: past
//! [`VALUES_MAX`] values of a field those that come later are counted together, and the answer says so.

use std::collections::BTreeMap;

use super::{Facts, Field};

/// Values of one field that are told apart: more than anybody reads, and some megabytes.
pub const VALUES_MAX: usize = 10_000;
/// Buckets of one histogram: a year by the hour.
const BUCKETS_MAX: usize = 10_000;
/// Bits of a number that its level keeps behind the first: levels of 1/64 of a power of two.
const LEVEL_BITS: u32 = 6;

/// Numbers by level: each level spans 1/64 of a power of two, so that whatever is read off is at most so much too great.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Levels(BTreeMap<u16, u64>);

impl Levels {
    /// The level of a number.
    pub fn level(number: u64) -> u16 {
        let exponent = number.checked_ilog2().unwrap_or_default();
        let Some(shift) = exponent.checked_sub(LEVEL_BITS) else {
            // So small that each number has its own.
            return u16::try_from(number).unwrap_or(u16::MAX);
        };
        let base = u64::from(shift).wrapping_add(1) << LEVEL_BITS;
        let within = (number >> shift) & ((1 << LEVEL_BITS) - 1);
        u16::try_from(base.wrapping_add(within)).unwrap_or(u16::MAX)
    }

    /// Greatest number of a level.
    fn greatest(level: u16) -> u64 {
        let (step, within) = (u32::from(level >> LEVEL_BITS), u64::from(level) & ((1 << LEVEL_BITS) - 1));
        let Some(shift) = step.checked_sub(1) else { return within };
        let next = u128::from(within.wrapping_add(1).wrapping_add(1 << LEVEL_BITS)) << shift;
        u64::try_from(next.saturating_sub(1)).unwrap_or(u64::MAX)
    }

    /// Counts a number of this level so many times.
    pub fn add(&mut self, level: u16, count: u64) {
        let sum = self.0.entry(level).or_default();
        *sum = sum.saturating_add(count);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.0.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The number that so many thousandths of all do not exceed; never too low.
    pub fn percentile(&self, thousandths: u32) -> u64 {
        let all = u128::from(self.count());
        let wanted = all.saturating_mul(u128::from(thousandths.min(1_000))).div_ceil(1_000).max(1);
        let mut below = 0_u128;
        for (level, count) in &self.0 {
            below = below.saturating_add(u128::from(*count));
            if below >= wanted {
                return Self::greatest(*level);
            }
        }
        0
    }

    fn merge(&mut self, other: &Self) {
        other.0.iter().for_each(|(level, count)| self.add(*level, *count));
    }
}

/// A histogram that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistogramWish {
    /// [`Field::At`] or [`Field::Received`].
    pub field: Field,
    /// Microseconds of a bucket; buckets begin at its multiples.
    pub width: u64,
    /// By the values of which each bucket is split.
    pub split: Option<Field>,
}

impl HistogramWish {
    /// Beginning of the bucket of a time.
    pub fn start(&self, at: u64) -> u64 {
        at.saturating_sub(at.checked_rem(self.width).unwrap_or_default())
    }
}

/// Percentiles that are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PercentilesWish {
    /// A field of numbers.
    pub field: Field,
    /// By the values of which they are told apart.
    pub by: Option<Field>,
}

/// What is wanted of all that match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Fields whose values are counted.
    pub facets: Vec<Field>,
    /// When.
    pub histogram: Option<HistogramWish>,
    /// How great.
    pub percentiles: Option<PercentilesWish>,
}

/// One bucket of a histogram.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Records.
    pub count: u64,
    /// Those with each value.
    pub values: BTreeMap<String, u64>,
}

/// The sums.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records.
    pub count: u64,
    /// For each facet: records of each value.
    pub facets: Vec<BTreeMap<String, u64>>,
    /// Buckets by their beginning.
    pub buckets: BTreeMap<u64, Bucket>,
    /// Levels by value; under the empty text where they are not told apart.
    pub levels: BTreeMap<String, Levels>,
    /// There were more values or buckets than are told apart.
    pub cut_short: bool,
}

fn add(values: &mut BTreeMap<String, u64>, value: &str, count: u64) -> bool {
    if let Some(sum) = values.get_mut(value) {
        *sum = sum.saturating_add(count);
        return true;
    }
    let room = values.len() < VALUES_MAX;
    if room {
        values.insert(value.to_owned(), count);
    }
    room
}

impl Tally {
    /// Nothing counted yet.
    pub fn new(wishes: &Wishes) -> Self {
        Self { facets: vec![BTreeMap::new(); wishes.facets.len()], ..Self::default() }
    }

    /// Counts a record.
    pub fn take(&mut self, wishes: &Wishes, facts: &Facts) {
        self.count = self.count.saturating_add(1);
        for (at, field) in wishes.facets.iter().enumerate() {
            facts.texts(*field).for_each(|text| self.add_value(at, text, 1));
        }
        if let Some(wish) = &wishes.histogram
            && let Some(at) = facts.number(wish.field)
        {
            let start = wish.start(at);
            self.add_bucket(start, 1);
            if let Some(split) = wish.split {
                facts.texts(split).for_each(|text| self.add_split(start, text, 1));
            }
        }
        if let Some(wish) = &wishes.percentiles
            && let Some(number) = facts.number(wish.field)
        {
            let level = Levels::level(number);
            match wish.by {
                None => self.add_level("", level, 1),
                Some(by) => facts.texts(by).for_each(|text| self.add_level(text, level, 1)),
            }
        }
    }

    /// Counts records of one value of a facet.
    pub fn add_value(&mut self, facet: usize, value: &str, count: u64) {
        let room = self.facets.get_mut(facet).is_none_or(|values| add(values, value, count));
        self.cut_short |= !room;
    }

    /// Counts records of a bucket.
    pub fn add_bucket(&mut self, start: u64, count: u64) {
        if let Some(bucket) = self.bucket(start) {
            bucket.count = bucket.count.saturating_add(count);
        }
    }

    /// Counts records of one value of a bucket.
    pub fn add_split(&mut self, start: u64, value: &str, count: u64) {
        let room = self.bucket(start).is_none_or(|bucket| add(&mut bucket.values, value, count));
        self.cut_short |= !room;
    }

    fn bucket(&mut self, start: u64) -> Option<&mut Bucket> {
        if self.buckets.len() >= BUCKETS_MAX && !self.buckets.contains_key(&start) {
            self.cut_short = true;
            return None;
        }
        Some(self.buckets.entry(start).or_default())
    }

    /// Counts numbers of one level.
    pub fn add_level(&mut self, value: &str, level: u16, count: u64) {
        if let Some(levels) = self.levels.get_mut(value) {
            levels.add(level, count);
        } else if self.levels.len() < VALUES_MAX {
            self.levels.entry(value.to_owned()).or_default().add(level, count);
        } else {
            self.cut_short = true;
        }
    }

    /// Adds what another part counted.
    pub fn merge(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        self.cut_short |= other.cut_short;
        for (at, values) in other.facets.iter().enumerate() {
            values.iter().for_each(|(value, count)| self.add_value(at, value, *count));
        }
        for (start, bucket) in &other.buckets {
            self.add_bucket(*start, bucket.count);
            bucket.values.iter().for_each(|(value, count)| self.add_split(*start, value, *count));
        }
        for (value, levels) in &other.levels {
            match self.levels.get_mut(value) {
                Some(known) => known.merge(levels),
                None => levels.0.iter().for_each(|(level, count)| self.add_level(value, *level, *count)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Rng;

    #[test]
    fn a_level_is_at_most_a_64th_too_great_and_never_too_low() {
        let mut rng = Rng::for_test("a_level_is_at_most_a_64th_too_great_and_never_too_low");
        for at in 0..200_000_u64 {
            let number = if at < 100_000 { at } else { rng.next() >> rng.below(64) };
            let told = Levels::greatest(Levels::level(number));
            assert!(told >= number && told - number <= number / 64, "{number} {told}");
        }
        assert_eq!(Levels::greatest(Levels::level(u64::MAX)), u64::MAX);
    }

    #[test]
    fn a_percentile_is_that_of_the_sorted_numbers() {
        let mut rng = Rng::for_test("a_percentile_is_that_of_the_sorted_numbers");
        for _ in 0..500 {
            let mut numbers: Vec<u64> = (0..1 + rng.below(200)).map(|_| rng.next() >> rng.below(60)).collect();
            let mut levels = Levels::default();
            numbers.iter().for_each(|number| levels.add(Levels::level(*number), 1));
            numbers.sort_unstable();
            for thousandths in [1, 500, 950, 990, 1_000] {
                let place = (numbers.len() as u64 * u64::from(thousandths)).div_ceil(1_000).max(1) - 1;
                let exact = numbers[usize::try_from(place).unwrap()];
                let told = levels.percentile(thousandths);
                assert!(told >= exact && told - exact <= exact / 64, "{thousandths}: {exact} {told}");
            }
        }
    }
}
