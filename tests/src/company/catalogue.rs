//! Servers and tools, as companies have them: what each does, how long it takes, how much it moves. Popularity falls as 1/rank.

use super::people::Role;
use crate::dice::Dice;

/// What a tool does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Reads.
    Read,
    /// Changes what can be changed back.
    Write,
    /// Takes away for good.
    Destructive,
    /// Reaches outside.
    Open,
}

/// A tool. Durations and sizes spread from half to four times the middle, as powers of two.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the table below says it")]
pub struct Tool {
    pub server: &'static str,
    pub name: &'static str,
    pub class: Class,
    /// Microseconds.
    pub duration_log2: u64,
    pub request_log2: u64,
    pub response_log2: u64,
    pub errors_per_mille: u64,
}

/// The servers, in the order of the table.
pub(super) const SERVERS: [&str; 10] =
    ["github", "jira", "postgres", "slack", "browser", "files", "k8s", "crm", "payments", "search"];
/// Tools of each server, the popular ones first.
const EACH: usize = 6;

const fn tool(server: &'static str, name: &'static str, class: Class, numbers: [u64; 4]) -> Tool {
    let [duration_log2, request_log2, response_log2, errors_per_mille] = numbers;
    Tool { server, name, class, duration_log2, request_log2, response_log2, errors_per_mille }
}

use Class::{Destructive, Open, Read, Write};

/// All tools.
pub const TOOLS: [Tool; SERVERS.len() * EACH] = [
    tool("github", "get_file_contents", Read, [18, 7, 13, 20]),
    tool("github", "search_code", Read, [19, 7, 14, 10]),
    tool("github", "list_issues", Read, [18, 6, 13, 5]),
    tool("github", "create_pull_request", Write, [20, 11, 11, 30]),
    tool("github", "push_files", Write, [20, 14, 9, 25]),
    tool("github", "delete_branch", Destructive, [18, 6, 7, 10]),
    tool("jira", "search_issues", Read, [19, 7, 14, 5]),
    tool("jira", "get_issue", Read, [18, 6, 12, 5]),
    tool("jira", "add_comment", Write, [18, 9, 8, 10]),
    tool("jira", "transition_issue", Write, [18, 7, 8, 20]),
    tool("jira", "create_issue", Write, [19, 10, 9, 15]),
    tool("jira", "delete_issue", Destructive, [18, 6, 7, 5]),
    tool("postgres", "query", Read, [16, 8, 14, 60]),
    tool("postgres", "list_tables", Read, [14, 5, 11, 2]),
    tool("postgres", "describe_table", Read, [14, 6, 11, 5]),
    tool("postgres", "explain", Read, [15, 8, 11, 30]),
    tool("postgres", "execute", Write, [17, 9, 8, 50]),
    tool("postgres", "drop_table", Destructive, [16, 6, 6, 10]),
    tool("slack", "list_channels", Read, [18, 5, 12, 5]),
    tool("slack", "read_channel", Read, [18, 6, 13, 5]),
    tool("slack", "search_messages", Read, [19, 7, 13, 5]),
    tool("slack", "post_message", Open, [18, 9, 8, 10]),
    tool("slack", "upload_file", Open, [20, 13, 8, 15]),
    tool("slack", "delete_message", Destructive, [18, 6, 6, 5]),
    tool("browser", "navigate", Open, [21, 7, 9, 60]),
    tool("browser", "snapshot", Read, [19, 5, 15, 20]),
    tool("browser", "click", Write, [19, 6, 9, 80]),
    tool("browser", "type_text", Write, [18, 7, 8, 60]),
    tool("browser", "fetch_url", Open, [20, 7, 15, 50]),
    tool("browser", "post_form", Open, [20, 10, 11, 50]),
    tool("files", "read_file", Read, [11, 6, 13, 30]),
    tool("files", "list_directory", Read, [10, 6, 11, 5]),
    tool("files", "search_files", Read, [15, 7, 12, 5]),
    tool("files", "write_file", Write, [12, 13, 7, 10]),
    tool("files", "move_file", Write, [11, 7, 7, 10]),
    tool("files", "delete_file", Destructive, [11, 6, 7, 5]),
    tool("k8s", "get_pods", Read, [18, 6, 13, 10]),
    tool("k8s", "get_logs", Read, [19, 6, 15, 15]),
    tool("k8s", "describe", Read, [18, 6, 12, 10]),
    tool("k8s", "apply", Write, [20, 12, 9, 40]),
    tool("k8s", "rollout_restart", Write, [20, 6, 8, 20]),
    tool("k8s", "delete_resource", Destructive, [19, 6, 8, 20]),
    tool("crm", "find_contact", Read, [18, 6, 12, 5]),
    tool("crm", "get_account", Read, [18, 6, 12, 5]),
    tool("crm", "list_deals", Read, [19, 6, 14, 5]),
    tool("crm", "update_deal", Write, [18, 9, 8, 15]),
    tool("crm", "export_contacts", Read, [22, 7, 18, 10]),
    tool("crm", "delete_contact", Destructive, [18, 6, 7, 5]),
    tool("payments", "get_invoice", Read, [18, 6, 11, 5]),
    tool("payments", "list_payments", Read, [19, 6, 14, 5]),
    tool("payments", "create_invoice", Write, [19, 10, 9, 15]),
    tool("payments", "refund", Write, [19, 7, 8, 20]),
    tool("payments", "payout", Write, [20, 8, 8, 20]),
    tool("payments", "delete_method", Destructive, [18, 6, 7, 5]),
    tool("search", "web_search", Open, [20, 7, 13, 20]),
    tool("search", "fetch_page", Open, [20, 7, 15, 40]),
    tool("search", "docs_search", Read, [18, 7, 13, 5]),
    tool("search", "summarise", Read, [22, 13, 12, 10]),
    tool("search", "embed", Read, [18, 12, 12, 5]),
    tool("search", "save_note", Write, [16, 10, 7, 5]),
];

