//! Keys and registrars: every statement about a key, and key files to make them with.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use custody::{
    forensic::Succession,
    hash::root_successor,
    id::{GatewayId, KeyId, WorkspaceId, hex, unhex},
    key::{self, Context, PublicKey},
    statement::possession,
    wire::{self, Role, statement::Action},
};

use super::{
    At, Done, Fault,
    admin::Ledger,
    chain::{named, replay},
    check_token,
    output::{say, table},
    sign::{NAME_BYTES_MAX, Signing},
    words,
};
use crate::{
    exit::ExitReason,
    keys::{self, Passphrase},
};

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Make a key file, and print its public key.
    Make {
        /// Where; nothing may be there.
        file: PathBuf,
        /// File of mode 0600 with a passphrase that seals it.
        #[arg(long)]
        passphrase_file: Option<PathBuf>,
    },
    /// Enrol a key: a receipt signer's in a workspace, or one of the ledger's own (without --workspace).
    Enrol {
        #[command(flatten)]
        place: Place,
        /// What the key may sign.
        #[arg(long, value_enum)]
        role: RoleName,
        /// Name for people.
        #[arg(long, default_value = "")]
        name: String,
        /// Gateway id, of a gateway or of the record key; the record key keeps the one that it has if none is given.
        #[arg(long)]
        gateway: Option<String>,
        /// A receipt signer's word that its next key follows one that is enrolled (JSON, as the SDK writes a succession):
        /// the key that it names is enrolled.
        #[arg(long, group = "which_key")]
        succession: Option<PathBuf>,
        #[command(flatten)]
        new: NewKey,
        #[command(flatten)]
        signing: Signing,
    },
    /// Make somebody a registrar of a workspace, who may enrol up to so many keys there.
    Delegate {
        #[command(flatten)]
        place: Place,
        /// How many keys it may enrol, ever.
        #[arg(long)]
        enrolments_max: u32,
        #[command(flatten)]
        new: NewKey,
        #[command(flatten)]
        signing: Signing,
    },
    /// Let a key open no new epoch; what is open may end.
    Retire {
        #[command(flatten)]
        place: Place,
        /// Key id in hex.
        key: String,
        #[command(flatten)]
        signing: Signing,
    },
    /// Let nothing more from a key count.
    Revoke {
        #[command(flatten)]
        place: Place,
        /// Key id in hex; also a registrar's.
        key: String,
        /// Of a registrar: serials of the enrolments that are void, separated by commas.
        #[arg(long, value_delimiter = ',')]
        void: Vec<u64>,
        #[command(flatten)]
        signing: Signing,
    },
    /// Put in doubt what a key signed from somewhere on.
    Suspect {
        #[command(flatten)]
        place: Place,
        /// Key id in hex.
        key: String,
        /// Position in the workspace, or for a key of the ledger index in the log.
        #[arg(long)]
        since: u64,
        #[command(flatten)]
        signing: Signing,
    },
    /// Let the successor take the root key's place: the root key is lost, or known to others. The successor itself signs.
    SucceedRoot {
        #[command(flatten)]
        at: At,
        /// The successor's public key in hex (`ledger root public FILE`); of --root-key if none is given.
        #[arg(long)]
        public_key: Option<String>,
        /// Public key in hex of who succeeds it in turn (`ledger key make FILE`, kept offline); only its hash is published.
        #[arg(long)]
        next_public_key: String,
        #[command(flatten)]
        signing: Signing,
    },
    /// All keys of a workspace, or the ledger's own.
    List {
        #[command(flatten)]
        place: Place,
    },
}

/// In which chain.
#[derive(Clone, Debug, Args)]
pub(super) struct Place {
    #[command(flatten)]
    at: At,
    /// Workspace by name or id; without it the ledger's own keys are meant.
    #[arg(long)]
    workspace: Option<String>,
}

impl Place {
    async fn go(&self) -> Result<(Ledger, Option<WorkspaceId>), Fault> {
        let mut ledger = Ledger::connect(self.at.load()?).await?;
        let workspace = named(&mut ledger, self.workspace.as_deref()).await?;
        Ok((ledger, workspace))
    }
}

/// A role that can be enrolled by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum RoleName {
    /// Signs batches of a gateway.
    Gateway,
    /// Signs forensic receipts of a tool runtime.
    Receipt,
    /// Signs the ledger's own records.
    Record,
    /// Signs open heads.
    Head,
    /// Signs checkpoints.
    Log,
}

impl RoleName {
    fn role(self) -> Role {
        match self {
            Self::Gateway => Role::Gateway,
            Self::Receipt => Role::Receipt,
            Self::Record => Role::Record,
            Self::Head => Role::Head,
            Self::Log => Role::Log,
        }
    }
}

