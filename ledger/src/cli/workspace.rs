//! Workspaces: add, remove, list.

use clap::Subcommand;
use custody::{
    id::{WorkspaceId, hex},
    wire::{self, statement::Action},
};

use super::{
    At, Done,
    admin::Ledger,
    check_token,
    output::{say, table},
    sign::{NAME_BYTES_MAX, Outcome, Signing},
};
use crate::keys;

#[derive(Debug, Subcommand)]
pub(super) enum WorkspaceCommand {
    /// Create a workspace with a random id.
    Add {
        #[command(flatten)]
        at: At,
        /// Its name: 1 to 64 characters of [A-Za-z0-9_./:@+-].
        name: String,
        #[command(flatten)]
        signing: Signing,
    },
    /// Stop the intake of a workspace for good. No record is removed.
    Remove {
        #[command(flatten)]
        at: At,
        /// Its name or id.
        name: String,
        #[command(flatten)]
        signing: Signing,
    },
    /// All workspaces with their ids.
    List {
        #[command(flatten)]
        at: At,
    },
}

pub(super) async fn run(command: WorkspaceCommand) -> Done {
    match command {
        WorkspaceCommand::Add { at, name, signing } => {
            check_token("a workspace's name", &name, NAME_BYTES_MAX, false)?;
            let mut ledger = Ledger::connect(at.load()?).await?;
            let id = WorkspaceId(keys::random());
            let action = Action::Create(wire::Create { name: name.clone() });
            let outcome = signing.say(&mut ledger, Some(id), action).await?;
            match outcome {
                Outcome::InForce => say(&format!("workspace {name} has the id {id}")),
                Outcome::Requested => say(&format!("workspace {name} will have the id {id}")),
            }
        }
        WorkspaceCommand::Remove { at, name, signing } => {
            let mut ledger = Ledger::connect(at.load()?).await?;
            let id = ledger.workspace(&name).await?;
            signing.say(&mut ledger, Some(id), Action::Remove(wire::Remove {})).await?;
        }
        WorkspaceCommand::List { at } => {
            let mut ledger = Ledger::connect(at.load()?).await?;
            let status = ledger.status().await?;
            let mut rows = vec![["name", "id", "state", "records", "gateways"].map(str::to_owned).to_vec()];
            rows.extend(status.workspaces.iter().map(|workspace| {
                vec![
                    workspace.name.clone(),
                    hex(&workspace.workspace),
                    if workspace.removed { "removed" } else { "open" }.to_owned(),
                    workspace.positions.to_string(),
                    workspace.gateways.len().to_string(),
                ]
            }));
            say(table(&rows).trim_end());
        }
    }
    Ok(())
}
