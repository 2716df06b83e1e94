//! `gateway-shim check`: tries everything that a running shim needs, and says for each what is wrong and the next move.
//!
//! What must hold: it works whether the shim runs or not, changes nothing and calls no tool; one thing that is wrong hides no
//! other; no secret is in what it says. Exit code 1 if something is wrong.

use std::path::Path;

use clap::Args;
use custody::wire::ClockState;

use super::{
    At, Done, EXIT_FAILED,
    import::FILL_IN,
    output::{print, row, size, table, until},
    running::Running,
};
use crate::{
    access::Policy,
    certificate, clock,
    config::{Config, ServerConfig},
    durable, gateway, key, random, serve,
    server::sandbox,
};

#[derive(Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    at: At,
    /// Asks nobody over a network: neither the ledger nor servers.
    #[arg(long)]
    offline: bool,
}

/// How one thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Ok,
    /// It can be used, and somebody may want to know.
    Note,
    Wrong,
}

/// One thing that was looked at.
#[derive(Clone, Debug)]
struct Found {
    how: How,
    what: String,
    says: String,
}

/// All that was found.
#[derive(Default)]
struct Look(Vec<Found>);

impl Look {
    fn add(&mut self, how: How, what: &str, says: impl Into<String>) {
        self.0.push(Found { how, what: what.to_owned(), says: says.into() });
    }

    fn either(&mut self, what: &str, found: Result<String, String>) {
        match found {
            Ok(says) => self.add(How::Ok, what, says),
            Err(why) => self.add(How::Wrong, what, why),
        }
    }
}

pub(super) async fn run(args: CheckArgs) -> Done {
    let config = args.at.load()?;
    let now_us = clock::now_us();
    let mut look = Look::default();
    look.add(How::Ok, "configuration", "can be read");
    for warning in config.warnings().into_iter().chain(super::config::exposed(&config)) {
        look.add(How::Note, "configuration", warning);
    }
    keys(&config, now_us, &mut look);
    clock_of(&mut look);
    spool(&config, &mut look);
    access(&config, now_us, &mut look);
    if args.offline {
        look.add(How::Note, "ledger", "not asked (--offline)");
    } else {
        look.either("ledger", gateway::reach_ledger(&config).await.map(|()| config.ledger.endpoint.clone()));
    }
    for (name, server) in &config.servers {
        let what = format!("server {name}");
        look.either(&what, one_server(&config, name, server, args.offline).await);
        if to_fill_in(server) {
            look.add(
                How::Wrong,
                &what,
                format!("{FILL_IN} stands where a value must; hint: its section, and the files it names"),
            );
        }
    }
    look.0.extend(sandboxes());
    running(&config, &mut look).await;
    let wrong = look.0.iter().filter(|found| found.how == How::Wrong).count();
    print(&report(&look.0));
    Ok(if wrong == 0 { 0 } else { EXIT_FAILED })
}

/// A line for each thing, what is to be done below it.
fn report(found: &[Found]) -> String {
    let words = |how| match how {
        How::Ok => "ok",
        How::Note => "note",
        How::Wrong => "WRONG",
    };
    let rows: Vec<Vec<String>> = found
        .iter()
        .flat_map(|found| {
            let mut parts = found.says.split("; hint: ");
            let first = row([words(found.how), &found.what, parts.next().unwrap_or_default()]);
            std::iter::once(first).chain(parts.map(|hint| row(["", "", &format!("hint: {hint}")])).collect::<Vec<_>>())
        })
        .collect();
    let wrong = found.iter().filter(|found| found.how == How::Wrong).count();
    let end = match wrong {
        0 => "nothing is wrong".to_owned(),
        1 => "1 thing is wrong".to_owned(),
        more => format!("{more} things are wrong"),
    };
    format!("{}\n{end}", table(&rows))
}

fn keys(config: &Config, now_us: u64, look: &mut Look) {
    let file = |path: &Path, key: Result<(), key::KeyError>| {
        key.map(|()| format!("{}, its owner's alone", path.display())).map_err(|why| why.to_string())
    };
    let own = &config.gateway;
    look.either("signing key", file(&own.key, key::read_signing(&own.key).map(drop)));
    look.either("TLS key", file(&own.tls_key, key::read_secret(&own.tls_key).map(drop)));
    match gateway::certificate_until_us(config) {
        Ok(None) => look.add(How::Ok, "enrolment", "there; this ledger needs no certificate"),
        Ok(Some(until_us)) => {
            look.either("enrolment", lasts(until_us, now_us, "gateway-shim request, then ledger gateway enrol"))
        }
        Err(why) => look.add(How::Wrong, "enrolment", why.to_string()),
    }
    if let Some(path) = config.serve.as_ref().and_then(|serve| serve.certificate.as_ref()) {
        let hint = "hint: serve.certificate names a PEM file";
        let pem =
            std::fs::read_to_string(path).map_err(|why| format!("{} cannot be read: {why}; {hint}", path.display()));
        let read = pem.and_then(|pem| {
            certificate::validity(&pem).ok_or_else(|| format!("{} holds no certificate; {hint}", path.display()))
        });
        look.either(
            "certificate to members",
            read.and_then(|of| lasts(of.not_after_us, now_us, "renew it; a running shim reads it again")),
        );
    }
}

