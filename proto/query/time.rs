//! Times and spans of time in a question, in microseconds, by the Gregorian calendar and UTC; and back as text.

const SECOND_US: u64 = 1_000_000;
const DAY_US: u64 = 86_400 * SECOND_US;
/// 9999-12-31T23:59:59.999999Z, as in the strict form.
const MAX_US: u64 = 253_402_300_799_999_999;

/// Units of a span of time.
const UNITS: [(&str, u64); 7] = [
    ("us", 1),
    ("ms", 1_000),
    ("s", SECOND_US),
    ("m", 60 * SECOND_US),
    ("h", 3_600 * SECOND_US),
    ("d", DAY_US),
    ("w", 7 * DAY_US),
];

/// A number, perhaps with decimals, and its unit.
pub(super) fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let at = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(at)?;
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    let mut value = whole.parse::<u64>().ok()?.checked_mul(*scale)?;
    let mut part = *scale;
    if number.contains('.') && decimals.is_empty() {
        return None;
    }
    for digit in decimals.bytes() {
        let digit = u64::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?);
        // What is less than one counts for nothing.
        let tenths = part.checked_mul(digit)?.checked_div(10)?;
        value = value.checked_add(tenths)?;
        part = part.checked_div(10)?;
    }
    Some(value)
}

/// A span of time in microseconds.
pub fn span(text: &str) -> Option<u64> {
    scaled(text, &UNITS)
}

/// A time that is written in full, in microseconds.
pub fn instant(text: &str) -> Option<u64> {
    read(text, 0).map(|(first, _)| first)
}

/// Whether a text is a span of time: as a time it means so long before now.
pub(super) fn is_span(text: &str) -> bool {
    span(text).is_some()
}

/// First and last microsecond of what a text stands for: a day, an hour's minute, a second, or so long before now.
pub(super) fn read(text: &str, now_us: u64) -> Option<(u64, u64)> {
    if text == "now" {
        return Some((now_us, now_us));
    }
    if let Some(span) = span(text) {
        let then = now_us.saturating_sub(span);
        return Some((then, then));
    }
    let (date, clock) = text.split_once(['T', 't']).map_or((text, None), |(date, clock)| (date, Some(clock)));
    let mut parts = date.split('-');
    let (year, month, day) = (digits(parts.next()?, 4)?, digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    if parts.next().is_some() {
        return None;
    }
    let midnight = days(year, month, day)?.checked_mul(DAY_US)?;
    let (within, width) = match clock {
        None => (0, DAY_US),
        Some(clock) => of_day(clock)?,
    };
    let first = midnight.checked_add(within)?;
    Some((first, first.checked_add(width)?.checked_sub(1)?))
}

fn digits(text: &str, count: usize) -> Option<u64> {
    (text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

/// Microseconds since midnight, and how many the text stands for; UTC alone, with or without saying so.
fn of_day(text: &str) -> Option<(u64, u64)> {
    let text = text.strip_suffix(['Z', 'z']).unwrap_or(text);
    let (clock, fraction) = text.split_once('.').map_or((text, None), |(clock, fraction)| (clock, Some(fraction)));
    let mut parts = clock.split(':');
    let (hour, minute) = (digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    let second = parts.next().map(|second| digits(second, 2).ok_or(())).transpose().ok()?;
    if parts.next().is_some() || hour > 23 || minute > 59 || second.is_some_and(|second| second > 59) {
        return None;
    }
    let minutes = hour.checked_mul(60)?.checked_add(minute)?;
    let at = minutes.checked_mul(60)?.checked_add(second.unwrap_or(0))?.checked_mul(SECOND_US)?;
    match (second, fraction) {
        (None, None) => Some((at, 60 * SECOND_US)),
        (None, Some(_)) => None,
        (Some(_), None) => Some((at, SECOND_US)),
        (Some(_), Some(fraction)) => {
            if fraction.is_empty() || fraction.len() > 6 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            let mut width = SECOND_US;
            let mut part = 0_u64;
            for digit in fraction.bytes() {
                width = width.checked_div(10)?;
                part = part.checked_add(width.checked_mul(u64::from(digit.checked_sub(b'0')?))?)?;
            }
            Some((at.checked_add(part)?, width))
        }
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_of(year: u64, month: u64) -> u64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap(year) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days before a year since 1970, of a year from 1970 on.
fn before(year: u64) -> Option<u64> {
    let past = year.checked_sub(1)?;
    let leaps = (past / 4).checked_sub(past / 100)?.checked_add(past / 400)?.checked_sub(477)?;
    year.checked_sub(1970)?.checked_mul(365)?.checked_add(leaps)
}

/// Days since 1970-01-01.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=days_of(year, month)).contains(&day) {
        return None;
    }
    let months: u64 = (1..month).map(|month| days_of(year, month)).sum();
    before(year)?.checked_add(months)?.checked_add(day.checked_sub(1)?)
}

/// A time as text, which reads as it; what is past the last year stands as its end.
pub(super) fn text(at_us: u64) -> String {
    let at = at_us.min(MAX_US);
    let (mut rest, within) = (at / DAY_US, at % DAY_US);
    let mut year = 1970_u64.saturating_add(rest / 366);
    while before(year.saturating_add(1)).is_some_and(|next| next <= rest) {
        year = year.saturating_add(1);
    }
    rest = rest.saturating_sub(before(year).unwrap_or_default());
    let mut month = 1;
    while rest >= days_of(year, month) {
        rest = rest.saturating_sub(days_of(year, month));
        month = month.saturating_add(1);
    }
    let (seconds, fraction) = (within / SECOND_US, within % SECOND_US);
    format!(
        "{year:04}-{month:02}-{:02}T{:02}:{:02}:{:02}.{fraction:06}Z",
        rest.saturating_add(1),
        seconds / 3_600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (said, first, width) in [
            ("1970-01-01", 0, DAY_US),
            ("2026-03-01T00:00Z", 1_772_323_200_000_000, 60 * SECOND_US),
            ("2026-03-01T00:00:00", 1_772_323_200_000_000, SECOND_US),
            ("2026-03-01T00:00:00.25Z", 1_772_323_200_250_000, 10_000),
            ("2024-02-29", 1_709_164_800_000_000, DAY_US),
            ("24h", 1_000_000_000_000_000 - DAY_US, 1),
        ] {
            assert_eq!(read(said, 1_000_000_000_000_000), Some((first, first + width - 1)), "{said}");
        }
        for said in
            ["2026-02-29", "2026-13-01", "1969-12-31", "2026-03-01T24:00", "2026-03-01T1:00", "5", "2026-3-1", "-5s"]
        {
            assert_eq!(read(said, 1), None, "{said}");
        }
    }

    #[test]
    fn a_time_as_text_reads_as_it() {
        let mut rng = crate::testing::Rng::for_test("a_time_as_text_reads_as_it");
        for _ in 0..20_000 {
            let at = rng.below(MAX_US + 1);
            assert_eq!(read(&text(at), 0), Some((at, at)), "{}", text(at));
        }
    }

    #[test]
    fn spans_have_units_and_decimals() {
        for (said, us) in
            [("2s", Some(2_000_000)), ("1.5ms", Some(1_500)), ("7d", Some(7 * DAY_US)), ("3", None), ("1.s", None)]
        {
            assert_eq!(span(said), us, "{said}");
        }
    }
}
