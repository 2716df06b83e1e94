//! What looks like a secret. Rather one too many: in a file of mode 0600 nothing is lost.
//!
//! What must hold: a word is looked through whole, whatever stands around the secret in it: options, addresses, headers, JSON and
//! lines of a shell are all names with values somewhere.

/// Parts of names that say so, in capitals; also with an S behind them, and whatever begins with PASS.
const NAMES: &[&str] = &[
    "KEY",
    "TOKEN",
    "SECRET",
    "PIN",
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
    "LICENSE",
];
/// What begins with PASS and is none.
const PASSES: &[&str] = &["PASSIVE", "PASSTHROUGH", "PASSTHRU", "PASSED"];
/// Parts of names of who signs in: a value with a colon has the password behind it.
const WHO: &[&str] = &["USER", "USERNAME", "USERPWD", "BASIC", "LOGIN", "ACCOUNT"];
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
    names_one(name) || is_of_who(name, value) || hides_one(value)
}

/// Whether the name is of who signs in, and the value has a password too. `1000:1000` is a user and a group.
pub(super) fn is_of_who(name: &str, value: &str) -> bool {
    let capitals = name.to_ascii_uppercase();
    let of_who =
        name == "-u" || capitals.split(|letter: char| !letter.is_ascii_alphanumeric()).any(|part| WHO.contains(&part));
    let behind = value.split_once(':').map_or("", |(_, behind)| behind);
    of_who && !behind.starts_with("//") && behind.bytes().any(|byte| !byte.is_ascii_digit())
}

/// Whether the name says so.
pub(super) fn names_one(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let parts: Vec<&str> = name.split(|letter: char| !letter.is_ascii_alphanumeric()).collect();
    let whole = parts.concat();
    WITHIN.iter().any(|known| whole.contains(known)) || parts.iter().any(|part| is_named(part))
}

fn is_named(part: &str) -> bool {
    let known = |part: &str| NAMES.contains(&part);
    known(part) || part.strip_suffix('S').is_some_and(known) || (part.starts_with("PASS") && !PASSES.contains(&part))
}

/// Whether a secret stands anywhere in this text.
pub(super) fn hides_one(text: &str) -> bool {
    let ends = |letter: char| letter.is_whitespace() || "\"'`,;&?=|()<>{}[]".contains(letter);
    let behind = |(at, _): (usize, &str)| text.get(at + 1..).unwrap_or_default().trim_start_matches(['"', '\'', ' ']);
    looks_like_one(text)
        || text.split(ends).any(looks_like_one)
        || text.match_indices(['=', ':']).map(behind).any(begins_like_one)
        || pairs(text).any(|(name, value)| {
            !is_variable_of_a_shell(value) && (named(name) || is_of_who(name, value) || looks_like_one(value))
        })
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
    begins_like_one(value)
        || has_password(value)
        || has_secret_path(value)
        || is_random(value)
        || is_pair(value)
        || is_joined_password(value)
}

fn begins_like_one(value: &str) -> bool {
    BEGINNINGS.iter().any(|begins| value.starts_with(begins) && value.len() > begins.len() + 4)
}

/// `scheme://name:password@host`, or a token for a name, wherever it stands. A password may have a slash in it.
fn has_password(value: &str) -> bool {
    let mut before = "";
    for part in value.split("://") {
        let is_http = before.ends_with("http") || before.ends_with("https");
        let is_first = before.is_empty();
        before = part;
        if is_first {
            continue;
        }
        let all = part.split(['?', '#']).next().unwrap_or_default();
        let authority = all.split('/').next().unwrap_or_default();
        let who = authority.rsplit_once('@').map(|(who, _)| who);
        let is_one = |who: &str| who.contains(':') || is_random(who) || BEGINNINGS.iter().any(|of| who.starts_with(of));
        // Of `host:8443/@scope` the number is a port.
        let has_port = |after: &str| is_http && after.starts_with(|letter: char| letter.is_ascii_digit());
        let with_slash = all.rsplit_once('@').and_then(|(who, _)| who.split_once(':'));
        if who.is_some_and(is_one) || with_slash.is_some_and(|(name, after)| !name.contains('/') && !has_port(after)) {
            return true;
        }
    }
    false
}

/// An address with a part in its path that is one.
fn has_secret_path(value: &str) -> bool {
    value.split("://").skip(1).any(|rest| {
        let path = rest.split(['?', '#']).next().unwrap_or_default();
        path.split('/').skip(1).any(is_secret_segment)
    })
}

/// `name:password`, as far as it can be told from an image and its tag, a host and its port, a volume.
fn is_pair(value: &str) -> bool {
    let Some((name, behind)) = value.split_once(':') else { return false };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.@-+".contains(&byte);
    let is_name = name.starts_with(|letter: char| letter.is_ascii_alphanumeric()) && name.bytes().all(plain);
    let is_version = behind.trim_start_matches('v').starts_with(|letter: char| letter.is_ascii_digit());
    let mixed =
        behind.bytes().any(|byte| byte.is_ascii_digit()) && behind.bytes().any(|byte| byte.is_ascii_alphabetic());
    is_name && mixed && !is_version && !behind.contains(['/', '\\', ':'])
}

/// `-phunter2`; of `-p8080:80` it is a port.
fn is_joined_password(value: &str) -> bool {
    let behind = value.strip_prefix("-p").unwrap_or_default();
    let is_port = behind.bytes().all(|byte| byte.is_ascii_digit() || b".:".contains(&byte));
    !is_port && !behind.starts_with(['@', '-']) && behind.bytes().any(|byte| !byte.is_ascii_lowercase())
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
            ("SLACK_URL", "https://hooks.slack.example/services/T0001AAA/B0001BBB/abcdEFGH1234abcdEFGH1234"),
            ("ARGUMENT", "https://mcp.example/api/mcp/s/ZjA5YzU4ZTktMmQ3Ny00NjM0/mcp"),
            ("ARGUMENT", "--url=https://mcp.example/s/ZjA5YzU4ZTktMmQ3Ny00NjM0"),
            ("DATABASE", "postgres://app:p/w@db.example/app"),
            ("DATABASE", "postgres://app:1/w@db.example/app"),
            ("ARGUMENT", "-phunter2"),
            ("ARGUMENT", "admin:hunter2"),
            ("ARGUMENT", "--user=admin:letmein"),
            ("ES_LOGIN", "elastic:letmein"),
            ("PASSCODE", "x"),
            ("PASSKEY", "x"),
            ("PASSWORT", "x"),
            ("TOKENS", "x"),
            ("GITLAB_PATS", "x"),
            ("--pin", "x"),
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
            ("ARGUMENT", "-p8080:80"),
            ("ARGUMENT", "-prod"),
            ("ARGUMENT", "img:1.0"),
            ("ARGUMENT", "mcp/foo:v1.2-alpine3"),
            ("ARGUMENT", "db.example:5432"),
            ("ARGUMENT", "https://registry.example:8443/@scope/server"),
            ("ARGUMENT", "https://registry.example/@scope/server"),
            ("USER", "1000:1000"),
            ("USER_URL", "https://a.example/mcp"),
            ("MODE", "passthrough"),
            ("PASSTHROUGH", "x"),
            ("SPIN", "x"),
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
