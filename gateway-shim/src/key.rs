//! The gateway's keys: the Ed25519 key that signs batches, the TLS key, and what the ledger is asked at enrolment.
//!
//! What must hold: private keys are made here, are written with mode 0600, and leave this process in no other way; nothing
//! prints them.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use custody::{
    id::{GatewayId, KeyId, WorkspaceId, hex},
    key::{self, Context},
    statement::possession,
    wire::Role,
};
use ed25519_dalek::{
    SigningKey,
    pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, spki::der::pem::LineEnding},
};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use crate::{durable, random};

/// Who this gateway is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The organisation's log.
    pub origin: String,
    /// The workspace whose stream the records enter.
    pub workspace: WorkspaceId,
    /// The gateway.
    pub gateway: GatewayId,
}

/// A key file that cannot be used.
#[derive(Debug)]
pub enum KeyError {
    /// It cannot be read or written.
    File(PathBuf, io::Error),
    /// Others may read it.
    Exposed(PathBuf),
    /// It holds no key of the kind.
    Malformed(PathBuf),
    /// A key or a certificate request cannot be made.
    Made,
}

/// Only who has its path can tell which file it was.
fn of_file(path: &Path) -> impl Fn(io::Error) -> KeyError {
    |error| KeyError::File(path.to_owned(), error)
}

impl std::fmt::Display for KeyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path, error) if error.kind() == io::ErrorKind::AlreadyExists => write!(
                f,
                "write the key file {}: there is a file of this name, and keys are never overwritten; hint: another name, \
                 or move it away",
                path.display()
            ),
            Self::File(path, error) if error.kind() == io::ErrorKind::NotFound => {
                write!(f, "open the key file {}: {error}; hint: gateway-shim key new", path.display())
            }
            Self::File(path, error) => write!(f, "use the key file {}: {error}", path.display()),
            Self::Exposed(path) => {
                write!(f, "use the key file {}: others may read it; hint: chmod 600", path.display())
            }
            Self::Malformed(path) => write!(
                f,
                "read the key file {}: it holds no PKCS #8 PEM key of this kind; hint: gateway-shim key new",
                path.display()
            ),
            Self::Made => f.write_str("make a key or a request with the TLS key; hint: gateway-shim key new"),
        }
    }
}

impl std::error::Error for KeyError {}

/// A new signing key.
pub fn generate() -> SigningKey {
    let mut secret = random::bytes::<32>();
    let key = SigningKey::from_bytes(&secret);
    secret.zeroize();
    key
}

/// Makes the signing key and the TLS key in files that must not be there yet.
///
/// # Errors
/// [`KeyError::File`], `AlreadyExists` rather than overwriting a key.
pub fn create(signing: &Path, tls: &Path) -> Result<(), KeyError> {
    // Both or none, but for who makes one of them at the same moment.
    if fs::symlink_metadata(tls).is_ok() {
        return Err(of_file(tls)(io::ErrorKind::AlreadyExists.into()));
    }
    let pem = generate().to_pkcs8_pem(LineEnding::LF).map_err(|_| KeyError::Made)?;
    durable::create_new(signing, pem.as_bytes(), true).map_err(of_file(signing))?;
    let pem = Zeroizing::new(rcgen::KeyPair::generate().map_err(|_| KeyError::Made)?.serialize_pem());
    durable::create_new(tls, pem.as_bytes(), true).map_err(of_file(tls))
}

/// The text of a secret file that only its owner may read.
///
/// # Errors
/// [`KeyError`].
pub fn read_secret(path: &Path) -> Result<Zeroizing<String>, KeyError> {
    if fs::metadata(path).map_err(of_file(path))?.permissions().mode() & 0o077 != 0 {
        return Err(KeyError::Exposed(path.to_owned()));
    }
    Ok(Zeroizing::new(fs::read_to_string(path).map_err(of_file(path))?))
}

/// Reads the signing key.
///
/// # Errors
/// [`KeyError`].
pub fn read_signing(path: &Path) -> Result<SigningKey, KeyError> {
    SigningKey::from_pkcs8_pem(&read_secret(path)?).map_err(|_| KeyError::Malformed(path.to_owned()))
}

