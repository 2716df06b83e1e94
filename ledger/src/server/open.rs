//! The start of a ledger up to where the log begins: every file is opened, and held against the others.
//!
//! What must hold: nothing is signed or claimed here; what belongs to another ledger, or to another time of this one, ends
//! the start and is named, with the next move.

use std::{
    fs,
    path::Path,
    sync::{Arc, RwLock},
    time::Duration,
};

use bytes::Bytes;
use custody::{
    hash::sha256,
    log::encode_entry,
    policy::Policy,
    statement::{Roots, Signed},
    wire::log_entry,
};
use ed25519_dalek::SigningKey;
use tokio::sync::watch;

use super::Ended;
use crate::{
    alarm::{Alarm, Alarms},
    archive::Archive,
    commit,
    config::Config,
    durable,
    exit::ExitReason,
    fence::Fence,
    keys,
    log_view::FenceState,
    metrics::Metrics,
    own_keys::OwnKeys,
    pki::Pki,
    publish::Publisher,
    store::{Family, Store, StoreError, statement_key},
    vault::Vault,
};

/// Where the alarms that stand outlive a restart.
const ALARMS_FILE: &str = "alarms.json";

/// What is open before anything is served.
pub(super) struct Opened {
    pub(super) store: Arc<Store>,
    pub(super) alarms: Alarms,
    pub(super) metrics: Metrics,
    pub(super) publisher: Publisher,
    pub(super) keys: [SigningKey; 2],
    pub(super) own_keys: OwnKeys,
    pub(super) policy: Policy,
    pub(super) roots: Roots,
    pub(super) pki: Arc<Pki>,
    pub(super) genesis: Vec<Bytes>,
    pub(super) vault: Vault,
}

/// The policy is of no use here.
fn no_policy(config: &Config, why: &dyn std::fmt::Display) -> Ended {
    let text = format!(
        "failed to read the audit policy {}: {why}\nhint: put back the one that `ledger init` wrote, or its backup",
        config.paths.policy.display()
    );
    Ended::new(ExitReason::Configuration, text)
}

/// The audit policy.
fn audit_policy(config: &Config) -> Result<Policy, Ended> {
    let policy = fs::read(&config.paths.policy).map_err(|why| no_policy(config, &why))?;
    let policy = Policy::parse(&policy).map_err(|why| no_policy(config, &why))?;
    if policy.origin != config.origin {
        let other = format!("it is of the log {}, and the configuration says {}", policy.origin, config.origin);
        return Err(no_policy(config, &other));
    }
    Ok(policy)
}

/// Opens policy, keys, vault, store, archive, fence and certificates, in this order, and looks whether they belong together.
///
/// # Errors
/// [`Ended`], with the next move.
pub(super) async fn open(config: &Config) -> Result<Opened, Ended> {
    let policy = audit_policy(config)?;
    let roots = policy.roots().map_err(|why| no_policy(config, &why))?;
    let ([record, head, log], vault) = open_secrets(config)?;
    let staging = config.paths.data.join("staging");
    durable::create_dir(&staging, 0o700).map_err(|why| Ended::failed("make the data folder", &why))?;
    let alarms = Alarms::kept(&config.paths.data.join(ALARMS_FILE));
    let memory = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let (cache_bytes, write_buffer_bytes) = (memory(config.store.cache_bytes), memory(config.store.write_buffer_bytes));
    let store =
        Store::open(&config.paths.data.join("store"), cache_bytes, write_buffer_bytes).map_err(|why| match why {
            StoreError::Newer(_) => {
                alarms.raise(Alarm::StoreFormat, why.to_string());
                Ended::unusable(&why)
            }
            why => Ended::store("open the store", &why),
        })?;
    let store = Arc::new(store);
    // Whoever has the store is the one who writes the vault.
    vault.sweep().map_err(|why| Ended::unusable(&why))?;
    let limit = Duration::from_secs(config.archive.request_seconds_max);
    let broken = |why: StoreError| Ended::store("read the store", &why);
    let used = |name: &str| store.number(name).map_err(broken);
    let archive = Archive::folder(&config.archive.folder, limit, used("published_size")?.is_some())
        .map_err(|why| Ended::failed("open the archive", &why))?;
    let writer = writer_digest(&config.paths.data);
    let used_before = used("term")?.is_some();
    let fence = Fence::folder(&config.fence.folder, &config.origin, writer, used_before).await;
    let fence = fence.map_err(|why| Ended::failed("open the fence", &why))?;
    let genesis = take_genesis(&store, &config.paths.genesis)?;
    let view = Publisher::load_view(&store, &config.origin, &log).map_err(broken)?;
    let mark = store.number("queue_mark").map_err(broken)?.unwrap_or(0);
    let chain = commit::ledger_chain(&store, &config.origin, roots.clone()).map_err(broken)?;
    let foreign =
        || no_policy(config, &"its roots did not sign the statements of this ledger, so it is another ledger's");
    let chain = chain.ok_or_else(foreign)?;
    let own_keys = OwnKeys::of(&record, &head, &log);
    own_keys.check(&chain).map_err(|why| wrong_keys(config, used_before, why))?;
    let publisher = Publisher {
        store: Arc::clone(&store),
        archive,
        fence,
        staging,
        origin: config.origin.clone(),
        key: log,
        term: 0,
        incarnation: chain.incarnation(),
        chain,
        view: Arc::new(RwLock::new(view)),
        fence_state: Arc::new(FenceState::default()),
        alarms: alarms.clone(),
        mark: watch::Sender::new(mark),
        pending_mark: mark,
        untold: Vec::new(),
    };
    let pki = Pki::open(config).map_err(|why| Ended::unusable(&why))?;
    Ok(Opened {
        store,
        alarms,
        metrics: Metrics::new(),
        publisher,
        keys: [record, head],
        own_keys,
        policy,
        roots,
        pki: Arc::new(pki),
        genesis,
        vault,
    })
}

