//! From an action to a statement in force: prepare, check, sign, hand in.
//!
//! What must hold: nothing is signed that was not asked for. The ledger fills in serial, predecessor and checkpoint, so
//! what comes back is read strictly and compared with what went out before a key touches it. A signed statement that is not
//! archived yet is kept in a file, because its signer is the one who can hand it in again.

use std::path::{Path, PathBuf};

use clap::Args;
use custody::{
    hash::root_successor,
    id::{KeyId, ObjectHash, WorkspaceId, hex},
    key::{self, Context, PublicKey},
    policy::Policy,
    statement::encode_signed,
    strict::{self, table},
    wire::{self, Role, statement::Action},
};
use ed25519_dalek::SigningKey;

use super::{Done, Fault, admin::Ledger, check_token, output::say, read_input, words, write_output};
use crate::keys::{self, Passphrase};

/// Bytes of a name and of a reason in a statement.
pub(super) const NAME_BYTES_MAX: usize = 64;
/// Bytes of a ticket in a statement.
const TICKET_BYTES_MAX: usize = 128;

/// Who signs, and why.
#[derive(Clone, Debug, Args)]
pub(super) struct Signing {
    /// Sign with the root key in this file.
    #[arg(long, group = "signer")]
    root_key: Option<PathBuf>,
    /// Sign with the registrar's key in this file.
    #[arg(long, group = "signer")]
    registrar_key: Option<PathBuf>,
    /// Sign nothing: write what the root is to sign offline to this file (`ledger root sign`, then `ledger statement submit`).
    #[arg(long, group = "signer")]
    request_out: Option<PathBuf>,
    /// File of mode 0600 with the passphrase of a sealed key.
    #[arg(long)]
    passphrase_file: Option<PathBuf>,
    /// Why, as a code: at most 64 characters of [A-Za-z0-9_./:@+-].
    #[arg(long, default_value = "operator")]
    reason: String,
    /// Ticket that has the reason in full: at most 128 characters of the same.
    #[arg(long, default_value = "")]
    ticket: String,
}

/// What became of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A request file was written.
    Requested,
    /// It is in force.
    InForce,
}

/// A signing key, and in which role it signs.
enum Signer {
    Root(SigningKey),
    Registrar(SigningKey),
}

impl Signing {
    fn signer(&self) -> Result<Option<Signer>, Fault> {
        let passphrase = self.passphrase_file.as_deref().map(Passphrase::from_file).transpose()?;
        let load = |path: &Path| keys::load(path, passphrase.as_ref());
        match (&self.root_key, &self.registrar_key, &self.request_out) {
            (Some(path), ..) => Ok(Some(Signer::Root(load(path)?))),
            (None, Some(path), _) => Ok(Some(Signer::Registrar(load(path)?))),
            (None, None, Some(_)) => Ok(None),
            (None, None, None) => Err(Fault::new(
                crate::exit::ExitReason::Usage,
                "this needs a signature\nhint: --root-key FILE, --registrar-key FILE, or --request-out FILE to sign offline",
            )),
        }
    }

    /// Whether what was named here can be used, also by a command that has nothing to sign in the end.
    pub(super) fn check(&self) -> Done {
        check_token("a reason", &self.reason, NAME_BYTES_MAX, true)?;
        check_token("a ticket", &self.ticket, TICKET_BYTES_MAX, true)?;
        if self.root_key.is_some() || self.registrar_key.is_some() {
            self.signer()?;
        }
        Ok(())
    }

    /// Public key of the root key that signs here, if one does.
    pub(super) fn root_public(&self) -> Result<Option<PublicKey>, Fault> {
        match self.signer() {
            Ok(Some(Signer::Root(key))) => Ok(Some(key::public(&key))),
            Ok(_) => Ok(None),
            Err(why) => Err(why),
        }
    }