/// Id of this key as a gateway's.
pub fn key_id(key: &SigningKey) -> KeyId {
    key::public(key).id(Role::Gateway)
}

/// What `ledger gateway enrol` takes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolmentRequest {
    /// 1.
    pub version: u32,
    /// Of the organisation.
    pub origin: String,
    /// Hex.
    pub workspace: String,
    /// Hex.
    pub gateway: String,
    /// For people; a token of at most 64 characters.
    pub name: String,
    /// Hex.
    pub public_key: String,
    /// Hex of the signature over `custody/v1/possession`.
    pub possession: String,
    /// PEM certificate request.
    pub tls_request: String,
}

/// What `ledger gateway enrol` answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolment {
    /// 1.
    pub version: u32,
    /// PEM, leaf first.
    pub certificate: String,
    /// PEM of the authority that signs the ledger's certificates.
    pub authority: String,
    /// Hex.
    pub root_public_key: String,
    /// Hex.
    pub root_successor_hash: String,
    /// Of that root key.
    pub era: u32,
}

/// The request of this gateway, proving that it holds `key`.
///
/// # Errors
/// [`KeyError::Made`] when the TLS key is none.
pub fn enrolment_request(who: &Name, name: &str, key: &SigningKey, tls: &str) -> Result<EnrolmentRequest, KeyError> {
    let public = key::public(key);
    let proof = possession(&who.origin, Some(who.workspace), Role::Gateway, public, Some(who.gateway));
    Ok(EnrolmentRequest {
        version: 1,
        origin: who.origin.clone(),
        workspace: who.workspace.to_string(),
        gateway: who.gateway.to_string(),
        name: name.to_owned(),
        public_key: hex(&public.to_bytes()),
        possession: hex(&key::sign(key, Context::Possession, &proof)),
        tls_request: certificate_request(who, tls)?,
    })
}

/// A PEM certificate request of the TLS key; its name is the gateway's id.
///
/// # Errors
/// [`KeyError::Made`] when the TLS key is none.
pub fn certificate_request(who: &Name, tls: &str) -> Result<String, KeyError> {
    let malformed = |_: rcgen::Error| KeyError::Made;
    let pair = rcgen::KeyPair::from_pem(tls).map_err(malformed)?;
    let mut params = rcgen::CertificateParams::new(Vec::new()).map_err(malformed)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, who.gateway.to_string());
    params.serialize_request(&pair).map_err(malformed)?.pem().map_err(malformed)
}

#[cfg(test)]
mod tests {
    use custody::{id::unhex, key::PublicKey};

    use super::*;

    #[test]
    fn keys_are_made_once_and_for_their_owner_alone() {
        let dir = crate::testing::TempDir::new();
        let (signing, tls) = (dir.path().join("a.key"), dir.path().join("tls.key"));
        create(&signing, &tls).unwrap();
        assert!(matches!(create(&signing, &tls), Err(KeyError::File(..))));
        read_signing(&signing).unwrap();
        fs::set_permissions(&signing, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(read_signing(&signing), Err(KeyError::Exposed(_))));
        fs::set_permissions(&tls, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(read_signing(&tls), Err(KeyError::Malformed(_))), "a TLS key signs no batches");
    }

    #[test]
    fn a_request_proves_possession() {
        let key = generate();
        let pair = rcgen::KeyPair::generate().unwrap();
        let who = Name { origin: "log.example".into(), workspace: WorkspaceId([1; 16]), gateway: GatewayId([2; 16]) };
        let request = enrolment_request(&who, "one", &key, &pair.serialize_pem()).unwrap();
        let public = PublicKey::new(&unhex(&request.public_key).unwrap()).unwrap();
        let proof = possession("log.example", Some(who.workspace), Role::Gateway, public, Some(who.gateway));
        assert!(public.verifies(Context::Possession, &proof, &unhex(&request.possession).unwrap()));
        assert!(request.tls_request.contains("CERTIFICATE REQUEST"));
    }
}
