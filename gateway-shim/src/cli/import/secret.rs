//! What looks like a secret. Rather one too many: in a file of mode 0600 nothing is lost.
//!
//! What must hold: a word is looked through whole, whatever stands around the secret in it: options, addresses, headers, JSON and
//! lines of a shell are all names with values somewhere.

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
    "SIG",
    "SIGNATURE",
];
/// What names a secret wherever it stands in a name, also where nothing parts its words.
const WITHIN: &[&str] =
    &["APIKEY", "ACCESSTOKEN", "ACCESSKEY", "AUTHTOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "PRIVATEKEY"];
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

/// Length from which on a part of an address's path counts as made by chance, if it has letters and a digit.
const SEGMENT_MIN: usize = 16;

/// Whether a variable, a header or an option of this name and value holds a secret.
pub(super) fn is_secret(name: &str, value: &str) -> bool {
    names_one(name) || hides_one(value)
}

/// Whether the name says so.
pub(super) fn names_one(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let parts: Vec<&str> = name.split(|letter: char| !letter.is_ascii_alphanumeric()).collect();
    let whole = parts.concat();
    WITHIN.iter().any(|known| whole.contains(known)) || parts.iter().any(|part| NAMES.contains(part))
}

/// Whether a secret stands anywhere in this text.
pub(super) fn hides_one(text: &str) -> bool {
    let ends = |letter: char| letter.is_whitespace() || "\"'`,;&?=|()<>{}[]".contains(letter);
    let behind = |(at, _): (usize, &str)| text.get(at + 1..).unwrap_or_default().trim_start_matches(['"', '\'', ' ']);
    looks_like_one(text)
        || text.split(ends).any(looks_like_one)
        || text.match_indices(['=', ':']).map(behind).any(begins_like_one)
        || pairs(text).any(|(name, value)| !is_variable_of_a_shell(value) && (named(name) || looks_like_one(value)))
}

/// Whether a part of an address's path is one: whoever knows such an address may call.
pub(super) fn is_secret_segment(segment: &str) -> bool {
    let has = |what: fn(&u8) -> bool| segment.bytes().any(|byte| what(&byte));
    let by_chance = segment.len() >= SEGMENT_MIN && has(u8::is_ascii_digit) && !segment.contains('.');
    by_chance || segment.len() >= 2 * SEGMENT_MIN || hides_one(segment)
}

/// Each name with its value, behind a `=` or a `:`. The value reaches to the next blank, quote or sign that ends one.
fn pairs(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.match_indices(['=', ':']).filter_map(|(at, sign)| {
        let (before, after) = (text.get(..at)?, text.get(at + sign.len()..)?);
        let before = before.trim_end_matches(['"', '\'', ' ', '\\']);
        let name = before.rsplit(|letter: char| !letter.is_ascii_alphanumeric() && !"_-.".contains(letter)).next()?;
        let after = after.trim_start_matches(['"', '\'', ' ', '\\']);
        let value = after.split(|letter: char| letter.is_whitespace() || "\"'`,;&|)}]".contains(letter)).next()?;
        // A volume of a container, the scheme of an address, the digest of an image: no name and its value.
        let other = sign == ":" && (value.starts_with('/') || name.starts_with("sha"));
        (!name.is_empty() && !value.is_empty() && !other).then_some((name, value))
    })
}

/// `-eNAME=value` is an option and a name in one.
fn named(name: &str) -> bool {
    let joined = if name.starts_with('-') && !name.starts_with("--") { name.get(2..) } else { None };
    names_one(name) || joined.is_some_and(names_one)
}

/// `$NAME` or `${NAME}`: the secret is where the shell takes it from.
fn is_variable_of_a_shell(value: &str) -> bool {
    let name = value.strip_prefix('$').unwrap_or_default();
    let name = name.strip_prefix('{').and_then(|name| name.strip_suffix('}')).unwrap_or(name);
    crate::config::is_variable(name)
}

/// Whether the value as it stands does.
fn looks_like_one(value: &str) -> bool {
    begins_like_one(value) || has_password(value) || is_random(value)
}

fn begins_like_one(value: &str) -> bool {
    BEGINNINGS.iter().any(|begins| value.starts_with(begins) && value.len() > begins.len() + 4)
}

/// `scheme://name:password@host`, or a token for a name, wherever it stands.
fn has_password(value: &str) -> bool {
    value.split("://").skip(1).any(|rest| {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let who = authority.rsplit_once('@').map(|(who, _)| who);
        who.is_some_and(|who| who.contains(':') || is_random(who) || BEGINNINGS.iter().any(|of| who.starts_with(of)))
    })
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
            ("DATABASE", "postgresql://app:hunter2@db.example/app?sslmode=require"),
            ("ARGUMENT", "--dsn=mysql://u:hunter2@h/db?charset=utf8"),
            ("ARGUMENT", "--env=DB_PASSWORD=hunter2"),
            ("ARGUMENT", "-eSECRET=hunter2"),
            ("ARGUMENT", "-eTOKEN=hunter2"),
            ("ARGUMENT", "--header=X-Api-Key: hunter2"),
            ("ARGUMENT", "Authorization: hunter2"),
            ("ARGUMENT", "X-Of-Ours: Bearer hunter2"),
            ("ARGUMENT", "LANG=C TOKEN='hunter2' exec node server.js"),
            ("ARGUMENT", "{\"url\": \"x\", \"clientSecret\": \"hunter2\"}"),
            ("ARGUMENT", "{\"schl\u{fc}ssel\u{e9}Token\":\"x\",\"\u{fc}token\": \"hunter2\"}"),
            ("ARGUMENT", "git+https://ghp_abcdefgh@git.example/a/b"),
            ("ARGUMENT", "https://blob.example/a?sv=1&sig=hunter2"),
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
            ("ARGUMENT", "TOKEN=$TOKEN exec node server.js"),
            ("ARGUMENT", "session-data:/data"),
            ("ARGUMENT", "--port=5432"),
            ("ARGUMENT", "https://host.example:8443/mcp?page=1"),
            ("ARGUMENT", "@modelcontextprotocol/server-filesystem@2026.8.31"),
            ("ARGUMENT", "ghcr.io/a/b@sha256:9f86d081884c7d659a2feaa0c55ad0159f86d081884c7d659a2feaa0c55ad015"),
        ] {
            assert!(!is_secret(name, value), "{name}={value}");
        }
    }

    #[test]
    fn a_part_of_a_path_that_nobody_would_choose_is_a_secret() {
        for (segment, secret) in [
            ("ZjA5YzU4ZTktMmQ3Ny00", true),
            ("123e4567-e89b-12d3-a456-426614174000", true),
            ("sk-abcdefgh", true),
            ("abcdefghijklmnopqrstuvwxyzabcdefgh", true),
            ("mcp", false),
            ("v1", false),
            ("organisation-services", false),
            ("2026.08.31-release-of-ours", false),
        ] {
            assert_eq!(is_secret_segment(segment), secret, "{segment}");
        }
    }
}
