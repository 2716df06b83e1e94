//! `ledger status`: everything an operator looks at first, as a report for people or as JSON.

use clap::Args;
use custody::{id::hex, wire};
use serde_json::{Value, json};

use super::{
    At, Done,
    admin::Ledger,
    output::{say, table},
};
use crate::clock;

const SECOND_US: u64 = 1_000_000;

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    at: At,
    /// As JSON; times are microseconds since 1970.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: StatusArgs) -> Done {
    let mut ledger = Ledger::connect(args.at.load()?).await?;
    let status = ledger.status().await?;
    if args.json {
        say(&format!("{:#}", as_json(&status)));
    } else {
        say(report(&status, clock::now_us()).trim_end());
    }
    Ok(())
}

fn heading(columns: &[&str]) -> Vec<String> {
    columns.iter().map(|name| (*name).to_owned()).collect()
}

/// For people.
fn report(status: &wire::StatusResponse, now_us: u64) -> String {
    let why = if status.state_reason.is_empty() {
        String::new()
    } else {
        format!(": {}", status.state_reason.replace('\n', "\n  "))
    };
    let fence = if status.fence_reachable { "reachable" } else { "OUT OF REACH" };
    let fence = match status.fence_term {
        0 => fence.to_owned(),
        term if term > status.term => format!("{fence}, at term {term}: ANOTHER LEDGER WRITES"),
        term => format!("{fence}, at term {term}"),
    };
    let mut out = format!(
        "log {}\nstate         {}{why}\nterm          {}, incarnation {}\nfence         {fence}\narchive       {}\n\
         log           {} entries, {} waiting\ncommits       {}\n",
        status.origin,
        status.state,
        status.term,
        status.incarnation,
        status.archive,
        status.log_size,
        status.unpublished,
        status.commit_index
    );
    if status.alarms.is_empty() {
        out.push_str("alarms        none\n");
    } else {
        out.push_str("\nALARMS (docs/OPERATIONS.md has a section for each)\n");
        for alarm in &status.alarms {
            // A hint stands on a line of its own.
            out.push_str(&format!("  {}\n", alarm.replace('\n', "\n    ")));
        }
    }
    out.push('\n');
    out.push_str(&table(&workspaces(status)));
    out.push('\n');
    out.push_str(&table(&heads(status, now_us)));
    let rows = gateways(status, now_us);
    if rows.len() > 1 {
        out.push('\n');
        out.push_str(&table(&rows));
    }
    out.push('\n');
    let mut rows = vec![heading(&["follower", "mark", "lag"])];
    rows.extend(status.followers.iter().map(|f| vec![f.name.clone(), f.mark.to_string(), f.lag.to_string()]));
    out.push_str(&table(&rows));
    out.push('\n');
    let mut rows = vec![heading(&["certificate", "good until"])];
    rows.extend(status.certificates.iter().map(|held| vec![held.name.clone(), until(held.not_after, now_us)]));
    out.push_str(&table(&rows));
    out
}

fn workspaces(status: &wire::StatusResponse) -> Vec<Vec<String>> {
    let columns = ["workspace", "id", "records", "segment", "open leaves", "sealed", "archived", "statements", "state"];
    let mut rows = vec![heading(&columns)];
    for workspace in &status.workspaces {
        rows.push(vec![
            workspace.name.clone(),
            hex(&workspace.workspace),
            workspace.positions.to_string(),
            workspace.segment.to_string(),
            workspace.open_leaves.to_string(),
            workspace.sealed_segments.to_string(),
            workspace.archived_segments.to_string(),
            workspace.statements.to_string(),
            if workspace.removed { "removed" } else { "open" }.to_owned(),
        ]);
    }
    rows
}

fn heads(status: &wire::StatusResponse, now_us: u64) -> Vec<Vec<String>> {
    let mut rows = vec![heading(&["workspace", "open head", "root", "history root", "newest leaf"])];
    for workspace in &status.workspaces {
        let newest = if workspace.head_at == 0 { "none".to_owned() } else { ago(workspace.head_at, now_us) };
        rows.push(vec![
            workspace.name.clone(),
            format!("{}/{}", workspace.segment, workspace.open_leaves),
            hex(&workspace.root),
            hex(&workspace.history_root),
            newest,
        ]);
    }
    rows
}

fn gateways(status: &wire::StatusResponse, now_us: u64) -> Vec<Vec<String>> {
    let columns = ["gateway", "id", "workspace", "last batch", "next record", "last heard", "state"];
    let mut rows = vec![heading(&columns)];
    for workspace in &status.workspaces {
        for gateway in &workspace.gateways {
            let heard = !gateway.epoch.is_empty();
            let state = match (gateway.silent_since, gateway.connected, gateway.closed) {
                (0, false, _) if !heard => "enrolled".to_owned(),
                (0, true, _) => "connected".to_owned(),
                (0, false, true) => "closed".to_owned(),
                (0, false, false) => "away".to_owned(),
                (since, ..) => format!("SILENT since {}", clock::display(since)),
            };
            rows.push(vec![
                gateway.name.clone(),
                hex(&gateway.gateway),
                workspace.name.clone(),
                if heard { gateway.last_batch.to_string() } else { "-".to_owned() },
                if heard { gateway.next_record.to_string() } else { "-".to_owned() },
                ago(gateway.last_heard_at, now_us),
                state,
            ]);
        }
    }
    rows
}

