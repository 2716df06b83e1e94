//! `gateway-shim server`: the processes of servers that are programs of this machine, and tools of servers that are in
//! quarantine.

use clap::{Args, Subcommand};
use custody::{
    id::{hex, unhex},
    wire,
};

use super::{
    At, Done, EXIT_USAGE, Failed,
    access::Why,
    output::{ago, print, row, table},
    running::Running,
};
use crate::clock;

#[derive(Debug, Subcommand)]
pub enum ServerVerb {
    /// Shows each server, its processes, and how the last one ended.
    List {
        #[command(flatten)]
        at: At,
    },
    /// Lets a server's processes be started again, after a stop or after too many failures.
    Start(Named),
    /// Ends a server's processes, and starts none until it is started. Waits until they have ended.
    Stop(Named),
    /// Ends a server's processes; those that are asked for from then on are new.
    Restart(Named),
    /// Shows the tools that nobody may call until somebody accepts them.
    Quarantine {
        #[command(flatten)]
        at: At,
    },
    /// Lets a tool out of quarantine, as it is now. Look at it first: what it says of itself is what clients believe.
    Accept(Accept),
}

#[derive(Debug, Args)]
pub struct Named {
    #[command(flatten)]
    at: At,
    /// The server, as the configuration names it.
    name: String,
}

#[derive(Debug, Args)]
pub struct Accept {
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    why: Why,
    /// The definition that you looked at, as `server quarantine` shows it; any other is not accepted.
    #[arg(long, value_name = "HEX")]
    digest: Option<String>,
    /// The server, as the configuration names it.
    server: String,
    /// The tool, as its server or `server quarantine` names it.
    tool: String,
}

pub(super) async fn run(verb: ServerVerb) -> Done {
    let (named, verb) = match verb {
        ServerVerb::List { at } => {
            let servers = Running::connect(&at.load()?).await?.processes().await?;
            print(&report(&servers, clock::now_us()));
            return Ok(0);
        }
        ServerVerb::Quarantine { at } => {
            print(&quarantine(&Running::connect(&at.load()?).await?.quarantined().await?));
            return Ok(0);
        }
        ServerVerb::Accept(accept) => return self::accept(accept).await,
        ServerVerb::Start(named) => (named, wire::ProcessVerb::Start),
        ServerVerb::Stop(named) => (named, wire::ProcessVerb::Stop),
        ServerVerb::Restart(named) => (named, wire::ProcessVerb::Restart),
    };
    let running = Running::connect(&named.at.load()?).await?;
    let server = running.change_processes(named.name, verb).await?;
    print(&report(&[server], clock::now_us()));
    Ok(0)
}

async fn accept(Accept { at, why, digest, server, tool }: Accept) -> Done {
    let digest = digest.map(|text| {
        let hint = "hint: gateway-shim server quarantine shows it";
        let unfit = || Failed::new(EXIT_USAGE, format!("read the digest: it has not 64 hex digits; {hint}"));
        unhex(&text).filter(|digest| digest.len() == 32).ok_or_else(unfit)
    });
    let digest = digest.transpose()?.unwrap_or_default();
    let asked = wire::AcceptToolRequest { why: Some(why.into()), server, tool, digest: digest.into() };
    let accepted = Running::connect(&at.load()?).await?.accept_tool(asked).await?;
    print(&told(&accepted));
    Ok(0)
}

fn told(accepted: &wire::QuarantinedTool) -> String {
    let (of, now) = (format!("{} of {}", accepted.tool, accepted.server), shown(&accepted.after));
    match accepted.after.is_empty() {
        true => format!("{of} is accepted as gone: if its server lists it again, it is new"),
        false => format!("{of} is accepted, with the definition {now}"),
    }
}

/// A definition's digest.
fn shown(digest: &[u8]) -> String {
    if digest.is_empty() { "none".to_owned() } else { hex(digest) }
}

fn quarantine(tools: &[wire::QuarantinedTool]) -> String {
    if tools.is_empty() {
        return "no tool is in quarantine".to_owned();
    }
    let mut rows = vec![row(["server", "tool", "in force before", "offered now"])];
    rows.extend(tools.iter().map(|of| vec![of.server.clone(), of.tool.clone(), shown(&of.before), shown(&of.after)]));
    table(&rows)
}

