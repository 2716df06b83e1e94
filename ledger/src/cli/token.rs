//! API tokens of those who ask questions: made, listed, ended. A token is shown once, in the file that it is to lie in.

use std::path::PathBuf;

use clap::Subcommand;
use custody::{
    id::{hex, unhex},
    wire,
};
use verifier::time;

use super::{
    At, Done, Fault,
    admin::Ledger,
    check_token,
    member::Why,
    output::{say, table},
};
use crate::{clock, durable, exit::ExitReason, keys::SECRET_MODE};

/// Microseconds of a day.
const DAY_US: u64 = 86_400_000_000;

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token and write it to a new file of mode 0600; it is shown nowhere else, ever.
    Add {
        #[command(flatten)]
        at: At,
        /// What it is called: whom or what it is for.
        name: String,
        /// What it may: admin, analyst, auditor or exporter (docs/OPERATIONS.md).
        #[arg(long)]
        role: String,
        /// Only this workspace, by name or id; several times for several. Without it: all, also those to come.
        #[arg(long)]
        workspace: Vec<String>,
        /// It may see the names of people, each time for a reason.
        #[arg(long)]
        names: bool,
        /// Days until it ends by itself; 0: never.
        #[arg(long, default_value_t = 90)]
        days: u64,
        /// The file to make; must not be there yet.
        #[arg(long)]
        out: PathBuf,
        #[command(flatten)]
        why: Why,
    },
    /// The tokens, those that have ended too.
    List {
        #[command(flatten)]
        at: At,
    },
    /// End a token at once.
    Revoke {
        #[command(flatten)]
        at: At,
        /// Its id, as `ledger token list` shows it.
        token: String,
        #[command(flatten)]
        why: Why,
    },
}

pub(super) async fn run(command: TokenCommand) -> Done {
    match command {
        TokenCommand::Add { at, name, role, workspace, names, days, out, why } => {
            check_token("the name", &name, 64, false)?;
            if out.exists() {
                return Err(super::is_there(&out));
            }
            let mut ledger = Ledger::connect(at.load()?).await?;
            let mut workspaces = Vec::new();
            for said in &workspace {
                workspaces.push(ledger.workspace(said).await?.into());
            }
            let expires_at = if days == 0 { 0 } else { clock::now_us().saturating_add(days.saturating_mul(DAY_US)) };
            let token = wire::ApiToken { name, role, workspaces, names, expires_at, ..Default::default() };
            let request = wire::AddApiTokenRequest { token: Some(token), because: Some(why.because()?) };
            let made = ledger.add_api_token(request).await?;
            let text = format!("{}\n", made.secret);
            durable::create_new(&out, text.as_bytes(), SECRET_MODE).map_err(|why| {
                let id = hex(&made.token);
                Fault::failure(format!(
                    "failed to write {}: {why}\nhint: nobody has the token now: ledger token revoke {id}, and make another",
                    out.display()
                ))
            })?;
            say(&format!("token {} is in {}; it is shown nowhere else", hex(&made.token), out.display()));
            Ok(())
        }
        TokenCommand::List { at } => {
            let tokens = Ledger::connect(at.load()?).await?.list_api_tokens().await?;
            let heading = ["TOKEN", "NAME", "ROLE", "WORKSPACES", "NAMES", "ENDS"].map(str::to_owned).to_vec();
            let rows: Vec<Vec<String>> = std::iter::once(heading).chain(tokens.iter().map(row)).collect();
            say(table(&rows).trim_end());
            Ok(())
        }
        TokenCommand::Revoke { at, token, why } => {
            let id = unhex(&token).filter(|id| id.len() == 16);
            let id = id.ok_or_else(|| {
                Fault::new(ExitReason::Usage, format!("{token:?} is no token's id\nhint: ledger token list"))
            })?;
            let request = wire::RevokeApiTokenRequest { token: id.into(), because: Some(why.because()?) };
            let again = Ledger::connect(at.load()?).await?.revoke_api_token(request).await?;
            say(if again { "it had ended before" } else { "it is of no use any more" });
            Ok(())
        }
    }
}

fn row(token: &wire::ApiToken) -> Vec<String> {
    let ends = match (token.revoked_at, token.expires_at) {
        (0, 0) => "never".to_owned(),
        (0, at) => time::text(at),
        (at, _) => format!("revoked {}", time::text(at)),
    };
    let workspaces = if token.workspaces.is_empty() { "all".to_owned() } else { token.workspaces.len().to_string() };
    let names = if token.names { "yes" } else { "no" };
    vec![hex(&token.token), token.name.clone(), token.role.clone(), workspaces, names.to_owned(), ends]
}
