//! The vault: members' keys, in a file of their own outside the store and the archive.
//!
//! What must hold: each change is on disk before it is answered; a key that was destroyed is in no file of this folder any
//! more, whatever a process that was killed left there ([`Vault::sweep`]). It is the second state that matters beside the archive, so it has a backup of its own, and restoring that is
//! followed by the erasures that the archive records. (File systems and disks may keep old blocks: the manual says to put
//! the vault on an encrypted volume.)

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
};

use custody::id::{MemberId, hex, unhex};
use zeroize::Zeroizing;

use crate::keys::{self, KeyError, Passphrase};

/// Name of the file in the vault's folder.
pub const FILE: &str = "members.vault";
/// Greatest number of members: 98 bytes each, so that a change rewrites at most 50 MiB.
pub const MEMBERS_MAX: usize = 500_000;
const FILE_BYTES_MAX: u64 = 128 * 1024 * 1024;
const HEADER: &str = "custody vault 1";

/// Why the vault cannot be used.
#[derive(Debug)]
pub enum VaultError {
    /// The file.
    Key(KeyError),
    /// What is in it is no vault of a version that this program knows.
    Form(PathBuf),
    /// One more member than it may hold.
    Full,
}

impl fmt::Display for VaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(why) => why.fmt(f),
            Self::Form(path) => {
                write!(f, "read the vault {}: it is damaged or newer\nhint: restore it from its backup", path.display())
            }
            Self::Full => write!(f, "add to the vault: it has {MEMBERS_MAX} members"),
        }
    }
}

impl std::error::Error for VaultError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Key(why) => std::error::Error::source(why),
            Self::Form(_) | Self::Full => None,
        }
    }
}

impl From<KeyError> for VaultError {
    fn from(why: KeyError) -> Self {
        Self::Key(why)
    }
}

/// Members' keys.
pub struct Vault {
    path: PathBuf,
    passphrase: Option<Passphrase>,
    keys: BTreeMap<MemberId, Zeroizing<[u8; 32]>>,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").field("members", &self.keys.len()).finish_non_exhaustive()
    }
}

impl Vault {
    /// Makes an empty vault in `folder`.
    ///
    /// # Errors
    /// [`VaultError`] if there is one already, or it cannot be written.
    pub fn create(folder: &Path, passphrase: Option<Passphrase>) -> Result<Self, VaultError> {
        let vault = Self { path: folder.join(FILE), passphrase, keys: BTreeMap::new() };
        keys::store_secret_new(&vault.path, &vault.encode(), vault.passphrase.as_ref())?;
        Ok(vault)
    }

