//! Makes a new ledger: every key, the first statements, certificates, configuration and audit policy.
//!
//! What must hold: nothing that exists is overwritten; the configuration is written last, so that a folder with one is
//! whole; the root key lies apart, because it goes offline; every new key's possession is proven, and the statements made
//! here were replayed by the contract's own rules before they were written.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use custody::{
    FORMAT_VERSION,
    id::{GatewayId, ObjectHash, WorkspaceId},
    key::{self, Context},
    policy::{self, Policy},
    statement::{Chain, ChainHead, RESERVED_NAME, Roots, Signed, encode_signed, possession},
    wire::{self, Role, statement::Action},
};
use ed25519_dalek::SigningKey;
use prost::Message as _;

use crate::{
    clock,
    config::{Config, ConfigError},
    durable,
    keys::{self, KeyError, Passphrase},
    pki::{Pki, PkiError},
    vault::{Vault, VaultError},
};

/// Name of the configuration file in a ledger's folder.
pub const CONFIG_FILE: &str = "ledger.toml";
/// Folder of the root key, until it is moved away.
pub const ROOT_FOLDER: &str = "root";
/// Permissions of folders with secrets.
const SECRET_FOLDER_MODE: u32 = 0o700;
/// Permissions of files that are no secret.
const FILE_MODE: u32 = 0o644;
/// The code in the first statements.
const REASON: &str = "genesis";

/// What to make.
#[derive(Debug)]
pub struct Plan {
    /// Folder of the ledger.
    pub dir: PathBuf,
    /// Name of the log.
    pub origin: String,
    /// Where the root key goes, instead of the folder `root` beside the rest.
    pub root_key_out: Option<PathBuf>,
    /// File with the passphrase that seals root key and successor; none: they are not sealed.
    pub root_passphrase_file: Option<PathBuf>,
    /// File with the passphrase that seals all other keys, as the configuration will name it; none: they are not sealed.
    pub passphrase_file: Option<PathBuf>,
    /// gRPC without TLS on a loopback address: for trying out.
    pub plaintext_loopback: bool,
}

/// What was made.
#[derive(Debug)]
pub struct Made {
    /// The configuration file.
    pub config: PathBuf,
    /// The audit policy.
    pub policy: PathBuf,
    /// Its fingerprint.
    pub fingerprint: String,
    /// The root key.
    pub root_key: PathBuf,
    /// The key that succeeds it.
    pub successor_key: PathBuf,
    /// Id of the ledger's own workspace.
    pub workspace: WorkspaceId,
}

/// Why no ledger was made.
#[derive(Debug)]
pub enum InitError {
    /// Something is there already.
    Exists(PathBuf),
    /// A file or folder cannot be written.
    File(PathBuf, io::Error),
    /// The origin, or a passphrase file's place, does not fit a configuration.
    Config(ConfigError),
    /// A key or passphrase file.
    Key(KeyError),
    /// The certificates.
    Pki(PkiError),
    /// The vault.
    Vault(VaultError),
    /// What was made breaks a rule of the contract: a bug.
    Contract(String),
}

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists(path) => write!(
                f,
                "make a ledger: {} is there already\nhint: nothing is overwritten; choose another --dir, or move what is there \
                 away",
                path.display()
            ),
            Self::File(path, _) => write!(f, "write {}", path.display()),
            Self::Config(why) => why.fmt(f),
            Self::Key(why) => why.fmt(f),
            Self::Pki(why) => why.fmt(f),
            Self::Vault(why) => why.fmt(f),
            Self::Contract(why) => write!(f, "make the first statements: {why}"),
        }
    }
}

impl std::error::Error for InitError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::File(_, why) => Some(why),
            Self::Config(why) => why.source(),
            Self::Key(why) => why.source(),
            Self::Pki(why) => why.source(),
            Self::Vault(why) => why.source(),
            Self::Exists(_) | Self::Contract(_) => None,
        }
    }
}

macro_rules! from {
    ($($kind:ident($error:ty)),*) => {$(
        impl From<$error> for InitError {
            fn from(why: $error) -> Self {
                Self::$kind(why)
            }
        }
    )*};
}
from!(Config(ConfigError), Key(KeyError), Pki(PkiError), Vault(VaultError));