fn lasts(until_us: u64, now_us: u64, hint: &str) -> Result<String, String> {
    let said = format!("good until {}", until(until_us, now_us));
    if until_us > now_us { Ok(said) } else { Err(format!("{said}; hint: {hint}")) }
}

fn clock_of(look: &mut Look) {
    let hint = "hint: chrony, ntpd or systemd-timesyncd";
    match clock::state() {
        ClockState::Synchronised => look.add(How::Ok, "clock", "synchronised"),
        ClockState::Unsynchronised => look.add(How::Wrong, "clock", format!("not synchronised; {hint}")),
        _ => look.add(How::Note, "clock", format!("this system does not say whether it is synchronised; {hint}")),
    }
}

fn spool(config: &Config, look: &mut Look) {
    let dir = &config.spool.dir;
    let there = dir.ancestors().find(|dir| dir.is_dir()).unwrap_or_else(|| Path::new("."));
    let probe = there.join(format!(".custody-check-{}", custody::id::hex(&random::bytes::<8>())));
    let tried = durable::create_new(&probe, b"", true).and_then(|()| durable::remove(&probe));
    look.either(
        "spool",
        tried.map(|()| format!("{} may be written", dir.display())).map_err(|why| {
            format!("{} may not be written: {why}; hint: whose folder is it, and is there space?", dir.display())
        }),
    );
    let Some(free) = durable::free_bytes(there) else { return };
    let (used, most) = (durable::bytes_in(dir), config.spool.mib_max << 20);
    let says = format!("{} free for a spool of at most {}, which has {}", size(free), size(most), size(used));
    match free.saturating_add(used) >= most {
        true => look.add(How::Ok, "disk", says),
        false => look.add(How::Wrong, "disk", format!("{says}; hint: a larger disk, or a smaller spool.mib_max")),
    }
}

fn access(config: &Config, now_us: u64, look: &mut Look) {
    let Some(serve) = &config.serve else { return };
    let paths = serve.policies();
    let read = |path: &Path, key: &str| {
        std::fs::read_to_string(path).map_err(|why| {
            format!(
                "{} cannot be read: {why}; hint: serve.{key} names it; gateway-shim access template prints one",
                path.display()
            )
        })
    };
    let texts = read(&paths.workspace, "access").and_then(|workspace| {
        let organisation = paths.organisation.as_deref().map(|path| read(path, "organisation")).transpose()?;
        Ok((workspace, organisation))
    });
    let policy = texts.and_then(|(workspace, organisation)| {
        let policy = Policy::parse(&workspace, organisation.as_deref()).map_err(|faults| faults.0.join("; "))?;
        Ok((policy, workspace, organisation))
    });
    let (policy, workspace, organisation) = match policy {
        Ok(policy) => policy,
        Err(why) => return look.add(How::Wrong, "access policy", why),
    };
    let (members, rules) = (policy.members.len(), policy.rules.len());
    look.add(How::Ok, "access policy", format!("{members} members, {rules} rules"));
    for warning in policy.warnings(now_us) {
        look.add(How::Note, "access policy", warning);
    }
    let in_force = |path: &Path| std::fs::read_to_string(path).ok();
    match in_force(&paths.in_force()) {
        None => look.add(How::Note, "in force", "nothing yet; the first start puts the file in force"),
        Some(text) if text == workspace && in_force(&paths.organisation_in_force()) == organisation => {
            look.add(How::Ok, "in force", "what the file says");
        }
        Some(_) => look.add(
            How::Note,
            "in force",
            "something else than the file says; hint: gateway-shim access plan shows the difference",
        ),
    }
}

async fn one_server(config: &Config, name: &str, server: &ServerConfig, offline: bool) -> Result<String, String> {
    if let Some(url) = &server.url {
        let place = place(url);
        if !offline {
            return serve::probe(name, url, server).await.map(|speaks| format!("{place}: {speaks}"));
        }
        return Ok(format!("{place}: not asked (--offline)"));
    }
    server.process().whole_environment().map_err(|why| format!("failed to {why}"))?;
    let alone = std::iter::once((name.to_owned(), server.clone())).collect();
    let alone = Config { servers: alone, serve: None, ..config.clone() };
    serve::check(&alone).map_err(|faults| faults.0.join("; "))?;
    Ok(format!("{} can be started", server.command.first().map(String::as_str).unwrap_or_default()))
}

/// Scheme, host and port of an address: some have a secret in their path or query.
fn place(url: &str) -> String {
    let url: hyper::Uri = url.parse().unwrap_or_default();
    let host = url.authority().map_or("", |authority| authority.as_str().rsplit('@').next().unwrap_or_default());
    format!("{}://{host}", url.scheme_str().unwrap_or_default())
}