    /// Has `action` said in the chain of `workspace`, or in that of the ledger's keys.
    pub(super) async fn say(
        &self,
        ledger: &mut Ledger,
        workspace: Option<WorkspaceId>,
        action: Action,
    ) -> Result<Outcome, Fault> {
        self.check()?;
        let signer = self.signer()?;
        let registrar = match &signer {
            Some(Signer::Registrar(key)) => Some(key::public(key).id(Role::Registrar)),
            Some(Signer::Root(_)) | None => None,
        };
        let bytes = ledger.prepare(workspace, registrar, (&self.reason, &self.ticket), action.clone()).await?;
        let prepared = as_asked(&bytes, &ledger.config.origin, workspace, registrar, &action)?;
        let Some(signer) = signer else {
            let Some(path) = self.request_out.as_deref() else { return Ok(Outcome::Requested) };
            write_output(path, &bytes)?;
            say(&words::statement(&prepared));
            say(&format!("request written to {}; next, where the root key is:", path.display()));
            say(&format!(
                "  ledger root sign {} --key ROOT.key --policy policy.json --out SIGNED.stmt",
                path.display()
            ));
            say("then here: ledger statement submit SIGNED.stmt");
            return Ok(Outcome::Requested);
        };
        if let Signer::Root(key) = &signer {
            // Of a later era than the policy knows: the ledger, which has the whole chain, takes the signature or refuses it.
            let _: bool = check_root(&ledger.config.paths.policy, &prepared, key)?;
        }
        let (Signer::Root(key) | Signer::Registrar(key)) = &signer;
        let object = encode_signed(&bytes, key::sign(key, Context::Statement, &bytes));
        submit(ledger, object).await?;
        Ok(Outcome::InForce)
    }
}

/// Hands in a signed statement, and keeps it in a file unless it is archived.
pub(super) async fn submit(ledger: &mut Ledger, object: Vec<u8>) -> Done {
    let answer = ledger.submit(object.clone()).await;
    let hash = custody::hash::object_hash(&object);
    match answer {
        Ok(answer) if answer.archived => {
            say("in force and archived");
            Ok(())
        }
        Ok(_) => {
            let kept = keep(&object, hash)?;
            say(&format!(
                "in force, not archived yet: keep {kept} until `ledger statement submit {kept}` says archived"
            ));
            Ok(())
        }
        Err((fault, false)) => Err(fault),
        Err((mut fault, true)) => {
            let kept = keep(&object, hash)?;
            fault
                .text
                .push_str(&format!("\nhint: the signed statement is in {kept}; handing it in twice does no harm"));
            Err(fault)
        }
    }
}

fn keep(object: &[u8], hash: ObjectHash) -> Result<String, Fault> {
    let name = format!("{}.stmt", hash.to_string().get(..16).unwrap_or_default());
    let path = Path::new(&name);
    if read_input(path).is_ok_and(|kept| kept == object) {
        return Ok(name);
    }
    write_output(path, object)?;
    Ok(name)
}

/// The prepared statement, if it says exactly what was asked for.
fn as_asked(
    bytes: &[u8],
    origin: &str,
    workspace: Option<WorkspaceId>,
    registrar: Option<KeyId>,
    action: &Action,
) -> Result<wire::Statement, Fault> {
    let differs = |what: &str| {
        Fault::failure(format!(
            "the ledger prepared a statement with another {what} than asked for; nothing was signed\nhint: do not trust this \
             ledger before somebody has looked at it"
        ))
    };
    let prepared: wire::Statement = strict::decode(&table::STATEMENT, bytes).map_err(|_| differs("form"))?;
    if prepared.origin != origin {
        return Err(differs("origin"));
    }
    if prepared.workspace.as_deref() != workspace.as_ref().map(AsRef::as_ref) {
        return Err(differs("workspace"));
    }
    if prepared.registrar.as_deref() != registrar.as_ref().map(AsRef::as_ref) {
        return Err(differs("registrar"));
    }
    if prepared.action.as_ref() != Some(action) {
        return Err(differs("action"));
    }
    Ok(prepared)
}