/// Makes a ledger.
///
/// # Errors
/// [`InitError`]. What was written by then stays, and is found as existing by the next attempt.
pub fn init(plan: &Plan) -> Result<Made, InitError> {
    let text = config_text(plan)?;
    let mut config = Config::parse(&text)?;
    config.resolve(&plan.dir);
    let passphrase = || plan.passphrase_file.as_deref().map(Passphrase::from_file).transpose();
    let root_passphrase = plan.root_passphrase_file.as_deref().map(Passphrase::from_file).transpose()?;
    let (root_path, successor_path) = root_paths(plan);
    refuse_existing(plan, &config, &root_path, &successor_path)?;

    let (root, successor) = (keys::generate(), keys::generate());
    let own = [(Role::Record, "record"), (Role::Head, "head"), (Role::Log, "log")].map(|(role, name)| {
        let key = keys::generate();
        (role, name, key)
    });
    let workspace = WorkspaceId(keys::random());
    let policy = Policy::fresh(&plan.origin, key::public(&root), key::public(&successor));
    let statements = genesis(&plan.origin, &root, &own, workspace)?;
    replay(&plan.origin, &policy, &statements)?;

    make_folders(plan, &config, &root_path)?;
    keys::store_new(&root_path, &root, root_passphrase.as_ref())?;
    keys::store_new(&successor_path, &successor, root_passphrase.as_ref())?;
    let sealing = passphrase()?;
    for (_, name, key) in &own {
        keys::store_new(&config.paths.keys.join(format!("{name}.key")), key, sealing.as_ref())?;
    }
    Vault::create(&config.paths.vault, passphrase()?)?;
    Pki::create(&config, sealing.as_ref())?;
    for (name, object) in &statements {
        create(&config.paths.genesis.join(name), object)?;
    }
    let mut policy_bytes = serde_json::to_vec_pretty(&policy).map_err(|why| InitError::Contract(why.to_string()))?;
    policy_bytes.push(b'\n');
    create(&config.paths.policy, &policy_bytes)?;
    // From here on the folder is a ledger.
    let config_path = plan.dir.join(CONFIG_FILE);
    create(&config_path, text.as_bytes())?;
    Ok(Made {
        config: config_path,
        policy: config.paths.policy,
        fingerprint: policy::fingerprint(&policy_bytes),
        root_key: root_path,
        successor_key: successor_path,
        workspace,
    })
}

/// The template with what the plan says.
fn config_text(plan: &Plan) -> Result<String, InitError> {
    let mut text = Config::template_for(&plan.origin);
    let mut replace = |key: &str, value: String| {
        let lines = text.lines().map(|line| if line.starts_with(&format!("{key} = ")) { &value } else { line });
        text = lines.map(|line| format!("{line}\n")).collect();
    };
    if let Some(path) = &plan.passphrase_file {
        let path = std::path::absolute(path).map_err(|why| InitError::File(path.clone(), why))?;
        replace("passphrase_file", format!("passphrase_file = {}", toml::Value::String(path.display().to_string())));
    }
    if plan.plaintext_loopback {
        let grpc = Config::new(&plan.origin).listen.grpc;
        replace("plaintext_loopback", "plaintext_loopback = true".to_owned());
        replace("url", format!("url = \"http://{grpc}\""));
        let ask = Config::new(&plan.origin).listen.ask;
        replace("ask_url", format!("ask_url = \"http://{ask}\""));
    }
    Ok(text)
}

fn root_paths(plan: &Plan) -> (PathBuf, PathBuf) {
    let root = plan.root_key_out.clone().unwrap_or_else(|| plan.dir.join(ROOT_FOLDER).join("root.key"));
    let stem = root.file_stem().map_or_else(|| "root".into(), |stem| stem.to_string_lossy().into_owned());
    let successor = root.with_file_name(format!("{stem}-successor.key"));
    (root, successor)
}

fn refuse_existing(plan: &Plan, config: &Config, root: &Path, successor: &Path) -> Result<(), InitError> {
    let paths = &config.paths;
    let config_file = plan.dir.join(CONFIG_FILE);
    let all: [&Path; 11] = [
        &config_file,
        &paths.policy,
        &paths.keys,
        &paths.vault,
        &paths.tls,
        &paths.genesis,
        &paths.data,
        &config.archive.folder,
        &config.fence.folder,
        root,
        successor,
    ];
    match all.into_iter().find(|path| path.symlink_metadata().is_ok()) {
        Some(path) => Err(InitError::Exists(path.to_owned())),
        None => Ok(()),
    }
}

