//! People: who is known, who somebody is, erasures, and what opens chosen names to an auditor. Whoever looks is on record.

use std::{
    collections::HashMap,
    io::Read as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use clap::{Args, Subcommand};
use custody::{
    directory::{DISCLOSED_MAX, Disclosure},
    id::{MemberId, hex},
    wire::{self, MemberState},
};
use verifier::output::plain;

use super::{
    At, Done, Fault,
    admin::Ledger,
    check_token,
    output::{say, table},
};
use crate::{clock, durable, exit::ExitReason, keys::SECRET_MODE};

/// Longest text about a person, in bytes: a name and an address.
const PERSON_BYTES_MAX: u64 = 4_096;
/// Members that the ledger opens at a time.
const DISCLOSED_AT_ONCE: usize = 256;

/// Why, for the record.
#[derive(Clone, Debug, Args)]
pub(super) struct Why {
    /// Why, as a code: at most 64 characters of [A-Za-z0-9_./:@+-].
    #[arg(long, default_value = "")]
    reason: String,
    /// Ticket that has the reason in full: at most 128 characters of the same.
    #[arg(long, default_value = "")]
    ticket: String,
}

impl Why {
    pub(super) fn because(self) -> Result<wire::Because, Fault> {
        check_token("--reason", &self.reason, 64, true)?;
        check_token("--ticket", &self.ticket, 128, true)?;
        Ok(wire::Because { reason: self.reason, ticket: self.ticket })
    }
}

/// Somebody. Names and addresses are never arguments, which everybody on a machine sees and a shell keeps.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Who {
    /// Id of the member.
    member: Option<String>,
    /// File with a line, the person's address or name; `-` for standard input.
    #[arg(long)]
    person: Option<PathBuf>,
}

impl Who {
    fn read(self) -> Result<String, Fault> {
        match (self.member, self.person) {
            (_, Some(path)) => match lines(&path)?.as_slice() {
                [who] => Ok(who.clone()),
                other => Err(not_a_person(&path, other.len(), "one line, the address or the name")),
            },
            (member, None) => Ok(id(&member.unwrap_or_default())?.to_string()),
        }
    }
}

/// Name and address. What is wrong with them is said without them.
fn read_person(path: &Path) -> Result<(String, String), Fault> {
    match lines(path)?.as_slice() {
        [address] => Ok((String::new(), address.clone())),
        [name, address] => Ok((name.clone(), address.clone())),
        other => Err(not_a_person(path, other.len(), "two lines, the name and the address, or the address alone")),
    }
}

