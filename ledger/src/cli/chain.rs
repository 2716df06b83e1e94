//! Statements as such: hand one in, list a chain.

use std::path::PathBuf;

use clap::Subcommand;
use custody::{
    id::WorkspaceId,
    policy::Policy,
    statement::{Chain, Signed},
};

use super::{At, Done, Fault, admin::Ledger, output::say, read_input, sign, words};

#[derive(Debug, Subcommand)]
pub(super) enum StatementCommand {
    /// Hand in a signed statement. The same one again is answered with its state.
    Submit {
        #[command(flatten)]
        at: At,
        /// File with the signed statement.
        file: PathBuf,
    },
    /// Show a chain in words: a workspace's, or that of the ledger's own keys.
    List {
        #[command(flatten)]
        at: At,
        /// Workspace by name or id.
        #[arg(long)]
        workspace: Option<String>,
    },
}

pub(super) async fn run(command: StatementCommand) -> Done {
    match command {
        StatementCommand::Submit { at, file } => {
            let object = read_input(&file)?;
            Signed::parse(&object).map_err(|why| {
                let hint = "hint: `ledger root sign` makes a signed statement from a request";
                Fault::failure(format!("{} is no signed statement: {why}\n{hint}", file.display()))
            })?;
            let mut ledger = Ledger::connect(at.load()?).await?;
            sign::submit(&mut ledger, object).await
        }
        StatementCommand::List { at, workspace } => {
            let mut ledger = Ledger::connect(at.load()?).await?;
            let workspace = named(&mut ledger, workspace.as_deref()).await?;
            for object in ledger.statements(workspace).await? {
                say(&words::statement(&parsed(&object)?.statement));
            }
            Ok(())
        }
    }
}

/// The next move when the ledger answers with what it can never have taken.
const DISTRUST: &str =
    "hint: is policy.json the one of this ledger? if it is, do not trust this ledger before somebody has looked at it";

/// A statement of the ledger's answer.
fn parsed(object: &[u8]) -> Result<Signed, Fault> {
    Signed::parse(object).map_err(|why| {
        Fault::failure(format!("the ledger's answer holds a statement that is not in form: {why}\n{DISTRUST}"))
    })
}

/// The workspace that was named, if one was.
pub(super) async fn named(ledger: &mut Ledger, name: Option<&str>) -> Result<Option<WorkspaceId>, Fault> {
    match name {
        Some(name) => ledger.workspace(name).await.map(Some),
        None => Ok(None),
    }
}

/// The state of a chain, replayed from the ledger's answer under the roots of the audit policy.
pub(super) async fn replay(ledger: &mut Ledger, workspace: Option<WorkspaceId>) -> Result<Chain, Fault> {
    let bytes = read_input(&ledger.config.paths.policy)?;
    let policy = Policy::parse(&bytes).map_err(|why| Fault::failure(why.to_string()))?;
    let mut roots = policy.roots().map_err(|why| Fault::failure(why.to_string()))?.with_past();
    // A succession of roots stands in the ledger's own chain.
    let mut chain = Chain::new(&ledger.config.origin, None);
    for of in [None].into_iter().chain(workspace.map(Some)) {
        chain = Chain::new(&ledger.config.origin, of);
        for object in ledger.statements(of).await? {
            let signed = parsed(&object)?;
            chain.apply(&signed, &mut roots).map_err(|why| {
                Fault::failure(format!(
                    "the ledger's answer does not verify: statement {} {why}\n{DISTRUST}",
                    signed.statement.serial
                ))
            })?;
        }
    }
    Ok(chain)
}