/// The new key: a file on this machine, or what its holder sent.
#[derive(Clone, Debug, Args)]
pub(super) struct NewKey {
    /// File with the new key, which then proves its possession here.
    #[arg(long, group = "which_key")]
    new_key: Option<PathBuf>,
    /// File of mode 0600 with the passphrase of that file.
    #[arg(long)]
    new_key_passphrase_file: Option<PathBuf>,
    /// Public key in hex.
    #[arg(long, group = "which_key")]
    public_key: Option<String>,
    /// The holder's signature over its possession, in hex.
    #[arg(long)]
    possession: Option<String>,
}

impl NewKey {
    /// The key, and the proof that its holder holds it.
    fn read(
        &self,
        origin: &str,
        workspace: Option<WorkspaceId>,
        role: Role,
        gateway: Option<GatewayId>,
    ) -> Result<(PublicKey, Option<Vec<u8>>), Fault> {
        if let Some(path) = &self.new_key {
            let passphrase = self.new_key_passphrase_file.as_deref().map(Passphrase::from_file).transpose()?;
            let new = keys::load(path, passphrase.as_ref())?;
            let public = key::public(&new);
            let message = possession(origin, workspace, role, public, gateway);
            return Ok((public, Some(key::sign(&new, Context::Possession, &message).to_vec())));
        }
        let usage = |text: &str| Fault::new(ExitReason::Usage, text);
        let text =
            self.public_key.as_ref().ok_or_else(|| usage("which key?\nhint: --new-key FILE or --public-key HEX"))?;
        let public = public_key("--public-key", text)?;
        let Some(proof) = &self.possession else {
            if role == Role::Receipt {
                return Ok((public, None));
            }
            return Err(usage(
                "the holder must prove that it holds the key\nhint: --possession HEX, or --new-key FILE",
            ));
        };
        let proof = unhex(proof).unwrap_or_default();
        if !public.verifies(Context::Possession, &possession(origin, workspace, role, public, gateway), &proof) {
            return Err(Fault::failure(
                "--possession is no signature of that key over its role here\nhint: the holder signs for this log, this workspace and this \
                 role; is --workspace the one that it signed for?",
            ));
        }
        Ok((public, Some(proof)))
    }
}

pub(super) async fn run(command: KeyCommand) -> Done {
    match command {
        KeyCommand::Make { file, passphrase_file } => make(&file, passphrase_file.as_deref()),
        KeyCommand::Enrol { place, role, name, gateway, succession, new, signing } => {
            check_token("a key's name", &name, NAME_BYTES_MAX, true)?;
            let (mut ledger, workspace) = place.go().await?;
            let role = role.role();
            let gateway = gateway_of(&mut ledger, role, gateway.as_deref()).await?;
            let (public, proof) = match succession {
                Some(path) => (successor(&mut ledger, workspace, role, &path).await?, None),
                None => new.read(&ledger.config.origin, workspace, role, gateway)?,
            };
            let enrol = wire::Enrol {
                role: role as i32,
                public_key: public.to_bytes().to_vec().into(),
                gateway: gateway.map(Into::into),
                name,
                possession: proof.map(Into::into),
            };
            say(&format!("key id {}", public.id(role)));
            signing.say(&mut ledger, workspace, Action::Enrol(enrol)).await.map(drop)
        }
        KeyCommand::Delegate { place, enrolments_max, new, signing } => {
            let (mut ledger, workspace) = place.go().await?;
            let (public, proof) = new.read(&ledger.config.origin, workspace, Role::Registrar, None)?;
            let delegate = wire::Delegate {
                public_key: public.to_bytes().to_vec().into(),
                enrolments_max,
                possession: proof.unwrap_or_default().into(),
            };
            say(&format!("registrar key id {}", public.id(Role::Registrar)));
            signing.say(&mut ledger, workspace, Action::Delegate(delegate)).await.map(drop)
        }
        KeyCommand::Retire { place, key, signing } => {
            about(&place, &signing, Action::Retire(wire::Retire { key_id: key_id(&key)? })).await
        }
        KeyCommand::Revoke { place, key, void, signing } => {
            about(&place, &signing, Action::Revoke(wire::Revoke { key_id: key_id(&key)?, void_serials: void })).await
        }
        KeyCommand::Suspect { place, key, since, signing } => {
            about(&place, &signing, Action::Suspect(wire::Suspect { key_id: key_id(&key)?, since })).await
        }
        KeyCommand::SucceedRoot { at, public_key: given, next_public_key, signing } => {
            let new = match (given, signing.root_public()?) {
                (Some(text), _) => public_key("--public-key", &text)?,
                (None, Some(key)) => key,
                (None, None) => return Err(Fault::new(ExitReason::Usage, "which key?\nhint: --public-key HEX")),
            };
            let next = public_key("--next-public-key", &next_public_key)?;
            let succeed = wire::SucceedRoot {
                public_key: new.to_bytes().to_vec().into(),
                successor_hash: root_successor(&next.to_bytes()).to_vec().into(),
            };
            let mut ledger = Ledger::connect(at.load()?).await?;
            signing.say(&mut ledger, None, Action::SucceedRoot(succeed)).await.map(drop)
        }
        KeyCommand::List { place } => list(&place).await,
    }
}