fn make_folders(plan: &Plan, config: &Config, root: &Path) -> Result<(), InitError> {
    let paths = &config.paths;
    let mut all: Vec<&Path> = vec![&plan.dir, &paths.keys, &paths.vault, &paths.tls, &paths.genesis, &paths.data];
    all.extend([config.archive.folder.as_path(), config.fence.folder.as_path()]);
    all.extend(root.parent().filter(|folder| !folder.as_os_str().is_empty()));
    for folder in all {
        durable::create_dir(folder, SECRET_FOLDER_MODE).map_err(|why| InitError::File(folder.to_owned(), why))?;
    }
    Ok(())
}

fn create(path: &Path, bytes: &[u8]) -> Result<(), InitError> {
    durable::create_new(path, bytes, FILE_MODE).map_err(|why| InitError::File(path.to_owned(), why))
}

/// The first statements under the names of their files, in the order in which the server takes them.
fn genesis(
    origin: &str,
    root: &SigningKey,
    own: &[(Role, &str, SigningKey)],
    workspace: WorkspaceId,
) -> Result<Vec<(String, Vec<u8>)>, InitError> {
    let mut files = Vec::new();
    let mut head = ChainHead::GENESIS;
    let mut add = |name: String, workspace: Option<WorkspaceId>, head: ChainHead, action: Action| {
        let statement = wire::Statement {
            version: FORMAT_VERSION,
            origin: origin.to_owned(),
            workspace: workspace.map(Into::into),
            serial: head.count,
            previous: head.hash.into(),
            checkpoint_size: 0,
            checkpoint_hash: ObjectHash::ZERO.into(),
            issued_at: clock::now_us(),
            era: 1,
            registrar: None,
            reason: REASON.to_owned(),
            ticket: String::new(),
            action: Some(action),
        }
        .encode_to_vec();
        let object = encode_signed(&statement, key::sign(root, Context::Statement, &statement));
        let signed = Signed::parse(&object).map_err(|why| InitError::Contract(format!("{name}: {why:?}")))?;
        files.push((name, object));
        Ok::<_, InitError>(ChainHead { count: head.count + 1, hash: signed.hash })
    };
    for (role, name, new) in own {
        let gateway = (*role == Role::Record).then(|| GatewayId(keys::random()));
        let proof = key::sign(new, Context::Possession, &possession(origin, None, *role, key::public(new), gateway));
        let enrol = wire::Enrol {
            role: *role as i32,
            public_key: key::public(new).to_bytes().to_vec().into(),
            gateway: gateway.map(Into::into),
            name: (*name).to_owned(),
            possession: Some(proof.to_vec().into()),
        };
        head = add(format!("ledger-{}.stmt", head.count), None, head, Action::Enrol(enrol))?;
    }
    let create = Action::Create(wire::Create { name: RESERVED_NAME.to_owned() });
    add("workspace-0.stmt".to_owned(), Some(workspace), ChainHead::GENESIS, create)?;
    Ok(files)
}

