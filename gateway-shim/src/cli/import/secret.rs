//! What looks like a secret. Rather one too many: in a file of mode 0600 nothing is lost.

/// Parts of names that say so, in capitals.
const NAMES: &[&str] = &[
    "KEY",
    "TOKEN",
    "SECRET",
    "PASS",
    "PASSWORD",
    "PWD",
    "PAT",
    "CREDENTIAL",
    "CREDENTIALS",
    "AUTH",
    "AUTHORIZATION",
    "COOKIE",
    "DSN",
    "PRIVATE",
    "APIKEY",
    "BEARER",
    "CONNECTION",
    "CREDS",
    "SESSION",
    "WEBHOOK",
];
/// How secrets of known kinds begin.
const BEGINNINGS: &[&str] = &[
    "sk-",
    "sk_",
    "pk_",
    "rk_",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "github_pat_",
    "glpat-",
    "xoxb-",
    "xoxp-",
    "xapp-",
    "AKIA",
    "ASIA",
    "eyJ",
    "AIza",
    "ya29.",
    "npm_",
    "pypi-",
    "hf_",
    "lin_api_",
    "ntn_",
    "secret_",
    "figd_",
    "dop_v1_",
    "SG.",
    "Bearer ",
    "Basic ",
    "-----BEGIN",
];
/// From this length on what mixes letters and digits counts as made by chance.
const RANDOM_MIN: usize = 24;

/// Whether a variable, a header or an option of this name and value holds a secret.
pub(super) fn is_secret(name: &str, value: &str) -> bool {
    names_one(name) || looks_like_one(value)
}

/// Whether the name says so.
pub(super) fn names_one(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let parts: Vec<&str> = name.split(|letter: char| !letter.is_ascii_alphanumeric()).collect();
    let whole = ["APIKEY", "ACCESSTOKEN", "ACCESSKEY", "AUTHTOKEN"].iter().any(|known| parts.concat().contains(known));
    whole || parts.iter().any(|part| NAMES.contains(part))
}

/// Whether the value does.
pub(super) fn looks_like_one(value: &str) -> bool {
    let known = BEGINNINGS.iter().any(|begins| value.starts_with(begins) && value.len() > begins.len() + 4);
    known || has_password(value) || is_random(value)
}

/// `scheme://name:password@host`
fn has_password(value: &str) -> bool {
    let rest = value.split_once("://").map_or("", |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority.rsplit_once('@').is_some_and(|(who, _)| who.contains(':'))
}

fn is_random(value: &str) -> bool {
    let letters =
        value.len() >= RANDOM_MIN && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-+=".contains(&byte));
    let digits = value.bytes().filter(u8::is_ascii_digit).count();
    letters && digits >= 4 && value.bytes().any(|byte| byte.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_seen_by_name_or_value_and_the_rest_is_left() {
        for (name, value) in [
            ("GITHUB_PERSONAL_ACCESS_TOKEN", "x"),
            ("X-Api-Key", "x"),
            ("apikey", "x"),
            ("DATABASE", "postgres://app:hunter2@db.example/app"),
            ("THING", "ghp_abcdefgh"),
            ("THING", "9f86d081884c7d659a2feaa0c55ad015"),
        ] {
            assert!(is_secret(name, value), "{name}={value}");
        }
        for (name, value) in [
            ("LOG_LEVEL", "debug"),
            ("KEYBOARD", "de"),
            ("DATABASE", "postgres://db.example/app"),
            ("ROOT", "/srv/files/2026/reports/of-the-year"),
            ("PATTERN", "sk-"),
            ("LANG", "en_US.UTF-8"),
        ] {
            assert!(!is_secret(name, value), "{name}={value}");
        }
    }
}
