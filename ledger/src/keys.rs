//! Key files and the only source of randomness.
//!
//! What must hold: a secret lies in a file of mode 0600 that was created and never overwritten; it is wiped from memory when
//! dropped; it is never in an error, a log or an argument of a process. With a passphrase a file is sealed with
//! XChaCha20-Poly1305 under a key that argon2id derives, else it is PKCS#8 PEM that other tools read as well.

use std::{
    env, fmt, fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use custody::id::{hex, unhex};
use ed25519_dalek::{
    SigningKey,
    pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, spki::der::pem::LineEnding},
};
use zeroize::Zeroizing;

use crate::durable;

/// Permissions of a file with a secret.
pub const SECRET_MODE: u32 = 0o600;
/// Greatest length of a key file in bytes: the longest that we write is under 2 KiB.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Least length of a passphrase in bytes: argon2id slows a guesser down, it does not mend four letters.
const PASSPHRASE_BYTES_MIN: usize = 12;
/// Memory of argon2id in KiB, rounds and lanes: OWASP's stronger choice, about a tenth of a second.
const ARGON2: (u32, u32, u32) = (65_536, 3, 1);
/// First two lines of a sealed file; they are authenticated with what is sealed, and other parameters are another version.
const SEALED_HEADER: &str = "custody sealed key 1\nargon2id m=65536 t=3 p=1 xchacha20poly1305\n";

/// Fresh bytes from the operating system.
///
/// # Panics
/// If the operating system has none: nothing here may go on with guessable ids, seeds or keys.
#[expect(clippy::expect_used, reason = "going on with guessable keys is worse than stopping")]
#[expect(clippy::disallowed_methods, reason = "this is the module of keys")]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// A new key.
pub fn generate() -> SigningKey {
    SigningKey::from_bytes(&Zeroizing::new(random()))
}

/// What opens sealed key files.
pub struct Passphrase(Zeroizing<Vec<u8>>);

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(not shown)")
    }
}

impl Passphrase {
    /// From a file of mode 0600; one line break at its end is not part of it.
    ///
    /// # Errors
    /// [`KeyError`] if it cannot be read, is open to others or too short.
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        let mut bytes = read_private(path, FILE_BYTES_MAX)?;
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        Self::new(bytes, path)
    }

    /// From an environment variable.
    ///
    /// # Errors
    /// [`KeyError`] if it is not set or too short.
    pub fn from_variable(name: &str) -> Result<Self, KeyError> {
        let place = PathBuf::from(format!("${name}"));
        let value = env::var(name).map_err(|_| KeyError { path: place.clone(), fault: Fault::NoPassphrase })?;
        Self::new(Zeroizing::new(value.into_bytes()), &place)
    }

    /// From where the configuration says; `None` if it says nowhere.
    ///
    /// # Errors
    /// As the two above.
    pub fn from_places(file: &Path, variable: &str) -> Result<Option<Self>, KeyError> {
        match (file.as_os_str().is_empty(), variable.is_empty()) {
            (false, _) => Self::from_file(file).map(Some),
            (true, false) => Self::from_variable(variable).map(Some),
            (true, true) => Ok(None),
        }
    }

    fn new(bytes: Zeroizing<Vec<u8>>, place: &Path) -> Result<Self, KeyError> {
        if bytes.len() < PASSPHRASE_BYTES_MIN {
            return Err(KeyError { path: place.to_owned(), fault: Fault::ShortPassphrase });
        }
        Ok(Self(bytes))
    }

    fn key(&self, salt: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
        let (memory_kib, rounds, lanes) = ARGON2;
        let params = Params::new(memory_kib, rounds, lanes, Some(32)).ok()?;
        let mut key = Zeroizing::new([0; 32]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params).hash_password_into(&self.0, salt, &mut *key).ok()?;
        Some(key)
    }
}

/// Why a key cannot be had; it names the file and never what is in it.
#[derive(Debug)]
pub struct KeyError {
    path: PathBuf,
    fault: Fault,
}

