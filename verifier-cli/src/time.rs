//! Times as people write them (RFC 3339, UTC), and as records hold them: microseconds since 1970.

use chrono::{DateTime, NaiveDate, SecondsFormat};

/// 10000-01-01T00:00:00Z, which RFC 3339 cannot write.
const YEAR_10000_US: i64 = 253_402_300_800_000_000;

/// Microseconds as RFC 3339 text.
pub fn text(micros: u64) -> String {
    let time = i64::try_from(micros).ok().and_then(DateTime::from_timestamp_micros);
    time.map_or_else(|| format!("{micros} µs"), |time| time.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

/// Seconds as RFC 3339 text: the time that a witness wrote may be any number.
pub fn seconds(seconds: u64) -> String {
    seconds.checked_mul(1_000_000).map_or_else(|| format!("{seconds} s"), text)
}

/// Reads `2026-03-01T12:00:00Z`, with any offset, or `2026-03-01`, which is the beginning of that day in UTC.
///
/// # Errors
/// In words.
pub fn parse(text: &str) -> Result<u64, String> {
    let day = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok().and_then(|day| day.and_hms_opt(0, 0, 0));
    let micros = match day {
        Some(day) => day.and_utc().timestamp_micros(),
        None => DateTime::parse_from_rfc3339(text)
            .map_err(|_| "not a time like 2026-03-01T12:00:00Z or 2026-03-01".to_owned())?
            .timestamp_micros(),
    };
    // A leap second at its end can reach past the last year that has four digits.
    if micros >= YEAR_10000_US {
        return Err("after the year 9999".to_owned());
    }
    u64::try_from(micros).map_err(|_| "before 1970".to_owned())
}

/// The wall clock, in microseconds: the default of `--as-of`, and used for nothing else.
#[expect(clippy::disallowed_methods, reason = "the one place where this program asks for the time of day")]
pub fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.ok().and_then(|since| u64::try_from(since.as_micros()).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_is_none_is_shown_as_its_number() {
        assert_eq!(seconds(1_772_323_200), "2026-03-01T00:00:00Z");
        assert_eq!(seconds(1 << 63), "9223372036854775808 s");
        assert_eq!(text(u64::MAX), "18446744073709551615 µs");
    }

    #[test]
    fn times_are_read_as_they_are_written() {
        for (written, micros) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-03-01", 1_772_323_200_000_000),
            ("2026-03-01T12:00:00.000001+02:00", 1_772_359_200_000_001),
        ] {
            assert_eq!(parse(written), Ok(micros), "{written}");
            assert_eq!(parse(&text(micros)), Ok(micros));
        }
        assert!(parse("yesterday").is_err());
        assert!(parse("1969-12-31").is_err());
        assert!(parse("9999-12-31T23:59:59.999999Z").is_ok());
        assert!(parse("9999-12-31T23:59:60Z").is_err(), "the year 10000");
    }
}