fn public_key(flag: &str, text: &str) -> Result<PublicKey, Fault> {
    let key = unhex(text).and_then(|bytes| PublicKey::new(&bytes));
    key.ok_or_else(|| {
        Fault::new(
            ExitReason::Usage,
            format!(
                "{flag} is no usable Ed25519 key in hex\nhint: `ledger root public FILE` prints that of a key file"
            ),
        )
    })
}

async fn about(place: &Place, signing: &Signing, action: Action) -> Done {
    let (mut ledger, workspace) = place.go().await?;
    signing.say(&mut ledger, workspace, action).await.map(drop)
}

fn make(file: &Path, passphrase: Option<&Path>) -> Done {
    let passphrase = passphrase.map(Passphrase::from_file).transpose()?;
    let new = keys::generate();
    keys::store_new(file, &new, passphrase.as_ref())?;
    say(&format!("public key {}", hex(&key::public(&new).to_bytes())));
    Ok(())
}

fn key_id(text: &str) -> Result<bytes::Bytes, Fault> {
    let id = KeyId::from_hex(text).map(Into::into);
    id.ok_or_else(|| Fault::new(ExitReason::Usage, "a key id has 64 lower-case hex digits\nhint: ledger key list"))
}

/// The key that follows a receipt signer's, by the word of one that the workspace trusts now.
async fn successor(
    ledger: &mut Ledger,
    workspace: Option<WorkspaceId>,
    role: Role,
    path: &Path,
) -> Result<PublicKey, Fault> {
    if role != Role::Receipt {
        return Err(Fault::new(ExitReason::Usage, "--succession is of a receipt signer alone\nhint: --role receipt"));
    }
    let shown = path.display();
    let json = std::fs::read(path).map_err(|why| {
        Fault::failure(format!("failed to read {shown}: {why}\nhint: --succession names the file that the signer sent"))
    })?;
    let succession = Succession::parse(&json).map_err(|why| {
        Fault::failure(format!(
            "{shown} is no succession: {why}\nhint: the signer's SDK writes it when its key rotates"
        ))
    })?;
    let chain = replay(ledger, workspace).await?;
    let previous = PublicKey::new(&succession.previous);
    let trusted = previous.filter(|key| {
        chain.key(&key.id(Role::Receipt)).is_some_and(|state| !state.revoked && state.suspect_since.is_none())
    });
    let Some(trusted) = trusted else {
        return Err(Fault::failure(format!(
            "the key before in {shown} is not enrolled here, or is revoked or suspect, so its word on its successor does not \
             count\nhint: enrol the next key itself (--public-key), if its holder can show that it is theirs"
        )));
    };
    if !succession.is_signed_by(trusted) {
        return Err(Fault::failure(format!(
            "the key before did not sign {shown}\nhint: somebody changed it on its way; ask the signer for it again"
        )));
    }
    PublicKey::new(&succession.next)
        .ok_or_else(|| Fault::failure(format!("the next key in {shown} is no usable Ed25519 key")))
}

/// A key that signs batches belongs to a gateway; the ledger's own keeps the one that it has.
async fn gateway_of(ledger: &mut Ledger, role: Role, given: Option<&str>) -> Result<Option<GatewayId>, Fault> {
    if let Some(text) = given {
        let id = GatewayId::from_hex(text);
        return id.map(Some).ok_or_else(|| {
            Fault::new(ExitReason::Usage, "a gateway id has 32 lower-case hex digits\nhint: ledger key list")
        });
    }
    if role != Role::Record {
        return Ok(None);
    }
    let chain = replay(ledger, None).await?;
    let gateway = chain.keys().filter(|(_, state)| state.role == Role::Record).find_map(|(_, state)| state.gateway);
    Ok(gateway)
}

async fn list(place: &Place) -> Done {
    let (mut ledger, workspace) = place.go().await?;
    let chain = replay(&mut ledger, workspace).await?;
    let mut rows = vec![["key id", "role", "name", "gateway", "serial", "state"].map(str::to_owned).to_vec()];
    for (id, state) in chain.keys() {
        let mut says = match (state.revoked, state.retired) {
            (true, _) => "revoked".to_owned(),
            (false, true) => "retired".to_owned(),
            (false, false) => "in force".to_owned(),
        };
        if let Some(since) = state.suspect_since {
            says.push_str(&format!(", suspect since {since}"));
        }
        rows.push(vec![
            id.to_string(),
            words::role(state.role).to_owned(),
            state.name.clone(),
            state.gateway.map_or_else(|| "-".to_owned(), |id| id.to_string()),
            state.serial.to_string(),
            says,
        ]);
    }
    say(table(&rows).trim_end());
    Ok(())
}