    /// Opens the vault in `folder`.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn open(folder: &Path, passphrase: Option<Passphrase>) -> Result<Self, VaultError> {
        let path = folder.join(FILE);
        let bytes = keys::load_secret_up_to(&path, passphrase.as_ref(), FILE_BYTES_MAX)?;
        let keys = decode(&bytes).ok_or_else(|| VaultError::Form(path.clone()))?;
        Ok(Self { path, passphrase, keys })
    }

    /// Removes what a process that was killed left of its writes: each has keys, those too that are destroyed later. For the one
    /// process that writes this vault, before it goes on with it; a backup beside it only reads.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn sweep(&self) -> Result<(), VaultError> {
        Ok(keys::remove_unfinished(&self.path)?)
    }

    /// The key of a member; `None` if there is none or it was destroyed.
    pub fn key(&self, member: MemberId) -> Option<&[u8; 32]> {
        self.keys.get(&member).map(|key| &**key)
    }

    /// Members that have a key.
    pub fn members(&self) -> impl Iterator<Item = MemberId> {
        self.keys.keys().copied()
    }

    /// Makes keys for those of these members that have none, in one write. When this has returned, they are on disk.
    ///
    /// # Errors
    /// [`VaultError`]; then none was made.
    pub fn add(&mut self, members: &[MemberId]) -> Result<(), VaultError> {
        let before: Vec<MemberId> = members.iter().copied().filter(|member| !self.keys.contains_key(member)).collect();
        let new: BTreeSet<MemberId> = before.into_iter().collect();
        if self.keys.len() + new.len() > MEMBERS_MAX {
            return Err(VaultError::Full);
        }
        if new.is_empty() {
            return Ok(());
        }
        self.keys.extend(new.iter().map(|member| (*member, Zeroizing::new(keys::random()))));
        if let Err(why) = self.write() {
            self.keys.retain(|member, _| !new.contains(member));
            return Err(why);
        }
        Ok(())
    }

    /// Destroys the keys of these members in one write; how many there were. When this has returned, no file has them any more.
    ///
    /// # Errors
    /// [`VaultError`]; the keys are then still there.
    pub fn destroy(&mut self, members: &[MemberId]) -> Result<usize, VaultError> {
        // A write of this process that failed may have left one, too. Before the write: if it fails, nothing has changed.
        self.sweep()?;
        let gone: Vec<_> = members.iter().filter_map(|member| self.keys.remove_entry(member)).collect();
        if gone.is_empty() {
            return Ok(0);
        }
        if let Err(why) = self.write() {
            self.keys.extend(gone);
            return Err(why);
        }
        Ok(gone.len())
    }

    /// Keeps a copy in a new file, sealed under this passphrase if there is one, as the vault itself is.
    ///
    /// # Errors
    /// [`VaultError`], also when the file is there.
    pub fn back_up(&self, file: &Path, passphrase: Option<&Passphrase>) -> Result<(), VaultError> {
        Ok(keys::store_secret_new(file, &self.encode(), passphrase)?)
    }

    /// Makes the vault in `folder` from a copy, without the keys of these members: how many of them the copy had.
    ///
    /// # Errors
    /// [`VaultError`], also when there is a vault; then nothing was made.
    pub fn restore(
        folder: &Path,
        passphrase: Option<Passphrase>,
        copy: &Path,
        copy_passphrase: Option<&Passphrase>,
        erased: &BTreeSet<MemberId>,
    ) -> Result<(Self, usize), VaultError> {
        let bytes = keys::load_secret_up_to(copy, copy_passphrase, FILE_BYTES_MAX)?;
        let mut keys = decode(&bytes).ok_or_else(|| VaultError::Form(copy.to_owned()))?;
        let before = keys.len();
        keys.retain(|member, _| !erased.contains(member));
        let left_out = before - keys.len();
        let vault = Self { path: folder.join(FILE), passphrase, keys };
        // Nothing of the vault that was there before may have its erased members' keys.
        vault.sweep()?;
        keys::store_secret_new(&vault.path, &vault.encode(), vault.passphrase.as_ref())?;
        Ok((vault, left_out))
    }

    fn write(&self) -> Result<(), VaultError> {
        Ok(keys::replace_secret(&self.path, &self.encode(), self.passphrase.as_ref())?)
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut text = Zeroizing::new(Vec::with_capacity(HEADER.len() + 1 + self.keys.len() * 98));
        text.extend_from_slice(HEADER.as_bytes());
        text.push(b'\n');
        for (member, key) in &self.keys {
            text.extend_from_slice(hex(&member.0).as_bytes());
            text.push(b' ');
            text.extend_from_slice(Zeroizing::new(hex(&**key)).as_bytes());
            text.push(b'\n');
        }
        text
    }
}