/// Servers of a role, the common ones first.
fn servers(role: Role) -> &'static [usize] {
    match role {
        Role::Developer => &[0, 5, 1, 9, 2, 6, 3, 4],
        Role::Support => &[7, 3, 1, 9, 4],
        Role::Finance => &[8, 7, 2, 3, 9],
        Role::Analyst => &[2, 9, 5, 3, 7],
        Role::Operations => &[6, 0, 2, 1, 3],
    }
}

/// One of `count` by rank: the first twice as often as the second, three times as often as the third.
fn by_rank(count: usize, dice: &mut Dice) -> usize {
    let weight = |rank: usize| 2_520 / (rank as u64 + 1);
    let mut left = dice.within(0..(0..count).map(weight).sum());
    for rank in 0..count {
        match left.checked_sub(weight(rank)) {
            Some(rest) => left = rest,
            None => return rank,
        }
    }
    0
}

/// A server for somebody of this role.
pub(super) fn server_of(role: Role, dice: &mut Dice) -> usize {
    let servers = servers(role);
    servers[by_rank(servers.len(), dice)]
}

/// A tool of a server; who only reads takes another where it would write.
pub(super) fn tool_of(server: usize, writes: bool, dice: &mut Dice) -> usize {
    let tool = server * EACH + by_rank(EACH, dice);
    let may = writes || matches!(TOOLS[tool].class, Read | Open);
    // What takes away is seldom, whoever may.
    let seldom = TOOLS[tool].class == Destructive && dice.within(0..6) > 0;
    if may && !seldom { tool } else { server * EACH }
}

/// Labels of a server, as an access policy gives them.
pub(super) fn labels(server: &str) -> Vec<String> {
    let words: &[&str] = match server {
        "payments" | "crm" => &["prod", "personal-data"],
        "postgres" | "k8s" => &["prod"],
        "browser" | "search" | "slack" => &["open-world"],
        _ => &["internal"],
    };
    words.iter().map(|word| (*word).to_owned()).collect()
}
