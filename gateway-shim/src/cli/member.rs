//! `gateway-shim member`: who may come in, and what they may call. Each verb is a change of the access policy, on record.
//!
//! What must hold: a name and an address are no arguments, because others on this machine see those (`ps`), and nothing keeps
//! them here; a token is printed once, to standard output.

use std::{io::Read as _, path::PathBuf};

use clap::{ArgGroup, Args, Subcommand};
use custody::{
    id::{hex, unhex},
    wire::{self, change_access_request::Verb},
};
use serde_json::json;

use super::{
    At, Done, EXIT_FAILED, EXIT_USAGE, Failed,
    access::{Why, tell},
    output::{print, row, say, table, until},
    running::Running,
};
use crate::clock;

/// Longest text about a person, in bytes: a name and an address.
const PERSON_BYTES_MAX: u64 = 4_096;

#[derive(Debug, Subcommand)]
pub enum MemberVerb {
    /// Adds a person or a service, and makes a token, which is printed once.
    ///
    /// The ledger knows a person's id in all workspaces by the address, and makes one if it is new. Name and address are
    /// taken from a file or from standard input, never from the command line, where everybody on this machine could read
    /// them; the shim keeps neither.
    Add(AddArgs),
    /// Shows all members, their groups and their tokens, by ids; names are with the ledger (`ledger member show`).
    List {
        #[command(flatten)]
        at: At,
        /// As JSON; times are microseconds since 1970.
        #[arg(long)]
        json: bool,
    },
    /// Adds a rule that allows, behind all others.
    Grant(RuleArgs),
    /// Adds a rule that denies, before all others of the workspace.
    Deny(RuleArgs),
    /// Takes a rule away.
    Ungrant {
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        why: Why,
        /// The rule's id, as `access plan` and the records name it.
        rule: String,
    },
    /// Puts a member into a group.
    Join(GroupArgs),
    /// Takes a member out of a group.
    Leave(GroupArgs),
    /// Makes one more token for a member, which is printed once.
    Token {
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        why: Why,
        /// The member's id.
        member: Id,
        /// Id of the agent that it is for; without it a new agent.
        #[arg(long)]
        agent: Option<Id>,
        /// Days that it lives; without it as many as the policy allows.
        #[arg(long, default_value_t = 0)]
        days: u64,
    },
    /// Ends a member's access at once, with all tokens and all that is open; or that of one token.
    Revoke(OneOf),
    /// Makes new tokens in the place of a member's, or of one; they are printed once.
    Rotate {
        #[command(flatten)]
        of: OneOf,
        /// Seconds that the old ones are good for besides, so that nobody is cut off in between.
        #[arg(long, default_value_t = 0)]
        overlap_s: u64,
    },
}

/// 32 hex digits.
#[derive(Clone, Copy, Debug)]
pub struct Id([u8; 16]);

impl std::str::FromStr for Id {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = unhex(text).and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or("an id is 32 lower-case hex digits; `member list` shows them")
    }
}

impl From<Id> for bytes::Bytes {
    fn from(Id(id): Id) -> Self {
        id.to_vec().into()
    }
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("who").required(true).args(["person", "member", "service"])))]
pub struct AddArgs {
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    why: Why,
    /// File with two lines, the person's name and address; `-` for standard input.
    #[arg(long)]
    person: Option<PathBuf>,
    /// Id that the ledger gave to the person before.
    #[arg(long)]
    member: Option<Id>,
    /// A service: gets a new id, and is no person.
    #[arg(long, requires = "owner")]
    service: bool,
    /// Of a service: id of the person who answers for it.
    #[arg(long)]
    owner: Option<Id>,
    /// Groups, with commas between.
    #[arg(long, value_delimiter = ',')]
    groups: Vec<String>,
    /// Makes no token: an identity provider vouches for the member, or `member token` makes one later.
    #[arg(long)]
    no_token: bool,
    /// Days that the token lives; without it as many as the policy allows.
    #[arg(long, default_value_t = 0)]
    days: u64,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("whose").required(true).multiple(true).args(["member", "group", "everyone"])))]
pub struct RuleArgs {
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    why: Why,
    /// For this member; may be said more than once.
    #[arg(long)]
    member: Vec<Id>,
    /// For this group; may be said more than once.
    #[arg(long)]
    group: Vec<String>,
    /// For all members.
    #[arg(long, conflicts_with_all = ["member", "group"])]
    everyone: bool,
    /// Patterns `server/tool`, with commas between; `*` stands for any text.
    #[arg(long, value_delimiter = ',', required = true)]
    tools: Vec<String>,
    /// Patterns of methods; without it `tools/call` alone.
    #[arg(long, value_delimiter = ',')]
    methods: Vec<String>,
    /// The rule's id, which records name; without it the next free one.
    #[arg(long, default_value = "")]
    id: String,
}