/// Whether something that `import` could not know is still open.
fn to_fill_in(server: &ServerConfig) -> bool {
    let file = |path: &Option<std::path::PathBuf>| {
        path.as_ref().and_then(|path| std::fs::read_to_string(path).ok()).is_some_and(|text| text.contains(FILL_IN))
    };
    let secret = server.credential.as_ref().is_some_and(|credential| file(&credential.file));
    let words = server.command.iter().chain(server.environment.values()).chain(&server.url);
    secret || file(&server.environment_file) || words.into_iter().any(|word| word.contains(FILL_IN))
}

fn sandboxes() -> Vec<Found> {
    let mut lines = sandbox::report().into_iter();
    let first = lines.next().map(|line| {
        let says = line.trim_start_matches("sandbox: ").to_owned();
        let how = if says.contains("hint: ") { How::Note } else { How::Ok };
        Found { how, what: "sandbox".to_owned(), says }
    });
    first.into_iter().chain(lines.map(|says| Found { how: How::Note, what: String::new(), says })).collect()
}

async fn running(config: &Config, look: &mut Look) {
    let status = match Running::connect(config).await {
        Ok(running) => running.status().await,
        Err(_) => return look.add(How::Note, "running", "no shim runs with this configuration now"),
    };
    match status {
        Ok(status) if status.state == "serving" => {
            let ledger = status.ledger.unwrap_or_default();
            let shipped = if ledger.connected { "connected to the ledger" } else { "not connected to the ledger" };
            look.add(How::Ok, "running", format!("a shim runs with this configuration, {shipped}"));
        }
        Ok(status) => {
            look.add(How::Wrong, "running", format!("it takes nothing more: {}; hint: its log says why", status.state))
        }
        Err(why) => look.add(How::Wrong, "running", why.text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_as_people_read_it() {
        let found = |how, what: &str, says: &str| Found { how, what: what.into(), says: says.into() };
        let all = [
            found(How::Ok, "configuration", "can be read"),
            found(How::Note, "configuration", "fork.second is missing; hint: a folder on another machine"),
            found(How::Wrong, "TLS key", "use the key file tls.key: others may read it; hint: chmod 600"),
            found(How::Ok, "server search", "https://search.example: answers, with sessions (up to 2025-11-25)"),
        ];
        insta::assert_snapshot!(report(&all));
        assert!(report(&all[..1]).ends_with("nothing is wrong"));
    }

    #[tokio::test]
    async fn no_part_of_an_address_that_may_be_secret_is_said() {
        let text = "[servers.a]\nurl = \"https://CANARY:CANARY@zap.example:8443/s/CANARY/mcp?key=CANARY\"\n";
        let config =
            Config::parse(&super::super::init::configuration(&super::super::init::Facts::default(), text)).unwrap();
        let said = one_server(&config, "a", &config.servers["a"], true).await.unwrap();
        assert_eq!(said, "https://zap.example:8443: not asked (--offline)");
        let text = "[servers.a]\nurl = \"http://CANARY:CANARY@127.0.0.1:1/s/CANARY/mcp?key=CANARY\"\n";
        let config =
            Config::parse(&super::super::init::configuration(&super::super::init::Facts::default(), text)).unwrap();
        let said = one_server(&config, "a", &config.servers["a"], false).await.unwrap_err();
        assert!(!said.contains("CANARY"), "{said}");
    }

    #[tokio::test]
    async fn one_thing_that_is_wrong_hides_no_other() {
        let dir = crate::testing::TempDir::new();
        let text = super::super::init::configuration(
            &super::super::init::Facts::default(),
            "[servers.gone]\nurl = \"http://127.0.0.1:1/mcp\"\n[servers.open]\ncommand = [\"no-such-program\", \"FILL-IN\"]\n",
        );
        let path = dir.path().join("shim.toml");
        durable::replace(&path, text.as_bytes()).unwrap();
        let config = Config::read(&path).unwrap();
        let mut look = Look::default();
        keys(&config, 0, &mut look);
        spool(&config, &mut look);
        access(&config, 0, &mut look);
        for (name, server) in &config.servers {
            look.either(&format!("server {name}"), one_server(&config, name, server, false).await);
        }
        let wrong: Vec<&str> =
            look.0.iter().filter(|found| found.how == How::Wrong).map(|found| found.what.as_str()).collect();
        for what in ["signing key", "TLS key", "enrolment", "access policy", "server gone"] {
            assert!(wrong.contains(&what), "{what} is not among {wrong:?}");
        }
        for found in look.0.iter().filter(|found| found.how == How::Wrong) {
            assert!(found.says.contains("hint: "), "{found:?}");
        }
        assert!(to_fill_in(&config.servers["open"]) && !to_fill_in(&config.servers["gone"]));
        assert!(!config.spool.dir.exists() && std::fs::read_dir(dir.path()).unwrap().count() == 1, "nothing was made");
    }
}