fn decode(bytes: &[u8]) -> Option<BTreeMap<MemberId, Zeroizing<[u8; 32]>>> {
    let mut lines = std::str::from_utf8(bytes).ok()?.lines();
    if lines.next() != Some(HEADER) {
        return None;
    }
    let mut members = BTreeMap::new();
    for line in lines {
        let (member, key) = line.split_once(' ')?;
        let key = Zeroizing::new(unhex(key)?);
        let key = Zeroizing::new(<[u8; 32]>::try_from(key.as_slice()).ok()?);
        if members.insert(MemberId::from_hex(member)?, key).is_some() {
            return None;
        }
    }
    (members.len() <= MEMBERS_MAX).then_some(members)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn keys_last_and_destroyed_keys_are_gone() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (MemberId([1; 16]), MemberId([2; 16]));
        let mut vault = Vault::create(folder.path(), None).unwrap();
        vault.add(&[one, two, one]).unwrap();
        let (first, second) = (*vault.key(one).unwrap(), *vault.key(two).unwrap());
        assert_ne!(first, second);
        vault.add(&[one]).unwrap();
        assert_eq!(vault.key(one), Some(&first));

        let mut again = Vault::open(folder.path(), None).unwrap();
        assert_eq!(again.key(one), Some(&first));
        assert_eq!(again.destroy(&[one]).unwrap(), 1);
        assert_eq!(again.destroy(&[one]).unwrap(), 0);

        let last = Vault::open(folder.path(), None).unwrap();
        assert_eq!((last.key(one), last.key(two)), (None, Some(&second)));
        for entry in fs::read_dir(folder.path()).unwrap() {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            assert!(!text.contains(&hex(&first)));
        }
    }

    #[test]
    fn a_copy_comes_back_without_those_who_were_erased_since() {
        let folder = tempfile::tempdir().unwrap();
        let sub = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let (old, new, copy) = (sub("old"), sub("new"), folder.path().join("copy"));
        let (one, two) = (MemberId([1; 16]), MemberId([2; 16]));
        let mut vault = Vault::create(&old, None).unwrap();
        vault.add(&[one, two]).unwrap();
        let kept = *vault.key(two).unwrap();
        let phrase = folder.path().join("phrase");
        crate::durable::write(&phrase, b"a long enough phrase", 0o600).unwrap();
        let phrase = Passphrase::from_file(&phrase).unwrap();
        vault.back_up(&copy, Some(&phrase)).unwrap();
        assert!(vault.back_up(&copy, None).is_err(), "a copy is never overwritten");
        assert!(!fs::read_to_string(&copy).unwrap().contains(&hex(&kept)), "the copy is sealed");

        let erased = BTreeSet::from([one]);
        assert!(Vault::restore(&old, None, &copy, Some(&phrase), &erased).is_err(), "nor is a vault that is there");
        assert!(Vault::restore(&new, None, &copy, None, &erased).is_err(), "without its passphrase");
        let (_, left_out) = Vault::restore(&new, None, &copy, Some(&phrase), &erased).unwrap();
        assert_eq!(left_out, 1);
        let restored = Vault::open(&new, None).unwrap();
        assert_eq!((restored.key(one), restored.key(two)), (None, Some(&kept)));
    }

    /// As a kill at the rename leaves it: a file beside the vault with everybody's keys.
    #[test]
    fn no_file_that_a_killed_write_left_keeps_a_destroyed_key() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (MemberId([1; 16]), MemberId([2; 16]));
        let mut vault = Vault::create(folder.path(), None).unwrap();
        vault.add(&[one, two]).unwrap();
        let (first, copy) = (hex(vault.key(one).unwrap()), folder.path().join("backup"));
        vault.back_up(&copy, None).unwrap();
        let left =
            |number: u32| fs::copy(folder.path().join(FILE), folder.path().join(format!("{FILE}.tmp.7.{number}")));
        let anywhere = || {
            let files = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
            files.filter(|path| *path != copy).any(|path| fs::read_to_string(path).unwrap().contains(&first))
        };

        left(0).unwrap();
        Vault::open(folder.path(), None).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "whoever only reads removes nothing");
        vault.destroy(&[one]).unwrap();
        assert!(!anywhere(), "after an erasure");

        fs::copy(&copy, folder.path().join(format!("{FILE}.tmp.7.1"))).unwrap();
        fs::remove_file(folder.path().join(FILE)).unwrap();
        let (vault, _) = Vault::restore(folder.path(), None, &copy, None, &BTreeSet::from([one])).unwrap();
        assert!(!anywhere(), "after a restore");

        fs::copy(&copy, folder.path().join(format!("{FILE}.tmp.7.2"))).unwrap();
        vault.sweep().unwrap();
        assert!(!anywhere(), "after a start");
    }

    #[test]
    fn a_vault_is_never_overwritten_and_damage_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        Vault::create(folder.path(), None).unwrap();
        assert!(Vault::create(folder.path(), None).is_err());
        for bad in ["", "custody vault 2\n", "custody vault 1\nxx yy\n", "custody vault 1\n01 02\n"] {
            crate::durable::write(&folder.path().join(FILE), bad.as_bytes(), 0o600).unwrap();
            assert!(matches!(Vault::open(folder.path(), None), Err(VaultError::Form(_))), "{bad}");
        }
    }

    #[test]
    fn a_vault_that_cannot_be_written_keeps_what_it_had() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("vault");
        fs::create_dir(&inside).unwrap();
        let mut vault = Vault::create(&inside, None).unwrap();
        let one = MemberId([1; 16]);
        vault.add(&[one]).unwrap();
        let key = *vault.key(one).unwrap();
        fs::remove_dir_all(&inside).unwrap();
        assert!(vault.destroy(&[one]).is_err());
        assert_eq!(vault.key(one), Some(&key));
        assert!(vault.add(&[MemberId([2; 16])]).is_err());
        assert_eq!(vault.key(MemberId([2; 16])), None);
    }
}