/// The key chain does not know a key of `keys/`. In a data folder that nothing ever ran in it is what `init` wrote: if the keys
/// were changed since, it is the folder that is missing.
fn wrong_keys(config: &Config, used_before: bool, why: String) -> Ended {
    let text = match used_before {
        true => why,
        false => format!(
            "failed to start: {}, and nothing ever ran in the data folder {}: it is not the one that this key was used with, or the \
             key is a wrong one\nhint: put back the data folder that belongs to keys/ (is its volume mounted?); if it is lost see \
             head-not-extendable in docs/OPERATIONS.md; if this ledger never ran put back the keys that `ledger init` made",
            why.lines().next().unwrap_or_default(),
            config.paths.data.display(),
        ),
    };
    Ended::new(ExitReason::Configuration, text)
}

/// The keys for records, heads and the log, and the vault: a passphrase that does not fit or a damaged file must show at a start,
/// while there is a backup, and not when a name is to be erased.
fn open_secrets(config: &Config) -> Result<([SigningKey; 3], Vault), Ended> {
    let passphrase = || {
        keys::Passphrase::from_places(&config.keys.passphrase_file, &config.keys.passphrase_variable)
            .map_err(|why| Ended::unusable(&why))
    };
    let sealing = passphrase()?;
    let load = |name: &str| {
        let path = config.paths.keys.join(name);
        keys::load(&path, sealing.as_ref()).map_err(|why| Ended::unusable(&why))
    };
    let own = [load("record.key")?, load("head.key")?, load("log.key")?];
    let vault = Vault::open(&config.paths.vault, passphrase()?).map_err(|why| Ended::unusable(&why))?;
    Ok((own, vault))
}

/// Tells this machine and data directory from others, without naming them. Copies of a machine share its id, and containers of
/// one its start: so both count, and the name.
fn writer_digest(data: &Path) -> [u8; 32] {
    use std::os::unix::fs::MetadataExt as _;
    let of_machine = ["/etc/machine-id", "/proc/sys/kernel/random/boot_id", "/proc/sys/kernel/hostname"];
    let machine = of_machine.map(|file| sha256(&[&fs::read(file).unwrap_or_default()])).concat();
    let path = fs::canonicalize(data).unwrap_or_else(|_| data.to_owned());
    let inode = fs::metadata(&path).map_or((0, 0), |meta| (meta.dev(), meta.ino()));
    let text = format!("{}\n{}\n{}", path.display(), inode.0, inode.1);
    sha256(&[b"custody/v1/writer\n", &machine, b"\n", text.as_bytes()])
}

/// At the first start: the statements that `init` made go into the store, and become the log's first entries.
fn take_genesis(store: &Store, folder: &Path) -> Result<Vec<Bytes>, Ended> {
    let broken = |why: StoreError| Ended::store("keep the first statements", &why);
    if store.last(Family::Log, &[]).map_err(broken)?.is_some() {
        return Ok(Vec::new());
    }
    let unusable = |path: &Path, why: &dyn std::fmt::Display| {
        let text = format!(
            "failed to read the first statements in {}: {why}\nhint: put the folder back as `ledger init` made it",
            path.display()
        );
        Ended::new(ExitReason::Configuration, text)
    };
    let listing = fs::read_dir(folder).map_err(|why| unusable(folder, &why))?;
    let mut files: Vec<_> = listing.filter_map(Result::ok).map(|file| file.path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "stmt"));
    files.sort();
    let mut change = store.change();
    let mut entries = Vec::new();
    for path in files {
        let object = Bytes::from(fs::read(&path).map_err(|why| unusable(&path, &why))?);
        let signed = Signed::parse(&object).map_err(|_| unusable(&path, &"it is no signed statement"))?;
        let key = statement_key(signed.workspace(), signed.statement.serial);
        change.put(Family::Statements, key, [&0_u64.to_be_bytes()[..], &object].concat());
        entries.push(Bytes::from(encode_entry(log_entry::Entry::Statement(object))));
    }
    store.commit(change).map_err(broken)?;
    Ok(entries)
}