#[derive(Debug, Args)]
pub struct GroupArgs {
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    why: Why,
    /// The member's id.
    member: Id,
    /// The group.
    group: String,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true).args(["member", "token"])))]
pub struct OneOf {
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    why: Why,
    /// The member's id.
    member: Option<Id>,
    /// Id of one token, the first of the two halves behind `cst_`.
    #[arg(long)]
    token: Option<Id>,
}

pub(super) async fn run(verb: MemberVerb) -> Done {
    let (at, why, verb) = match verb {
        MemberVerb::List { at, json } => {
            let members = Running::connect(&at.load()?).await?.members().await?;
            match json {
                true => print(&format!("{:#}", as_json(&members))),
                false => print(&report(&members, clock::now_us())),
            }
            return Ok(0);
        }
        MemberVerb::Add(args) => added(args)?,
        MemberVerb::Grant(args) => {
            let (at, why, rule) = ruled(args);
            (at, why, Verb::Grant(rule))
        }
        MemberVerb::Deny(args) => {
            let (at, why, rule) = ruled(args);
            (at, why, Verb::Deny(rule))
        }
        MemberVerb::Ungrant { at, why, rule } => (at, why, Verb::RemoveRule(rule)),
        MemberVerb::Join(GroupArgs { at, why, member, group }) => {
            (at, why, Verb::Join(wire::GroupOf { member: member.into(), group }))
        }
        MemberVerb::Leave(GroupArgs { at, why, member, group }) => {
            (at, why, Verb::Leave(wire::GroupOf { member: member.into(), group }))
        }
        MemberVerb::Token { at, why, member, agent, days } => {
            let agent = agent.map(Into::into).unwrap_or_default();
            (at, why, Verb::IssueToken(wire::TokenMade { member: member.into(), agent, days }))
        }
        MemberVerb::Revoke(OneOf { at, why, member, token }) => {
            (at, why, either(member, token, Verb::RevokeMember, Verb::RevokeToken)?)
        }
        MemberVerb::Rotate { of: OneOf { at, why, member, token }, overlap_s } => {
            let rotated = |id| wire::Rotated { id, overlap_s };
            let verb =
                either(member, token, |id| Verb::RotateMember(rotated(id)), |id| Verb::RotateToken(rotated(id)))?;
            (at, why, verb)
        }
    };
    let asked = wire::ChangeAccessRequest { why: Some(why.into()), verb: Some(verb) };
    let changed = Running::connect(&at.load()?).await?.change_access(asked).await?;
    if !changed.member.is_empty() {
        say(&format!("member {}", hex(&changed.member)));
    }
    Ok(tell(&changed))
}

/// The verb for the one that is named.
fn either(
    member: Option<Id>,
    token: Option<Id>,
    of_member: impl FnOnce(bytes::Bytes) -> Verb,
    of_token: impl FnOnce(bytes::Bytes) -> Verb,
) -> Result<Verb, Failed> {
    let neither = || Failed::new(EXIT_USAGE, "know which: neither a member nor a token is named; hint: --help");
    match (member, token) {
        (Some(member), _) => Ok(of_member(member.into())),
        (None, token) => token.map(|token| of_token(token.into())).ok_or_else(neither),
    }
}

fn ruled(args: RuleArgs) -> (At, Why, wire::RuleMade) {
    let RuleArgs { at, why, member, group, everyone, tools, methods, id } = args;
    let members = member.into_iter().map(Into::into).collect();
    (at, why, wire::RuleMade { id, members, groups: group, everyone, tools, methods })
}

fn added(args: AddArgs) -> Result<(At, Why, Verb), Failed> {
    let AddArgs { at, why, person, member, service: _, owner, groups, no_token, days } = args;
    let (name, address) = person.map(|path| read_person(&path)).transpose()?.unwrap_or_default();
    let add = wire::MemberAdd {
        name,
        address,
        member: member.map(Into::into).unwrap_or_default(),
        owner: owner.map(Into::into).unwrap_or_default(),
        groups,
        without_token: no_token,
        days,
    };
    Ok((at, why, Verb::Add(add)))
}