/// Whether this is the root key of the statement's era. The audit policy says which that is: it names the era's key, or the
/// hash of the successor of the era before. `Ok(false)`: it knows neither.
pub(super) fn check_root(policy: &Path, statement: &wire::Statement, key: &SigningKey) -> Result<bool, Fault> {
    let bytes = read_input(policy)?;
    let policy = Policy::parse(&bytes).map_err(|why| {
        Fault::failure(format!(
            "{} cannot be used: {why}\nhint: the policy is the policy.json that `ledger init` wrote",
            policy.display()
        ))
    })?;
    if policy.origin != statement.origin {
        return Err(Fault::failure(format!(
            "the statement is of the log {}, and the audit policy of {}\nhint: name the policy of this log",
            statement.origin, policy.origin
        )));
    }
    let wrong = |hint: &str| {
        Err(Fault::failure(format!(
            "this is not the root key of era {}; nothing was signed\nhint: {hint}",
            statement.era
        )))
    };
    let public = key::public(key).to_bytes();
    if let Some(Action::SucceedRoot(succeed)) = &statement.action
        && succeed.public_key[..] != public
    {
        return wrong("a succession is signed with the key that it brings, which is the successor's");
    }
    let of = |era: Option<u32>| era.and_then(|era| policy.roots.iter().find(|root| root.era == era));
    match (of(Some(statement.era)), of(statement.era.checked_sub(1))) {
        (Some(root), _) if root.public_key != hex(&public) => {
            wrong(&format!("the audit policy says {} (`ledger root public FILE` shows a key's)", root.public_key))
        }
        (None, Some(before)) if before.successor_hash != hex(&root_successor(&public)) => {
            wrong("the root was succeeded: only the successor, whose hash the audit policy has, signs now")
        }
        (None, None) => Ok(false),
        _ => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn nothing_is_signed_that_was_not_asked_for() {
        let workspace = WorkspaceId([3; 16]);
        let action = Action::Create(wire::Create { name: "payments".to_owned() });
        let good = wire::Statement {
            version: 1,
            origin: "a".to_owned(),
            workspace: Some(workspace.into()),
            previous: ObjectHash::ZERO.into(),
            checkpoint_hash: ObjectHash::ZERO.into(),
            issued_at: 1,
            era: 1,
            action: Some(action.clone()),
            ..Default::default()
        };
        let look = |statement: &wire::Statement| {
            as_asked(&statement.encode_to_vec(), "a", Some(workspace), None, &action).map_err(|fault| fault.text)
        };
        assert_eq!(look(&good).unwrap(), good);
        let other = Action::Create(wire::Create { name: "payroll".to_owned() });
        for (word, bad) in [
            ("form", wire::Statement { origin: String::new(), ..good.clone() }),
            ("origin", wire::Statement { origin: "b".to_owned(), ..good.clone() }),
            ("workspace", wire::Statement { workspace: None, ..good.clone() }),
            ("registrar", wire::Statement { registrar: Some(vec![1; 32].into()), ..good.clone() }),
            ("action", wire::Statement { action: Some(other), ..good }),
        ] {
            let why = look(&bad).unwrap_err();
            assert!(why.contains(&format!("another {word}")), "{word}: {why}");
        }
    }

    #[test]
    fn the_root_of_the_statements_era_signs_and_no_other() {
        let [root, successor, third] = [1, 2, 3].map(|n| SigningKey::from_bytes(&[n; 32]));
        let public = |key: &SigningKey| key::public(key).to_bytes();
        let folder = tempfile::tempdir().unwrap();
        let policy = folder.path().join("policy.json");
        let roots = serde_json::json!([{ "era": 1, "public_key": hex(&public(&root)),
            "successor_hash": hex(&root_successor(&public(&successor))) }]);
        let text = serde_json::json!({ "version": 1, "origin": "a", "scope": "organisation", "roots": roots,
            "required": ["unaltered"] });
        crate::durable::write(&policy, text.to_string().as_bytes(), 0o600).unwrap();
        let said =
            |era, action| wire::Statement { origin: "a".to_owned(), era, action: Some(action), ..Default::default() };
        let create = || Action::Create(wire::Create { name: "payments".to_owned() });
        let brings = |key: &SigningKey| {
            let public_key = public(key).to_vec().into();
            Action::SucceedRoot(wire::SucceedRoot { public_key, successor_hash: vec![9; 32].into() })
        };
        let look = |statement: &wire::Statement, key| check_root(&policy, statement, key).map_err(|fault| fault.text);
        assert_eq!(look(&said(1, create()), &root), Ok(true));
        assert_eq!(look(&said(2, create()), &successor), Ok(true));
        assert_eq!(look(&said(2, brings(&successor)), &successor), Ok(true));
        assert_eq!(look(&said(3, create()), &third), Ok(false), "nothing is known of it");
        let foreign = wire::Statement { origin: "b".to_owned(), ..said(1, create()) };
        for (statement, key) in [
            (said(1, create()), &successor),
            (said(2, create()), &root),
            (said(2, brings(&successor)), &root),
            (said(2, brings(&third)), &third),
            (said(3, brings(&third)), &successor),
            (foreign, &root),
        ] {
            let why = look(&statement, key).unwrap_err();
            assert!(why.contains("hint:"), "{why}");
        }
    }
}