#[derive(Debug)]
enum Fault {
    File(io::Error),
    Write(io::Error),
    Open(u32),
    Form,
    Sealed,
    WrongPassphrase,
    NoPassphrase,
    ShortPassphrase,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.fault {
            Fault::Write(why) if why.kind() == io::ErrorKind::AlreadyExists => {
                write!(
                    f,
                    "write key file {path}: it is there already\nhint: a key is never overwritten; move it away first"
                )
            }
            Fault::File(why) if why.kind() == io::ErrorKind::NotFound => write!(
                f,
                "use key file {path}\nhint: is the path right, and is its volume mounted? if the file is lost, put it back from its \
                 backup"
            ),
            Fault::File(_) => write!(f, "use key file {path}"),
            Fault::Write(why) if why.kind() == io::ErrorKind::NotFound => {
                write!(f, "write key file {path}\nhint: make its folder first")
            }
            Fault::Write(_) => write!(f, "write key file {path}"),
            Fault::Open(mode) => write!(
                f,
                "use key file {path}: its permissions are {mode:04o}, so that others may read it\nhint: chmod 600 {path}; \
                 if others could log in here, replace the key"
            ),
            Fault::Form => {
                write!(f, "read {path}: it is no key file\nhint: it is PKCS#8 PEM, or sealed by this program")
            }
            Fault::Sealed => write!(
                f,
                "open key file {path}: it is sealed\nhint: name a passphrase file or variable, as keys.passphrase_file in the \
                 configuration or --passphrase-file"
            ),
            Fault::WrongPassphrase => {
                write!(
                    f,
                    "open key file {path}: the passphrase is another, or the file is damaged\nhint: give the passphrase that it was \
                     sealed with; if it is that one, put the file back from its backup"
                )
            }
            Fault::NoPassphrase => write!(
                f,
                "read a passphrase from {path}: it is not set\nhint: set it where this process is started, or name a file"
            ),
            Fault::ShortPassphrase => {
                write!(
                    f,
                    "take the passphrase from {path}: it has fewer than {PASSPHRASE_BYTES_MIN} bytes\nhint: choose a longer one"
                )
            }
        }
    }
}

impl std::error::Error for KeyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.fault {
            Fault::File(why) => Some(why),
            Fault::Write(why) if why.kind() != io::ErrorKind::AlreadyExists => Some(why),
            _ => None,
        }
    }
}

/// The key in a file.
///
/// # Errors
/// [`KeyError`] if the file is not there, open to others, no key, or sealed by another passphrase than this.
pub fn load(path: &Path, passphrase: Option<&Passphrase>) -> Result<SigningKey, KeyError> {
    let pem = load_secret(path, passphrase)?;
    let text = std::str::from_utf8(&pem).ok();
    let key = text.and_then(|text| SigningKey::from_pkcs8_pem(text).ok());
    key.ok_or_else(|| KeyError { path: path.to_owned(), fault: Fault::Form })
}

/// Keeps a new key in a file of its own, sealed if there is a passphrase.
///
/// # Errors
/// [`KeyError`] if there is something already, or it cannot be written.
pub fn store_new(path: &Path, key: &SigningKey, passphrase: Option<&Passphrase>) -> Result<(), KeyError> {
    let pem = key.to_pkcs8_pem(LineEnding::LF).map_err(|_| KeyError { path: path.to_owned(), fault: Fault::Form })?;
    store_secret_new(path, pem.as_bytes(), passphrase)
}

/// A secret's bytes, as they were stored.
///
/// # Errors
/// As [`load`].
pub fn load_secret(path: &Path, passphrase: Option<&Passphrase>) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    load_secret_up_to(path, passphrase, FILE_BYTES_MAX)
}

/// The same for a file that may have up to `bytes_max` bytes.
///
/// # Errors
/// As [`load`].
pub fn load_secret_up_to(
    path: &Path,
    passphrase: Option<&Passphrase>,
    bytes_max: u64,
) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let fault = |fault| KeyError { path: path.to_owned(), fault };
    let bytes = read_private(path, bytes_max)?;
    let Some(sealed) = bytes.strip_prefix(SEALED_HEADER.as_bytes()) else { return Ok(bytes) };
    let passphrase = passphrase.ok_or_else(|| fault(Fault::Sealed))?;
    unseal(sealed, passphrase).map_err(fault)
}

/// Keeps a secret in a new file, sealed if there is a passphrase.
///
/// # Errors
/// As [`store_new`].
pub fn store_secret_new(path: &Path, secret: &[u8], passphrase: Option<&Passphrase>) -> Result<(), KeyError> {
    store_secret(path, secret, passphrase, durable::create_new)
}

/// Replaces a secret that there is, as at a renewal.
///
/// # Errors
/// As [`store_new`].
pub fn replace_secret(path: &Path, secret: &[u8], passphrase: Option<&Passphrase>) -> Result<(), KeyError> {
    store_secret(path, secret, passphrase, durable::write)
}

/// Removes what a process that was killed left of its writes of a secret, which is the secret itself or what it was. Nobody else
/// may be writing it.
///
/// # Errors
/// As [`store_new`].
pub fn remove_unfinished(path: &Path) -> Result<(), KeyError> {
    durable::remove_temporaries(path).map_err(|why| KeyError { path: path.to_owned(), fault: Fault::Write(why) })
}

fn store_secret(
    path: &Path,
    secret: &[u8],
    passphrase: Option<&Passphrase>,
    write: fn(&Path, &[u8], u32) -> io::Result<()>,
) -> Result<(), KeyError> {
    let fault = |fault| KeyError { path: path.to_owned(), fault };
    let bytes = match passphrase {
        None => Zeroizing::new(secret.to_vec()),
        Some(passphrase) => seal(secret, passphrase).ok_or_else(|| fault(Fault::Form))?,
    };
    write(path, &bytes, SECRET_MODE).map_err(|why| fault(Fault::Write(why)))
}