fn lines(path: &Path) -> Result<Vec<String>, Fault> {
    let (mut text, most) = (String::new(), PERSON_BYTES_MAX);
    let from = if is_standard_input(path) { Path::new("/dev/stdin") } else { path };
    let read = std::fs::File::open(from).and_then(|file| file.take(most + 1).read_to_string(&mut text));
    let failed =
        |why: &dyn std::fmt::Display| Fault::failure(format!("failed to read who it is from {}: {why}", shown(path)));
    read.map_err(|why| failed(&why))?;
    if text.len() as u64 > most {
        return Err(failed(&format!("it is longer than {most} bytes")));
    }
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

fn is_standard_input(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn shown(path: &Path) -> String {
    if is_standard_input(path) { "standard input".to_owned() } else { path.display().to_string() }
}

fn not_a_person(path: &Path, lines: usize, hint: &str) -> Fault {
    Fault::new(
        ExitReason::Usage,
        format!("failed to read who it is from {}: it has {lines} lines\nhint: {hint}", shown(path)),
    )
}

#[derive(Debug, Subcommand)]
pub(super) enum MemberCommand {
    /// All members by id: known, erased, or without a key.
    List {
        #[command(flatten)]
        at: At,
        /// With names, addresses and groups. That they were shown is on record.
        #[arg(long)]
        names: bool,
        #[command(flatten)]
        why: Why,
    },
    /// Who somebody is. That it was shown is on record.
    Show {
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        who: Who,
        #[command(flatten)]
        why: Why,
    },
    /// The id of whoever has an address, made if the address is new.
    Add {
        #[command(flatten)]
        at: At,
        /// File with two lines, the person's name and address; `-` for standard input. With the address alone the name that is
        /// known stays. The address is that of e-mail, or another by which the organisation knows the person.
        #[arg(long)]
        person: PathBuf,
        /// Workspace that the groups are of, by name or id. Without it the groups that are known stay.
        #[arg(long)]
        workspace: Option<String>,
        /// A group of the person in that workspace; all of them, one by one.
        #[arg(long, requires = "workspace")]
        group: Vec<String>,
        #[command(flatten)]
        why: Why,
    },
    /// Destroy a member's key, so that nobody can open the member's entries any more, in no copy of the archive.
    Erase {
        #[command(flatten)]
        at: At,
        /// Id of the member.
        member: String,
        /// Although a legal hold stands; with --reason and --ticket, which are on record.
        #[arg(long, requires = "reason", requires = "ticket")]
        force: bool,
        #[command(flatten)]
        why: Why,
    },
    /// Write a file that opens chosen members' entries to an auditor (`verifier names`). It is on record for each of them.
    Disclose {
        #[command(flatten)]
        at: At,
        /// Ids of the members.
        #[arg(required = true)]
        members: Vec<String>,
        /// The file to make; must not be there yet.
        #[arg(long)]
        out: PathBuf,
        #[command(flatten)]
        why: Why,
    },
}

pub(super) async fn run(command: MemberCommand) -> Done {
    match command {
        MemberCommand::List { at, names, why } => list(&at, names, why.because()?).await,
        MemberCommand::Show { at, who, why } => {
            let (who, because) = (who.read()?, why.because()?);
            let mut ledger = Ledger::connect(at.load()?).await?;
            let shown = ledger.members_named(wire::ShowMemberRequest { who, because: Some(because) }).await?;
            let workspaces = workspaces(&mut ledger).await?;
            shown.iter().for_each(|member| show(member, &workspaces));
            Ok(())
        }
        MemberCommand::Add { at, person, workspace, group, why } => {
            let ((name, address), because) = (read_person(&person)?, why.because()?);
            let mut ledger = Ledger::connect(at.load()?).await?;
            let workspace = match workspace {
                Some(name) => ledger.workspace(&name).await?.into(),
                None => Bytes::new(),
            };
            let asked = wire::AddMemberRequest { address, name, workspace, groups: group, because: Some(because) };
            say(&format!("member {}", hex(&ledger.add_member(asked).await?)));
            Ok(())
        }
        MemberCommand::Erase { at, member, force, why } => {
            let (member, because) = (id(&member)?, Some(why.because()?));
            let mut ledger = Ledger::connect(at.load()?).await?;
            let asked = wire::EraseMemberRequest { member: member.into(), force, because };
            erased(member, &ledger.erase_member(asked).await?);
            Ok(())
        }
        MemberCommand::Disclose { at, members, out, why } => disclose(&at, &members, &out, why.because()?).await,
    }
}

fn id(text: &str) -> Result<MemberId, Fault> {
    let bad = || {
        Fault::new(
            ExitReason::Usage,
            "a member's id has 32 hex digits\nhint: ledger member show --person FILE says it of an address or a name in FILE (`-`: standard input)",
        )
    };
    MemberId::from_hex(text).ok_or_else(bad)
}

/// Names of the workspaces by their ids in hex, which groups begin with.
async fn workspaces(ledger: &mut Ledger) -> Result<HashMap<String, String>, Fault> {
    let status = ledger.status().await?;
    Ok(status.workspaces.iter().map(|known| (hex(&known.workspace), known.name.clone())).collect())
}

/// A member's groups as people read them: by the names of their workspaces, whatever ids those have.
fn groups(member: &wire::Member, workspaces: &HashMap<String, String>) -> String {
    let named = |group: &String| {
        let named = group.split_once('/').and_then(|(id, rest)| Some(format!("{}/{rest}", workspaces.get(id)?)));
        plain(named.as_deref().unwrap_or(group))
    };
    let mut groups: Vec<String> = member.groups.iter().map(named).collect();
    groups.sort();
    groups.join(" ")
}

fn state(member: &wire::Member) -> String {
    match member.state() {
        MemberState::Known => "known".to_owned(),
        MemberState::Erased => format!("erased {}", clock::display(member.erased_at)),
        MemberState::KeyNotAvailable => "key not available".to_owned(),
        MemberState::Unspecified => "unknown".to_owned(),
    }
}

fn show(member: &wire::Member, workspaces: &HashMap<String, String>) {
    say(&format!("member     {}", hex(&member.member)));
    say(&format!("  state    {}", state(member)));
    match member.state() {
        MemberState::Known => {
            say(&format!("  name     {}", plain(&member.name)));
            say(&format!("  address  {}", plain(&member.address)));
            say(&format!("  groups   {}", groups(member, workspaces)));
        }
        MemberState::KeyNotAvailable => {
            say("           the vault lacks its key, and no record says that it was erased");
            say("           hint: restore the vault from its backup (ledger vault restore)");
        }
        _ => {}
    }
    say(&format!("  entry    revision {}, {}", member.revision, clock::display(member.entered_at)));
}

async fn list(at: &At, names: bool, because: wire::Because) -> Done {
    let mut ledger = Ledger::connect(at.load()?).await?;
    let workspaces = workspaces(&mut ledger).await?;
    let mut after = Bytes::new();
    let mut heading = vec!["member", "state", "revision"];
    heading.extend(names.then_some(["name", "address", "groups"]).into_iter().flatten());
    let mut rows = vec![heading.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    loop {
        let asked = wire::ListMembersRequest { after: after.clone(), names, because: Some(because.clone()) };
        let page = ledger.list_members(asked).await?;
        for member in &page.members {
            let mut row = vec![hex(&member.member), state(member), member.revision.to_string()];
            if names {
                row.extend([plain(&member.name), plain(&member.address), groups(member, &workspaces)]);
            }
            rows.push(row);
        }
        match page.members.last() {
            Some(last) if page.more => after = last.member.clone(),
            _ => break,
        }
    }
    say(table(&rows).trim_end());
    Ok(())
}

fn erased(member: MemberId, done: &wire::EraseMemberResponse) {
    let before = if done.again { "already " } else { "" };
    say(&format!("member {member} {before}erased {}; its key is destroyed", clock::display(done.erased_at)));
    match done.archived {
        true => say("the record is in the archive: restoring an older vault does not bring the key back"),
        false => say(
            "the record is durable and not archived yet\nhint: ledger status says what waits; say the same again later",
        ),
    }
    say("backups of the vault from before still hold the key: let them expire, or delete them");
}

async fn disclose(at: &At, members: &[String], out: &Path, because: wire::Because) -> Done {
    let mut members = members.iter().map(|member| id(member)).collect::<Result<Vec<_>, _>>()?;
    members.sort_unstable();
    members.dedup();
    if members.len() > DISCLOSED_MAX {
        return Err(Fault::new(ExitReason::Usage, format!("a file opens at most {DISCLOSED_MAX} members")));
    }
    if out.exists() {
        return Err(super::is_there(out));
    }
    let mut ledger = Ledger::connect(at.load()?).await?;
    let mut all = Disclosure::default();
    for some in members.chunks(DISCLOSED_AT_ONCE) {
        let members = some.iter().map(|member| (*member).into()).collect();
        let asked = wire::DiscloseMembersRequest { members, because: Some(because.clone()) };
        let part = Disclosure::parse(&ledger.disclose_members(asked).await?);
        let part = part.map_err(|why| Fault::failure(format!("the ledger's answer is no disclosure: {why}")))?;
        all.origin = part.origin;
        all.members.extend(part.members);
    }
    // As secret as the names are: it opens them.
    durable::create_new(out, all.to_text().as_bytes(), SECRET_MODE)
        .map_err(|why| Fault::failure(format!("failed to write {}: {why}", out.display())))?;
    say(&format!(
        "{}: opens {} member{}",
        out.display(),
        all.members.len(),
        if all.members.len() == 1 { "" } else { "s" }
    ));
    say("the auditor opens the names with: verifier names ARCHIVE --policy policy.json --disclosure FILE");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_read_from_a_file_and_what_is_wrong_is_said_without_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("person");
        let put = |text: &str| durable::write(&path, text.as_bytes(), SECRET_MODE).unwrap();
        put("Ada Lovelace\n ada@example.com \n\n");
        assert_eq!(read_person(&path).unwrap(), ("Ada Lovelace".to_owned(), "ada@example.com".to_owned()));
        put("ada@example.com");
        assert_eq!(read_person(&path).unwrap(), (String::new(), "ada@example.com".to_owned()));
        let who = |member: Option<&str>, person| Who { member: member.map(str::to_owned), person };
        assert_eq!(who(None, Some(path.clone())).read().unwrap(), "ada@example.com");
        for text in ["", "Ada\nada@example.com\nmore"] {
            put(text);
            for why in [read_person(&path).unwrap_err(), who(None, Some(path.clone())).read().unwrap_err()] {
                assert!(
                    why.text.contains("hint: ") && !why.text.contains("Ada") && !why.text.contains("more"),
                    "{}",
                    why.text
                );
            }
        }
        // As an argument there is an id and nothing else.
        assert_eq!(who(Some(&"a1".repeat(16)), None).read().unwrap(), "a1".repeat(16));
        let why = who(Some("ada@example.com"), None).read().unwrap_err().text;
        assert!(why.contains("--person") && !why.contains("ada"), "{why}");
    }
}
