//! How long a certificate lasts, and whose it is: reads the two times of its validity (RFC 5280, 4.1.2.5), and the URI in which
//! the ledger's authority writes its holder. Pure.

use base64::decode;
use chrono::{NaiveDateTime, TimeZone as _, Utc};

/// Whose a certificate is, as it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Of the organisation's log.
    pub origin: String,
    /// Hex.
    pub workspace: String,
    /// Hex.
    pub gateway: String,
}

/// The gateway that the first certificate of a PEM chain names, `custody://<origin>/workspace/<id>/gateway/<id>`; `None` when
/// it names none, or more than one.
pub fn holder(pem: &str) -> Option<Holder> {
    let der = der(pem)?;
    let der = der.as_slice().into();
    let certificate = webpki::EndEntityCert::try_from(&der).ok()?;
    let mut names = certificate.valid_uri_names();
    let rest = names.next()?.strip_prefix("custody://")?;
    let (rest, gateway) = rest.rsplit_once("/gateway/")?;
    let (origin, workspace) = rest.rsplit_once("/workspace/")?;
    let one = names.next().is_none();
    one.then(|| Holder { origin: origin.to_owned(), workspace: workspace.to_owned(), gateway: gateway.to_owned() })
}

fn der(pem: &str) -> Option<Vec<u8>> {
    let (_, rest) = pem.split_once("-----BEGIN CERTIFICATE-----")?;
    let (body, _) = rest.split_once("-----END CERTIFICATE-----")?;
    decode(body)
}

/// When a certificate is valid, in microseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// From.
    pub not_before_us: u64,
    /// Until.
    pub not_after_us: u64,
}

impl Validity {
    /// When to ask for the next one: after two thirds of its life.
    pub fn renew_at_us(self) -> u64 {
        self.not_before_us + self.not_after_us.saturating_sub(self.not_before_us) / 3 * 2
    }
}

/// Validity of the first certificate of a PEM chain; `None` when it cannot be read.
pub fn validity(pem: &str) -> Option<Validity> {
    let der = der(pem)?;
    let certificate = sequence(&der)?;
    let tbs = sequence(certificate)?;
    let mut rest = tbs;
    // Version (tagged 0, may be absent), serial number, algorithm, issuer; then the validity.
    if rest.first() == Some(&0xa0) {
        (_, _, rest) = element(rest)?;
    }
    for _ in 0..3 {
        (_, _, rest) = element(rest)?;
    }
    let validity = sequence(rest)?;
    let (tag, before, rest) = element(validity)?;
    let not_before_us = time(tag, before)?;
    let (tag, after, _) = element(rest)?;
    Some(Validity { not_before_us, not_after_us: time(tag, after)? })
}

/// Content of the sequence at the front.
fn sequence(der: &[u8]) -> Option<&[u8]> {
    element(der).filter(|(tag, _, _)| *tag == 0x30).map(|(_, content, _)| content)
}

/// Tag, content and what follows of the DER element at the front.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

fn time(tag: u8, text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let whole = match tag {
        // UTCTime: two digits of the year, 1950 to 2049.
        0x17 if text.get(..2)? < "50" => format!("20{text}"),
        0x17 => format!("19{text}"),
        0x18 => text.to_owned(),
        _ => return None,
    };
    let time = NaiveDateTime::parse_from_str(&whole, "%Y%m%d%H%M%SZ").ok()?;
    u64::try_from(Utc.from_utc_datetime(&time).timestamp_micros()).ok()
}

/// Base64 of a PEM body, whose whitespace does not count.
mod base64 {
    pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
        let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
        for letter in text.bytes().filter(|letter| !letter.is_ascii_whitespace() && *letter != b'=') {
            let value = match letter {
                b'A'..=b'Z' => letter - b'A',
                b'a'..=b'z' => letter - b'a' + 26,
                b'0'..=b'9' => letter - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
            count += 6;
            if count >= 8 {
                count -= 8;
                bytes.push(u8::try_from(bits >> count & 0xff).ok()?);
            }
        }
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_times_are_read() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2056, 1, 2);
        let pem = params.self_signed(&pair).unwrap().pem();
        let validity = validity(&pem).unwrap();
        assert_eq!(validity.not_before_us, 1_767_225_600_000_000);
        assert_eq!(validity.not_after_us, 2_713_996_800_000_000);
        assert_eq!(super::validity("nonsense"), None);
        assert_eq!(super::validity(&pem.replace("MII", "AII")), None);
    }
}