/// Name and address. What is wrong with them is said without them.
fn read_person(path: &std::path::Path) -> Result<(String, String), Failed> {
    let from = if path.as_os_str() == "-" { "standard input".to_owned() } else { path.display().to_string() };
    let failed = |why: &str| {
        let hint = "hint: two lines, the name and the address, as in `Ada Lovelace` and `ada@example.com`";
        Failed::new(EXIT_FAILED, format!("read who is added from {from}: {why}; {hint}"))
    };
    let reader: Box<dyn std::io::Read> = match path.as_os_str() == "-" {
        true => Box::new(std::io::stdin()),
        false => Box::new(std::fs::File::open(path).map_err(|why| failed(&why.to_string()))?),
    };
    let mut text = String::new();
    reader.take(PERSON_BYTES_MAX + 1).read_to_string(&mut text).map_err(|why| failed(&why.to_string()))?;
    if text.len() as u64 > PERSON_BYTES_MAX {
        return Err(failed("it is longer than 4,096 bytes"));
    }
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match lines.as_slice() {
        [name, address] => Ok(((*name).to_owned(), (*address).to_owned())),
        other => Err(failed(&format!("it has {} lines", other.len()))),
    }
}

fn report(members: &wire::ShimMembersResponse, now_us: u64) -> String {
    let mut rows = vec![row(["member", "groups", "kind", "token", "agent", "good until"])];
    for member in &members.members {
        let kind = match (member.revoked, member.owner.is_empty(), member.vouched) {
            (true, ..) => "REVOKED".to_owned(),
            (_, false, _) => format!("service of {}", hex(&member.owner)),
            (_, _, true) => "person, vouched for".to_owned(),
            _ => "person".to_owned(),
        };
        let mut first = Some([hex(&member.member), member.groups.join(" "), kind]);
        let mut lines: Vec<[String; 3]> = member
            .tokens
            .iter()
            .map(|token| {
                let until = if token.revoked { "REVOKED".to_owned() } else { until(token.expires_at, now_us) };
                [hex(&token.id), hex(&token.agent), until]
            })
            .collect();
        if lines.is_empty() {
            lines.push(["none".to_owned(), String::new(), String::new()]);
        }
        for line in lines {
            rows.push([first.take().unwrap_or_default().to_vec(), line.to_vec()].concat());
        }
    }
    let one = members.members.len();
    format!("{}\n{one} members; in force {}", table(&rows), hex(&members.digest))
}

/// The same as JSON, with the names of the messages' fields; ids in hex.
fn as_json(members: &wire::ShimMembersResponse) -> serde_json::Value {
    let token = |token: &wire::TokenShown| {
        json!({
            "id": hex(&token.id), "agent": hex(&token.agent), "issued_at": token.issued_at,
            "expires_at": token.expires_at, "revoked": token.revoked,
        })
    };
    let member = |member: &wire::MemberShown| {
        json!({
            "member": hex(&member.member), "groups": member.groups, "owner": hex(&member.owner),
            "revoked": member.revoked, "vouched": member.vouched,
            "tokens": member.tokens.iter().map(token).collect::<Vec<_>>(),
        })
    };
    json!({ "members": members.members.iter().map(member).collect::<Vec<_>>(), "digest": hex(&members.digest) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn the_list_is_as_people_read_it() {
        let token = |id: u8, revoked| wire::TokenShown {
            id: vec![id; 16].into(),
            agent: vec![7; 16].into(),
            issued_at: 0,
            expires_at: 90 * 86_400 * 1_000_000,
            revoked,
        };
        let member = |id: u8| wire::MemberShown { member: vec![id; 16].into(), ..Default::default() };
        let members = wire::ShimMembersResponse {
            members: vec![
                wire::MemberShown {
                    groups: vec!["engineering".into(), "oncall".into()],
                    tokens: vec![token(3, false), token(4, true)],
                    ..member(1)
                },
                wire::MemberShown { owner: vec![1; 16].into(), tokens: vec![token(5, false)], ..member(2) },
                wire::MemberShown { revoked: true, ..member(9) },
            ],
            digest: vec![8; 32].into(),
        };
        insta::assert_snapshot!(report(&members, 1));
        assert_eq!(as_json(&members)["members"][0]["tokens"][1]["revoked"], true);
    }

    #[test]
    fn a_person_is_two_lines_and_what_is_wrong_is_said_without_them() {
        let dir = TempDir::new();
        let path = dir.path().join("person");
        crate::durable::replace(&path, "Ada Lovelace\n ada@example.com \n\n".as_bytes()).unwrap();
        assert_eq!(read_person(&path).unwrap(), ("Ada Lovelace".to_owned(), "ada@example.com".to_owned()));
        for text in ["Ada Lovelace", "Ada\nada@example.com\nmore", ""] {
            crate::durable::replace(&path, text.as_bytes()).unwrap();
            let why = read_person(&path).unwrap_err().text;
            assert!(why.contains("hint: two lines") && !why.contains("Ada\n") && !why.contains("more"), "{why}");
        }
    }
}