fn ago(time_us: u64, now_us: u64) -> String {
    if time_us == 0 {
        return "never".to_owned();
    }
    format!("{} ago", span(now_us.saturating_sub(time_us) / SECOND_US))
}

fn until(time_us: u64, now_us: u64) -> String {
    let left = time_us.checked_sub(now_us).map_or_else(|| "EXPIRED".to_owned(), |left| span(left / SECOND_US));
    format!("{} ({left})", clock::display(time_us))
}

/// Seconds as the greatest whole unit.
fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// The same as JSON, with the names of the messages' fields; ids in hex.
fn as_json(status: &wire::StatusResponse) -> Value {
    let gateway = |gateway: &wire::GatewayStatus| {
        json!({
            "gateway": hex(&gateway.gateway), "name": gateway.name, "epoch": hex(&gateway.epoch),
            "last_batch": gateway.last_batch, "next_record": gateway.next_record,
            "last_heard_at": gateway.last_heard_at, "silent_since": gateway.silent_since,
            "connected": gateway.connected, "closed": gateway.closed,
        })
    };
    let workspace = |workspace: &wire::WorkspaceStatus| {
        json!({
            "workspace": hex(&workspace.workspace), "name": workspace.name, "removed": workspace.removed,
            "positions": workspace.positions, "segment": workspace.segment, "open_leaves": workspace.open_leaves,
            "sealed_segments": workspace.sealed_segments, "archived_segments": workspace.archived_segments,
            "statements": workspace.statements, "root": hex(&workspace.root),
            "history_root": hex(&workspace.history_root), "head_at": workspace.head_at,
            "gateways": workspace.gateways.iter().map(gateway).collect::<Vec<_>>(),
        })
    };
    let follower =
        |follower: &wire::Follower| json!({ "name": follower.name, "mark": follower.mark, "lag": follower.lag });
    let certificate = |held: &wire::Certificate| json!({ "name": held.name, "not_after": held.not_after });
    json!({
        "origin": status.origin, "term": status.term, "incarnation": status.incarnation, "state": status.state,
        "state_reason": status.state_reason, "commit_index": status.commit_index, "log_size": status.log_size,
        "unpublished": status.unpublished, "fence_reachable": status.fence_reachable,
        "fence_term": status.fence_term, "archive": status.archive,
        "alarms": status.alarms,
        "workspaces": status.workspaces.iter().map(workspace).collect::<Vec<_>>(),
        "followers": status.followers.iter().map(follower).collect::<Vec<_>>(),
        "certificates": status.certificates.iter().map(certificate).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> wire::StatusResponse {
        let gateway = |name: &str, silent_since, connected| wire::GatewayStatus {
            gateway: vec![2; 16].into(),
            name: name.to_owned(),
            epoch: vec![3; 16].into(),
            last_batch: 11,
            next_record: 12,
            last_heard_at: 1_000_000_000,
            silent_since,
            connected,
            closed: false,
        };
        wire::StatusResponse {
            origin: "example.org/custody".to_owned(),
            term: 3,
            incarnation: 0,
            state: "read-only".to_owned(),
            state_reason: "stale copy".to_owned(),
            commit_index: 77,
            log_size: 9,
            unpublished: 1,
            fence_reachable: false,
            fence_term: 4,
            alarms: vec!["disk-low: 3 GiB left".to_owned()],
            workspaces: vec![wire::WorkspaceStatus {
                workspace: vec![1; 16].into(),
                name: "payments".to_owned(),
                positions: 100,
                root: vec![4; 32].into(),
                history_root: vec![5; 32].into(),
                head_at: 1_299_000_000,
                gateways: vec![
                    gateway("berlin", 0, true),
                    gateway("oslo", 5_000_000, false),
                    wire::GatewayStatus { gateway: vec![6; 16].into(), name: "rome".to_owned(), ..Default::default() },
                ],
                ..Default::default()
            }],
            followers: vec![wire::Follower { name: "seal".to_owned(), mark: 5, lag: 1 }],
            certificates: vec![wire::Certificate { name: "server".to_owned(), not_after: 2_000_000_000 }],
            archive: "folder, not WORM".to_owned(),
        }
    }

    #[test]
    fn the_report_is_as_people_read_it() {
        insta::assert_snapshot!(report(&status(), 1_300_000_000));
        let fine = wire::StatusResponse { alarms: Vec::new(), ..status() };
        assert!(report(&fine, 3_000_000_000).contains("alarms        none"));
        assert!(report(&fine, 3_000_000_000).contains("(EXPIRED)"));
    }

    #[test]
    fn json_has_every_field() {
        let value = as_json(&status());
        assert_eq!(value["workspaces"][0]["gateways"][1]["silent_since"], 5_000_000);
        assert_eq!(value["workspaces"][0]["workspace"], "01".repeat(16));
        assert_eq!(value["certificates"][0]["not_after"], 2_000_000_000_u64);
        assert_eq!(value.as_object().map(serde_json::Map::len), Some(15));
    }
}