fn report(servers: &[wire::ServerProcesses], now_us: u64) -> String {
    if servers.is_empty() {
        return "no server is a program of this machine".to_owned();
    }
    let mut rows = vec![row(["server", "state", "processes", "started", "crashed", "last end"])];
    rows.extend(servers.iter().map(|server| {
        let last = server.last.as_ref().map_or_else(|| "none".to_owned(), |last| ended(last, now_us));
        let (count, starts, crashes) = (server.processes.len(), server.starts, server.crashes);
        let counts = [count.to_string(), starts.to_string(), crashes.to_string()];
        [vec![server.name.clone(), server.state.clone()], counts.to_vec(), vec![last]].concat()
    }));
    let mut out = table(&rows);
    let reasons = servers.iter().filter(|server| !server.why.is_empty());
    out.extend(reasons.map(|server| format!("  {}: {}\n", server.name, server.why)));
    if servers.iter().any(|server| !server.processes.is_empty()) {
        let mut rows = vec![row(["process", "of", "since", "for"])];
        for server in servers {
            rows.extend(server.processes.iter().map(|process| {
                let member = match (process.ready, process.member.is_empty()) {
                    (true, _) => "whoever comes next".to_owned(),
                    (false, true) => "all".to_owned(),
                    (false, false) => hex(&process.member),
                };
                vec![process.pid.to_string(), server.name.clone(), ago(process.since, now_us), member]
            }));
        }
        out.push('\n');
        out.push_str(&table(&rows));
    }
    out
}

fn ended(last: &wire::ServerEnd, now_us: u64) -> String {
    let how = match (last.exit_code, last.signal) {
        (Some(code), _) => format!(", exit code {code}"),
        (None, Some(signal)) => format!(", signal {signal}"),
        (None, None) => String::new(),
    };
    let state = match last.state() {
        wire::ServerState::Stopped => "stopped",
        wire::ServerState::Unreachable => "did not answer",
        _ => "crashed",
    };
    format!("{state} {}{how}", ago(last.at, now_us))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_780_000_000_000_000;

    #[test]
    fn the_report_is_as_people_read_it() {
        let process = |pid, member: &[u8], ready| wire::ServerProcess {
            pid,
            since: NOW - 90_000_000,
            member: member.to_vec().into(),
            ready,
        };
        let server = |name: &str, state: &str| wire::ServerProcesses {
            name: name.into(),
            state: state.into(),
            starts: 3,
            ..Default::default()
        };
        let end = |state: wire::ServerState, exit_code, signal| {
            Some(wire::ServerEnd { at: NOW - 5_000_000, state: state as i32, exit_code, signal })
        };
        let servers = [
            wire::ServerProcesses {
                processes: vec![process(41, &[7; 16], false), process(42, &[], true), process(43, &[], false)],
                last: end(wire::ServerState::Stopped, Some(0), None),
                ..server("files", "running")
            },
            wire::ServerProcesses {
                crashes: 2,
                why: "it failed to start 2 times in a row, and is tried again in 2 s; hint: the shim's log says why"
                    .into(),
                last: end(wire::ServerState::Crashed, None, Some(9)),
                ..server("search", "held back")
            },
            server("idle", "idle"),
        ];
        insta::assert_snapshot!(report(&servers, NOW));
        assert_eq!(report(&[], NOW), "no server is a program of this machine");
    }

    #[test]
    fn what_is_in_quarantine_is_shown_with_what_to_compare() {
        let tool = |tool: &str, before: &[u8], after: &[u8]| wire::QuarantinedTool {
            server: "mail".into(),
            tool: tool.into(),
            before: before.to_vec().into(),
            after: after.to_vec().into(),
        };
        let tools = [tool("send", &[1; 32], &[2; 32]), tool("sent", &[], &[3; 32]), tool("read", &[4; 32], &[])];
        insta::assert_snapshot!(quarantine(&tools));
        assert_eq!(quarantine(&[]), "no tool is in quarantine");
        assert!(told(&tools[0]).ends_with(&"02".repeat(32)) && told(&tools[2]).contains("as gone"));
    }
}
