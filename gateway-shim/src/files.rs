//! File descriptors: how many a process of this configuration may need, and that it has them.
//!
//! What must hold: what other people may take of them is bounded (`listen.rs`, `serve/places.rs`), and what the bounds add up to
//! is there before anything is served, so that the spool, the control socket and the access policy always have theirs.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{config::Config, listen, serve};

/// Of the process itself: some 70 of the spool, the connection to the ledger, files that are being replaced, logs, signals,
/// the fetch of an identity provider's keys.
const OWN: u64 = 128;
/// Of the control socket: people of this account type at it.
const CONTROL: u64 = 32;
/// Of one process of a server: its pipes, and what its start takes meanwhile.
const OF_PROCESS: u64 = 4;

/// How many this configuration may need at a time.
pub fn needed(config: &Config) -> u64 {
    let of_port = listen::CONNECTIONS_MAX as u64;
    let relay = config.relay.as_ref();
    let ports = relay.map_or(0, |relay| u64::from(relay.listen.is_some()) + u64::from(relay.socket.is_some()));
    let Some(serving) = &config.serve else { return OWN + CONTROL + ports * of_port };
    let metrics = if serving.metrics.is_some() { of_port } else { 0 };
    let servers = config.servers.values().map(|server| match server.url {
        Some(_) => (serve::KEPT_MAX + serve::TELLS_MAX + serve::NOTES_MAX) as u64,
        None => OF_PROCESS * server.sessions_max as u64,
    });
    let others = serving.connections_max as u64 + serving.calls_open_max as u64;
    OWN + CONTROL + ports * of_port + metrics + others + servers.sum::<u64>()
}

/// The limit to set so that so many may be open; none, if that is so already.
fn raised(needed: u64, now: &Rlimit) -> Result<Option<Rlimit>, String> {
    if now.current.is_none_or(|current| current >= needed) {
        return Ok(None);
    }
    match now.maximum {
        Some(most) if most < needed => Err(format!(
            "open as many files as may be needed: this configuration needs {needed}, and {most} are allowed; hint: raise the limit (ulimit -Hn, LimitNOFILE= of a unit), or lower serve.connections_max, serve.calls_open_max or sessions_max"
        )),
        maximum => Ok(Some(Rlimit { current: Some(needed), maximum })),
    }
}

/// Sees to it that this process may open so many.
///
/// # Errors
/// In words: it may not, and may not raise its limit so far.
pub fn ensure(needed: u64) -> Result<(), String> {
    let Some(raised) = raised(needed, &getrlimit(Resource::Nofile))? else { return Ok(()) };
    setrlimit(Resource::Nofile, raised).map_err(|why| format!("raise the limit of open files to {needed}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_as_far_as_it_must_be_and_no_start_goes_on_below() {
        let limit = |current, maximum| Rlimit { current, maximum };
        assert_eq!(raised(1_000, &limit(Some(1_000), Some(1_000))), Ok(None));
        assert_eq!(raised(1_000, &limit(None, None)), Ok(None));
        let maximum = Some(4_096);
        assert_eq!(raised(1_500, &limit(Some(1_024), maximum)), Ok(Some(limit(Some(1_500), maximum))));
        let refused = raised(1_500, &limit(Some(1_024), Some(1_024))).unwrap_err();
        assert!(refused.contains("1500") && refused.contains("1024") && refused.contains("hint: "), "{refused}");
    }

    /// Whatever the bounds are, they are in the sum.
    #[test]
    fn every_bound_counts() {
        let id = "01".repeat(16);
        let text = format!(
            "[gateway]\norigin = \"log.example\"\nworkspace = \"{id}\"\nid = \"{id}\"\nkey = \"k\"\ntls_key = \
             \"t\"\nenrolment = \"e\"\n[ledger]\nendpoint = \"https://localhost:7443\"\n[spool]\ndir = \"s\"\n[fork]\n\
             dir = \"f\"\n[serve]\nlisten = \"127.0.0.1:8080\"\n[servers.program]\ncommand = [\"true\"]\n"
        );
        let mut config = Config::parse(&text).unwrap();
        let before = needed(&config);
        config.serve.as_mut().unwrap().calls_open_max += 90;
        config.serve.as_mut().unwrap().connections_max += 10;
        assert_eq!(needed(&config), before + 100);
        config.servers.get_mut("program").unwrap().sessions_max += 1;
        assert_eq!(needed(&config), before + 100 + OF_PROCESS);
        config.serve.as_mut().unwrap().metrics = Some("127.0.0.1:1".parse().unwrap());
        assert_eq!(needed(&config), before + 100 + OF_PROCESS + listen::CONNECTIONS_MAX as u64);
    }
}
