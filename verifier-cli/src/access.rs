//! Who could call what at a time, who changed it and why: from the records of access changes in an archive (FORMAT.md, 5.6).
//!
//! What must hold: the answer rests on records that were verified just before, and of a refuted archive there is none; order is
//! position, and a time only says how many of a gateway's changes count; what is decided is decided by the contract
//! (`custody::access`). What the records cannot say is said: each doubt makes the answer undecided.

use std::collections::BTreeMap;

use custody::{
    directory::Disclosure,
    id::{GatewayId, MemberId, WorkspaceId},
    policy::Policy,
    statement::RESERVED_NAME,
    verdict::Verdict,
    verify::{self, Archive, Known, Options},
};

use crate::{
    export::narrowed, failure::Failure, names, output::plain, progress::Watched, segments::find_workspace,
    workers::AllCores,
};

mod effect;
mod find;
mod json;
mod read;
mod text;

pub use find::OfGateway;
pub use json::{json, unreadable_json};
pub use text::text;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// Of which time.
    pub when: When,
    /// Id or name; without it all that the policy asks for.
    pub workspace: Option<String>,
    /// This one alone.
    pub gateway: Option<GatewayId>,
    /// This one alone.
    pub member: Option<MemberId>,
    /// Who could call it.
    pub tool: Option<Tool>,
    /// By which method; `tools/call` unless something else is asked.
    pub method: String,
}

/// The time of a question, in microseconds of the gateways' clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// What was in force then.
    At(u64),
    /// What changed from what was in force at the first to what was at the second.
    Between(u64, u64),
}

impl When {
    /// The last time of which something is said.
    pub fn end(self) -> u64 {
        let (Self::At(end) | Self::Between(_, end)) = self;
        end
    }
}

/// What a request names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    /// The server.
    pub server: String,
    /// A tool, a prompt or the URI of a resource there.
    pub name: String,
}

impl std::str::FromStr for Tool {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let halves = text.split_once('/').filter(|(server, name)| !server.is_empty() && !name.is_empty());
        let tool = halves.map(|(server, name)| Self { server: server.to_owned(), name: name.to_owned() });
        tool.ok_or("not a tool of a server\nhint: `server/tool`, as in mail/send; no pattern")
    }
}

impl std::fmt::Display for Tool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", plain(&self.server), plain(&self.name))
    }
}

/// Names of members, as far as a disclosure file opens them.
#[derive(Clone, Debug, Default)]
pub struct Names(BTreeMap<MemberId, String>);

impl Names {
    /// The id, and the name behind it if it is known.
    fn of(&self, member: &MemberId) -> String {
        self.0.get(member).map_or_else(|| member.to_string(), |name| format!("{member} ({name})"))
    }

    /// The name alone.
    fn name(&self, member: &MemberId) -> Option<&str> {
        self.0.get(member).map(String::as_str)
    }
}

/// What the archive says.
#[derive(Debug)]
pub struct Answer {
    /// What verification says of that of the archive on which the answer rests.
    pub verdict: Verdict,
    /// By which policy: that of the question, for the workspace that was asked for.
    pub policy: Policy,
    /// Each gateway that was heard in these workspaces; none where something is refuted.
    pub gateways: Vec<OfGateway>,
    /// Who the members are.
    pub names: Names,
}

impl Answer {
    /// 0 all is known, on verified records; 1 something is refuted; 2 something is undecided.
    pub fn exit_code(&self) -> u8 {
        match self.verdict.exit_code(&self.policy.required) {
            0 => 2 * u8::from(self.gateways.iter().any(|of| !of.doubts.is_empty())),
            code => code,
        }
    }
}

/// Verifies the archive, then reads the access changes in it.
///
/// # Errors
/// [`Failure`], also for a workspace that is not there or that the policy does not ask for. That something is refuted is an
/// answer.
pub fn answer(
    objects: &impl Archive,
    policy: &Policy,
    options: &Options,
    question: &Question,
    disclosure: Option<&Disclosure>,
) -> Result<Answer, Failure> {
    let Ok(log) = verify::log(objects, policy, None)? else {
        let verdict = verify::run(objects, policy, options, &AllCores::new())?;
        return Ok(Answer { verdict, policy: policy.clone(), gateways: Vec::new(), names: Names::default() });
    };
    let asked = question.workspace.as_deref().map(|said| find_workspace(&log, said)).transpose()?;
    let scope = policy.workspaces()?;
    let reserved = disclosure.map(|_| find_workspace(&log, RESERVED_NAME)).transpose()?;
    for (needed, what) in [(asked, "workspace"), (reserved, "names: the workspace of the ledger's own records,")] {
        if let Some(id) = needed.filter(|id| scope.as_ref().is_some_and(|scope| !scope.contains(id))) {
            let why = format!("{what} {id} is not in the policy's scope");
            return Err(Failure::NotThere(format!("{why}\nhint: ask with a policy that asks for it")));
        }
    }
    let (mut policy, mut options) = (policy.clone(), options.clone());
    if let Some(id) = asked {
        let only: Vec<WorkspaceId> = [Some(id), reserved].into_iter().flatten().collect();
        policy = narrowed(&policy, &only);
        options.known.retain(|known| match known {
            Known::Head(signed) | Known::Receipt(signed, _) => only.contains(&signed.head.workspace),
            Known::Checkpoint(_) => true,
        });
    }
    let watched = Watched::new(objects, &policy, &options);
    let verdict = verify::run(&watched, &policy, &options, &AllCores::new());
    watched.finish();
    let verdict = verdict?;
    let mut answer = Answer { verdict, policy, gateways: Vec::new(), names: Names::default() };
    if answer.verdict.exit_code(&answer.policy.required) == 1 {
        return Ok(answer);
    }
    if let Some(disclosure) = disclosure {
        answer.names = opened(objects, &answer.policy, disclosure)?;
    }
    for workspace in read::read(objects, &log, &answer.verdict.workspaces)? {
        answer.gateways.extend(find::find(&workspace, question));
    }
    Ok(answer)
}

/// The names that a disclosure file opens.
fn opened(objects: &impl Archive, policy: &Policy, disclosure: &Disclosure) -> Result<Names, Failure> {
    let found = names::read(objects, policy, disclosure)?;
    if let Some((member, of)) = found.iter().find(|(_, of)| !of.wrong.is_empty()) {
        let why = of.wrong.first().map_or("", String::as_str);
        let hint = "hint: `verifier names` says what else is wrong; without --names members are shown by their ids";
        return Err(Failure::Unreadable(format!("the disclosure file is wrong about member {member}: {why}\n{hint}")));
    }
    let name = |contents: custody::wire::DirectoryContents| {
        let (name, address) = (plain(&contents.name), plain(&contents.address));
        if name.is_empty() { address } else { format!("{name} <{address}>") }
    };
    Ok(Names(found.into_iter().filter_map(|(member, of)| Some((member, name(of.contents?)))).collect()))
}
