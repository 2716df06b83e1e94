//! `gateway-shim access`: the access policy as a whole.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use custody::{
    id::{hex, unhex},
    wire,
};

use super::{
    At, Done, EXIT_FAILED, Failed,
    output::{print, print_exactly, say},
    running::Running,
};
use crate::access::policy::TEMPLATE;

/// Longest policy that is read, in bytes: what a running shim takes.
const FILE_BYTES_MAX: u64 = 15 << 20;

#[derive(Debug, Subcommand)]
pub enum AccessVerb {
    /// Prints an access policy with every key, all but the version in comments.
    Template,
    /// Shows what applying the policy's file would change.
    Plan {
        #[command(flatten)]
        at: At,
        /// Instead of the file that the configuration names.
        file: Option<PathBuf>,
    },
    /// Puts the policy's file in force, at once and for everybody; what it does not change is not touched.
    Apply {
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        why: Why,
        /// Instead of the file that the configuration names.
        file: Option<PathBuf>,
        /// Digest of what is in force, as `access plan` prints it: applies a file that lacks what verbs changed since it was
        /// made, and undoes that.
        #[arg(long)]
        over: Option<Digest>,
        /// Lets members and tokens that were revoked come back.
        #[arg(long)]
        restore_revoked: bool,
    },
    /// Shows what is in force: members, agents, tokens by their ids, rules in their order, limits, servers.
    Show {
        #[command(flatten)]
        at: At,
        /// The workspace's text, as a file has it.
        #[arg(long)]
        text: bool,
    },
    /// Gives up changes that could not be recorded and wait; what they take away is given back.
    Abandon {
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        why: Why,
    },
}

/// 64 hex digits.
#[derive(Clone, Copy, Debug)]
pub struct Digest([u8; 32]);

impl std::str::FromStr for Digest {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = unhex(text).and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or("a digest is 64 lower-case hex digits; `access plan` shows it")
    }
}

/// Who makes a change, and why: it stands in the records for ever.
#[derive(Debug, Args)]
pub struct Why {
    /// A code of at most 64 characters of [A-Za-z0-9_./:@+-]; no names of people.
    #[arg(long)]
    reason: String,
    /// Reference of a ticket, of the same characters.
    #[arg(long, default_value = "")]
    ticket: String,
    /// Id of the member who makes it, or a name of a system; without it `uid:N`, the account that types this, which is on record
    /// in any case.
    #[arg(long, default_value = "")]
    actor: String,
}

impl From<Why> for wire::AccessWhy {
    fn from(Why { reason, ticket, actor }: Why) -> Self {
        Self { actor, reason, ticket }
    }
}

pub(super) async fn run(verb: AccessVerb) -> Done {
    match verb {
        AccessVerb::Template => print(TEMPLATE),
        AccessVerb::Plan { at, file } => {
            let text = file.as_deref().map(read).transpose()?;
            let plan = Running::connect(&at.load()?).await?.plan_access(text).await?;
            print(&planned(&plan));
            plan.warnings.iter().for_each(|warning| say(&format!("WARNING: {warning}")));
        }
        AccessVerb::Apply { at, why, file, over, restore_revoked } => {
            let text = file.as_deref().map(read).transpose()?;
            let over = over.map(|Digest(digest)| digest.to_vec().into()).unwrap_or_default();
            let asked = wire::ApplyAccessRequest { why: Some(why.into()), text, over, restore_revoked };
            return Ok(tell(&Running::connect(&at.load()?).await?.apply_access(asked).await?));
        }
        AccessVerb::Show { at, text } => {
            let shown = Running::connect(&at.load()?).await?.show_access().await?;
            match text {
                true => print_exactly(&shown.text),
                false => print(&format!("{}\nin force {}", shown.lines.join("\n"), hex(&shown.digest))),
            }
        }
        AccessVerb::Abandon { at, why } => {
            let asked = wire::AbandonAccessRequest { why: Some(why.into()) };
            return Ok(tell(&Running::connect(&at.load()?).await?.abandon_access(asked).await?));
        }
    }
    Ok(0)
}

fn read(path: &Path) -> Result<String, Failed> {
    let named = |why: String| {
        let hint = "hint: name the file of an access policy, or none for the one that serve.access names";
        Failed::new(EXIT_FAILED, format!("read {}: {why}; {hint}", path.display()))
    };
    let length = std::fs::metadata(path).map_err(|why| named(why.to_string()))?.len();
    if length > FILE_BYTES_MAX {
        return Err(named("it is longer than 15 MiB".into()));
    }
    std::fs::read_to_string(path).map_err(|why| named(why.to_string()))
}

fn planned(plan: &wire::AccessPlan) -> String {
    let before = hex(&plan.before);
    match plan.lines.is_empty() {
        true if plan.before == plan.after => format!("nothing would change; in force is {before}"),
        true => {
            format!("no rule, member, token or limit would change, the text alone: {before} -> {}", hex(&plan.after))
        }
        false => format!("{}\nin force {before}\nthen     {}", plan.lines.join("\n"), hex(&plan.after)),
    }
}

/// What a change did, and the exit code. A token goes to standard output, alone, so that it can be kept without what is said
/// about it.
pub(super) fn tell(changed: &wire::AccessChanged) -> u8 {
    for line in &changed.lines {
        say(line);
    }
    let now = if changed.unfinished.is_empty() { "in force now" } else { "on record and in force" };
    say(&format!("{now}: {}", hex(&changed.digest)));
    if !changed.tokens.is_empty() {
        say("each token below is shown this once; hint: give it to its holder over a way that nobody else reads");
    }
    for token in &changed.tokens {
        print(token);
    }
    for warning in &changed.warnings {
        say(&format!("WARNING: {warning}"));
    }
    if changed.unfinished.is_empty() {
        return 0;
    }
    say(&format!("failed to {}", changed.unfinished));
    EXIT_FAILED
}