fn read_private(path: &Path, bytes_max: u64) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let fault = |fault| KeyError { path: path.to_owned(), fault };
    let about = fs::metadata(path).map_err(|why| fault(Fault::File(why)))?;
    let mode = about.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(fault(Fault::Open(mode)));
    }
    if !about.is_file() || about.len() > bytes_max {
        return Err(fault(Fault::Form));
    }
    fs::read(path).map(Zeroizing::new).map_err(|why| fault(Fault::File(why)))
}

/// Three lines of hex after the header: salt, nonce, and what is sealed.
fn seal(secret: &[u8], passphrase: &Passphrase) -> Option<Zeroizing<Vec<u8>>> {
    let (salt, nonce) = (random::<16>(), random::<24>());
    let cipher = XChaCha20Poly1305::new_from_slice(&*passphrase.key(&salt)?).ok()?;
    let payload = Payload { msg: secret, aad: SEALED_HEADER.as_bytes() };
    let sealed = cipher.encrypt(&XNonce::from(nonce), payload).ok()?;
    Some(Zeroizing::new(format!("{SEALED_HEADER}{}\n{}\n{}\n", hex(&salt), hex(&nonce), hex(&sealed)).into_bytes()))
}

fn unseal(text: &[u8], passphrase: &Passphrase) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let text = std::str::from_utf8(text).map_err(|_| Fault::Form)?;
    let parts: Option<Vec<Vec<u8>>> = text.lines().map(unhex).collect();
    let Some([salt, nonce, sealed]) = parts.and_then(|parts| <[Vec<u8>; 3]>::try_from(parts).ok()) else {
        return Err(Fault::Form);
    };
    let nonce: [u8; 24] = nonce.try_into().map_err(|_| Fault::Form)?;
    let key = passphrase.key(&salt).ok_or(Fault::Form)?;
    let cipher = XChaCha20Poly1305::new_from_slice(&*key).map_err(|_| Fault::Form)?;
    let payload = Payload { msg: &sealed, aad: SEALED_HEADER.as_bytes() };
    cipher.decrypt(&XNonce::from(nonce), payload).map(Zeroizing::new).map_err(|_| Fault::WrongPassphrase)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(Zeroizing::new(text.as_bytes().to_vec()), Path::new("test")).unwrap()
    }

    #[test]
    fn a_plain_key_comes_back_and_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("head.key");
        let key = generate();
        store_new(&path, &key, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(fs::read_to_string(&path).unwrap().starts_with("-----BEGIN PRIVATE KEY-----"));
        assert_eq!(load(&path, None).unwrap().to_bytes(), key.to_bytes());
        let why = store_new(&path, &generate(), None).unwrap_err().to_string();
        assert!(why.contains("already") && why.contains("hint:"), "{why}");
        assert_eq!(load(&path, None).unwrap().to_bytes(), key.to_bytes());
    }

    #[test]
    fn a_sealed_key_needs_its_passphrase() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        let (key, right) = (generate(), passphrase("a long enough phrase"));
        store_new(&path, &key, Some(&right)).unwrap();
        assert!(!fs::read_to_string(&path).unwrap().contains("PRIVATE"));
        assert_eq!(load(&path, Some(&right)).unwrap().to_bytes(), key.to_bytes());
        assert!(load(&path, None).unwrap_err().to_string().contains("sealed"));
        let wrong = load(&path, Some(&passphrase("another long phrase"))).unwrap_err().to_string();
        assert!(wrong.contains("another, or the file is damaged"), "{wrong}");
        assert!(!wrong.contains("another long phrase"));
    }

    #[test]
    fn files_open_to_others_are_refused_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.key");
        store_new(&path, &generate(), None).unwrap();
        for mode in [0o644, 0o640, 0o604, 0o660] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let why = load(&path, None).unwrap_err().to_string();
            assert!(why.contains(&format!("{mode:04o}")) && why.contains("hint: chmod 600"), "{why}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused_without_showing_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.key");
        durable::create_new(&path, b"hunter2 hunter2", SECRET_MODE).unwrap();
        let why = load(&path, None).unwrap_err();
        assert!(!format!("{why} {why:?}").contains("hunter2"));
        assert!(load(&folder.path().join("none"), None).is_err());
    }

    #[test]
    fn passphrases_come_from_files_and_are_not_short() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passphrase");
        durable::create_new(&path, b"twelve bytes\n", SECRET_MODE).unwrap();
        let from_file = Passphrase::from_places(&path, "").unwrap().unwrap();
        assert_eq!(&*from_file.0, b"twelve bytes");
        assert!(!format!("{from_file:?}").contains("twelve"));
        durable::write(&path, b"short\n", SECRET_MODE).unwrap();
        assert!(Passphrase::from_file(&path).is_err());
        assert!(Passphrase::from_places(Path::new(""), "").unwrap().is_none());
        assert!(Passphrase::from_variable("CUSTODY_TEST_NO_SUCH_VARIABLE").is_err());
    }
}