/// Replays what was made as any verifier will.
fn replay(origin: &str, policy: &Policy, statements: &[(String, Vec<u8>)]) -> Result<(), InitError> {
    let fault = |why: &dyn fmt::Display| InitError::Contract(why.to_string());
    let mut roots: Roots = policy.roots().map_err(|why| fault(&why))?;
    let mut ledger = Chain::new(origin, None);
    for (name, object) in statements {
        let signed = Signed::parse(object).map_err(|why| InitError::Contract(format!("{name}: {why:?}")))?;
        let applied = match signed.workspace() {
            None => ledger.apply(&signed, &mut roots),
            Some(workspace) => Chain::new(origin, Some(workspace)).apply(&signed, &mut roots),
        };
        applied.map_err(|why| InitError::Contract(format!("{name} {why}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use custody::{hash::root_successor, id::hex};

    use super::*;

    fn plan(dir: &Path) -> Plan {
        Plan {
            dir: dir.join("ledger"),
            origin: "example.org/custody".to_owned(),
            root_key_out: None,
            root_passphrase_file: None,
            passphrase_file: None,
            plaintext_loopback: false,
        }
    }

    fn modes(folder: &Path, found: &mut Vec<(PathBuf, u32)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let about = fs::metadata(&path).unwrap();
            found.push((path.clone(), about.permissions().mode() & 0o777));
            if about.is_dir() {
                modes(&path, found);
            }
        }
    }

    #[test]
    fn a_new_ledger_is_whole_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let made = init(&plan(folder.path())).unwrap();
        let config = Config::load(&made.config).unwrap();
        let policy_bytes = fs::read(&made.policy).unwrap();
        let policy = Policy::parse(&policy_bytes).unwrap();
        assert_eq!(made.fingerprint, policy::fingerprint(&policy_bytes));
        let mut names: Vec<_> = fs::read_dir(&config.paths.genesis).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["ledger-0.stmt", "ledger-1.stmt", "ledger-2.stmt", "workspace-0.stmt"]);

        let mut roots = policy.roots().unwrap();
        let mut chain = Chain::new("example.org/custody", None);
        for name in &names[..3] {
            let signed = Signed::parse(&fs::read(config.paths.genesis.join(name)).unwrap()).unwrap();
            chain.apply(&signed, &mut roots).unwrap();
        }
        for (role, name) in [(Role::Record, "record"), (Role::Head, "head"), (Role::Log, "log")] {
            let key = keys::load(&config.paths.keys.join(format!("{name}.key")), None).unwrap();
            let known = chain.key(&key::public(&key).id(role)).unwrap();
            assert_eq!((known.role, known.gateway.is_some()), (role, role == Role::Record));
        }
        let root = keys::load(&made.root_key, None).unwrap();
        assert_eq!(policy.roots[0].public_key, hex(&key::public(&root).to_bytes()));
        let next = keys::load(&made.successor_key, None).unwrap();
        assert_eq!(policy.roots[0].successor_hash, hex(&root_successor(&key::public(&next).to_bytes())));
        Vault::open(&config.paths.vault, None).unwrap();
        Pki::open(&config).unwrap();

        let mut found = Vec::new();
        modes(folder.path(), &mut found);
        for (path, mode) in found {
            let secret = path.extension().is_some_and(|end| end == "key" || end == "vault");
            let expected = if path.is_dir() {
                0o700
            } else if secret {
                0o600
            } else {
                0o644
            };
            assert_eq!(mode, expected, "{}", path.display());
        }
    }

    #[test]
    fn nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let plan = plan(folder.path());
        let made = init(&plan).unwrap();
        let before = fs::read(&made.root_key).unwrap();
        let why = init(&plan).unwrap_err().to_string();
        assert!(why.contains("ledger.toml") && why.contains("hint:"), "{why}");
        assert_eq!(fs::read(&made.root_key).unwrap(), before);
        // Whatever remains of a ledger is enough to be refused, and nothing new appears beside it.
        for name in ["policy.json", "keys", "vault", "tls", "genesis", "data", "archive", "fence", "root/root.key"] {
            let folder = tempfile::tempdir().unwrap();
            let plan = Plan { dir: folder.path().to_owned(), ..self::plan(folder.path()) };
            fs::create_dir_all(folder.path().join(name)).unwrap();
            assert!(matches!(init(&plan), Err(InitError::Exists(_))), "{name}");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "{name}");
        }
    }

    #[test]
    fn passphrases_seal_and_the_root_key_may_lie_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, roots) = (folder.path().join("ours"), folder.path().join("roots"));
        durable::create_new(&ours, b"the ledger's passphrase\n", 0o600).unwrap();
        durable::create_new(&roots, b"the root's passphrase\n", 0o600).unwrap();
        let plan = Plan {
            root_key_out: Some(folder.path().join("stick/custody.key")),
            root_passphrase_file: Some(roots.clone()),
            passphrase_file: Some(ours.clone()),
            plaintext_loopback: true,
            ..plan(folder.path())
        };
        let made = init(&plan).unwrap();
        assert_eq!(made.root_key, folder.path().join("stick/custody.key"));
        assert_eq!(made.successor_key, folder.path().join("stick/custody-successor.key"));
        let config = Config::load(&made.config).unwrap();
        assert!(config.listen.plaintext_loopback && config.admin.url.starts_with("http://127.0.0.1:"));
        assert_eq!(config.keys.passphrase_file, ours);
        assert!(keys::load(&made.root_key, Some(&Passphrase::from_file(&ours).unwrap())).is_err());
        keys::load(&made.root_key, Some(&Passphrase::from_file(&roots).unwrap())).unwrap();
        let ours = Passphrase::from_file(&ours).unwrap();
        keys::load(&config.paths.keys.join("log.key"), Some(&ours)).unwrap();
        assert!(keys::load(&config.paths.keys.join("log.key"), None).is_err());
        Pki::open(&config).unwrap();
        Vault::open(&config.paths.vault, Some(ours)).unwrap();
    }

    #[test]
    fn an_origin_that_is_none_is_refused_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        for origin in ["", "two words", "a+b", "ä"] {
            let plan = Plan { origin: origin.to_owned(), ..plan(folder.path()) };
            assert!(matches!(init(&plan), Err(InitError::Config(_))), "{origin}");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }
}
