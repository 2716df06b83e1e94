//! The ledger's own certificate authority: who may connect, and as whom.
//!
//! A certificate says its holder in a URI, `custody://<origin>/workspace/<id>/gateway/<id>` or
//! `custody://<origin>/admin/<name>`. It guards the door and nothing else: what counts as evidence is signed with the keys
//! that statements enrol. What must hold: the authority signs only what carries one of these names or is the server's own;
//! a request is believed in nothing but its public key, after its signature has shown that the asker holds the key.
//! The server's and the administrator's certificates are renewed when two thirds of their life have passed, the server's also
//! when the configuration has a name that it lacks, keeping their key, so that one file changes at once and a crash never leaves a key beside another key's certificate.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
    time::Duration,
};

use custody::{
    hash::sha256,
    id::{GatewayId, WorkspaceId, hex},
};
use ed25519_dalek::pkcs8::spki::{
    AlgorithmIdentifierRef, SubjectPublicKeyInfoRef,
    der::{
        self, Decode as _, Reader as _, SliceReader,
        asn1::{AnyRef, BitStringRef, GeneralizedTime, ObjectIdentifier, UtcTime},
        pem,
    },
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm,
};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::{
    clock,
    config::{Config, Tls},
    durable,
    keys::{self, KeyError, Passphrase},
};

/// A certificate is good from so long before it was made, in seconds: clocks of gateways may be behind.
const BACKDATED_SECONDS: u64 = 3600;
/// Greatest length of a certificate request in bytes: those of the two kinds of key that are taken have under 1 KiB.
const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// Least and greatest time between two looks at whether a certificate is due.
const LOOK_MIN: Duration = Duration::from_secs(1);
const LOOK_MAX: Duration = Duration::from_secs(3_600);
const DAY_SECONDS: u64 = 86_400;
const SECOND_US: u64 = 1_000_000;
/// Permissions of a certificate: it is no secret.
const CERTIFICATE_MODE: u32 = 0o644;

const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// Whom a certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A gateway of one workspace.
    Gateway {
        /// Name of the log.
        origin: String,
        /// Its workspace.
        workspace: WorkspaceId,
        /// The gateway.
        gateway: GatewayId,
    },
    /// An administrator.
    Admin {
        /// Name of the log.
        origin: String,
        /// Of the administrator.
        name: String,
    },
}

impl Identity {
    /// The name in the certificate.
    pub fn uri(&self) -> String {
        match self {
            Self::Gateway { origin, workspace, gateway } => {
                format!("custody://{origin}/workspace/{workspace}/gateway/{gateway}")
            }
            Self::Admin { origin, name } => format!("custody://{origin}/admin/{name}"),
        }
    }

    /// From the name in a certificate.
    pub fn from_uri(uri: &str) -> Option<Self> {
        let rest = uri.strip_prefix("custody://")?;
        // Origins have slashes of their own, so the name is read from its end.
        let (before, last) = rest.rsplit_once('/')?;
        let identity = if let Some(origin) = before.strip_suffix("/admin") {
            Self::Admin { origin: origin.to_owned(), name: last.to_owned() }
        } else {
            let before = before.strip_suffix("/gateway")?;
            let (before, workspace) = before.rsplit_once('/')?;
            let origin = before.strip_suffix("/workspace")?.to_owned();
            let (workspace, gateway) = (WorkspaceId::from_hex(workspace)?, GatewayId::from_hex(last)?);
            Self::Gateway { origin, workspace, gateway }
        };
        (identity.uri() == uri).then_some(identity)
    }
}

/// Whom a peer's certificate names, in DER; the TLS layer has verified the certificate before. `None` if it names nobody
/// of ours, or more than one.
pub fn peer_identity(der: &[u8]) -> Option<Identity> {
    let der = der.into();
    let certificate = webpki::EndEntityCert::try_from(&der).ok()?;
    let mut names = certificate.valid_uri_names();
    let identity = Identity::from_uri(names.next()?);
    if names.next().is_some() { None } else { identity }
}

/// The next move when a file of the folder `tls` is of no use.
const BACKUP: &str = "hint: put the folder tls/ back from its backup, whole: its certificates and keys belong together";

/// Why the authority cannot do its work.
#[derive(Debug)]
pub enum PkiError {
    /// A key file.
    Key(KeyError),
    /// A certificate file.
    File(PathBuf, io::Error),
    /// What is in a file, or was asked for, is of no use.
    Form(String),
}

impl fmt::Display for PkiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(why) => why.fmt(f),
            Self::File(path, _) => write!(f, "use certificate file {}\n{BACKUP}", path.display()),
            Self::Form(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for PkiError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Key(why) => std::error::Error::source(why),
            Self::File(_, why) => Some(why),
            Self::Form(_) => None,
        }
    }
}

impl From<KeyError> for PkiError {
    fn from(why: KeyError) -> Self {
        Self::Key(why)
    }
}

fn form(why: impl fmt::Display) -> PkiError {
    PkiError::Form(format!("make a certificate: {why}"))
}

/// What the TLS side of the server needs, in PEM.
#[derive(Clone)]
pub struct ServerTls {
    /// Leaf first, then the authority.
    pub certificate: String,
    /// PKCS#8.
    pub key: Zeroizing<String>,
    /// Whoever connects has a certificate of this one.
    pub authority: String,
}

/// The authority and the certificates that it keeps.
pub struct Pki {
    origin: String,
    tls: Tls,
    folder: PathBuf,
    authority: String,
    authority_key: KeyPair,
    server_key: KeyPair,
    admin_key: KeyPair,
    /// Certificates in PEM that are in use: server, administrator.
    current: RwLock<[String; 2]>,
    /// Counts renewals of the server's certificate.
    renewals: watch::Sender<u64>,
}

impl fmt::Debug for Pki {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pki").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// Files with a certificate of the ledger's own, and whose they are.
const SERVER: usize = 0;
const ADMIN: usize = 1;
const OWN: [&str; 2] = ["server", "admin"];

impl Pki {
    /// Makes authority, server and administrator, each with a key of its own, in the folder that the configuration names.
    ///
    /// # Errors
    /// [`PkiError`]; nothing that exists is overwritten.
    pub fn create(config: &Config, passphrase: Option<&Passphrase>) -> Result<(), PkiError> {
        let folder = &config.paths.tls;
        let [authority_key, server_key, admin_key] =
            [generate_key(folder, "authority", passphrase)?, generate_key(folder, OWN[SERVER], passphrase)?, {
                generate_key(folder, OWN[ADMIN], passphrase)?
            }];
        let params = authority_params(&config.origin, config.tls.authority_days)?;
        let authority = params.self_signed(&authority_key).map_err(form)?.pem();
        write_new(&folder.join("authority.pem"), &authority)?;
        let (renewals, _) = watch::channel(0);
        let pki = Self {
            origin: config.origin.clone(),
            tls: config.tls.clone(),
            folder: folder.clone(),
            authority,
            authority_key,
            server_key,
            admin_key,
            current: RwLock::default(),
            renewals,
        };
        for which in [SERVER, ADMIN] {
            write_new(&folder.join(format!("{}.pem", OWN[which])), &pki.own_certificate(which)?)?;
        }
        Ok(())
    }

    /// Opens what [`Self::create`] made.
    ///
    /// # Errors
    /// [`PkiError`] for missing or damaged files.
    pub fn open(config: &Config) -> Result<Self, PkiError> {
        let folder = &config.paths.tls;
        let passphrase = Passphrase::from_places(&config.keys.passphrase_file, &config.keys.passphrase_variable)?;
        let key = |name: &str| load_key(&folder.join(format!("{name}.key")), passphrase.as_ref());
        let certificate = |name: &str| read(&folder.join(format!("{name}.pem")));
        let pki = Self {
            origin: config.origin.clone(),
            tls: config.tls.clone(),
            folder: folder.clone(),
            authority: certificate("authority")?,
            authority_key: key("authority")?,
            server_key: key(OWN[SERVER])?,
            admin_key: key(OWN[ADMIN])?,
            current: RwLock::new([certificate(OWN[SERVER])?, certificate(OWN[ADMIN])?]),
            renewals: watch::channel(0).0,
        };
        for (name, pem) in pki.all() {
            validity(&pem).ok_or_else(|| {
                let path = folder.join(format!("{name}.pem"));
                PkiError::Form(format!("read {}: it is no certificate\n{BACKUP}", path.display()))
            })?;
        }
        Ok(pki)
    }

    /// For the TLS side of the server.
    pub fn server_tls(&self) -> ServerTls {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        ServerTls {
            certificate: current[SERVER].clone(),
            key: Zeroizing::new(self.server_key.serialize_pem()),
            authority: self.authority.clone(),
        }
    }

    /// Changes whenever the server's certificate was renewed.
    pub fn renewals(&self) -> watch::Receiver<u64> {
        self.renewals.subscribe()
    }

    /// How long whoever renews may sleep: until the next certificate is due, and an hour at most, because a machine that was
    /// suspended does not notice how late it is.
    pub fn next_look(&self, now_us: u64) -> Duration {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let dues = current.iter().filter_map(|pem| validity(pem)).map(due_us);
        let due = dues.min().unwrap_or(u64::MAX).saturating_sub(now_us);
        // A renewal that failed is not tried again at once.
        Duration::from_micros(due).clamp(LOOK_MIN, LOOK_MAX)
    }

    /// Renews the server's and the administrator's certificates if two thirds of their life have passed, or if one lacks a name
    /// that the configuration has; those that were. To be called after [`Self::next_look`].
    ///
    /// # Errors
    /// [`PkiError`]; the certificates in use stay in use.
    pub fn renew_due(&self, now_us: u64) -> Result<Vec<&'static str>, PkiError> {
        let mut renewed = Vec::new();
        for which in [SERVER, ADMIN] {
            let held = self.current.read().unwrap_or_else(PoisonError::into_inner)[which].clone();
            let aged = validity(&held).is_none_or(|life| now_us >= due_us(life));
            let due = aged || (which == SERVER && lacks_name(&held, &self.tls.server_names));
            if !due {
                continue;
            }
            let fresh = self.own_certificate(which)?;
            let path = self.folder.join(format!("{}.pem", OWN[which]));
            durable::write(&path, fresh.as_bytes(), CERTIFICATE_MODE).map_err(|why| PkiError::File(path, why))?;
            self.current.write().unwrap_or_else(PoisonError::into_inner)[which] = fresh;
            if which == SERVER {
                self.renewals.send_modify(|count| *count = count.wrapping_add(1));
            }
            tracing::info!(certificate = OWN[which], "renewed");
            renewed.push(OWN[which]);
        }
        Ok(renewed)
    }

    /// Certificates that end within the days that the configuration names, each as `name until time`.
    pub fn expiring(&self, now_us: u64) -> Vec<String> {
        let soon = now_us.saturating_add(u64::from(self.tls.alarm_days) * DAY_SECONDS * SECOND_US);
        let ends = self.certificates().into_iter().filter(|(_, until)| *until <= soon);
        ends.map(|(name, until)| format!("{name} until {}", clock::display(until))).collect()
    }

    /// Name and end in microseconds of the authority's and the ledger's own certificates.
    pub fn certificates(&self) -> Vec<(String, u64)> {
        let ends = |(name, pem): (&str, String)| Some((name.to_owned(), validity(&pem)?.1));
        self.all().into_iter().filter_map(ends).collect()
    }

    /// The authority's certificate in PEM.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// A certificate for `identity` from a PEM request: leaf first, then the authority.
    ///
    /// # Errors
    /// What is wrong with the request, in words for whoever asked.
    pub fn issue(&self, request: &str, identity: &Identity) -> Result<String, String> {
        let key = parse_request(request)?;
        let days = match identity {
            Identity::Gateway { .. } => self.tls.gateway_days,
            Identity::Admin { .. } => self.tls.admin_days,
        };
        let certificate = self.sign(client_params(identity, days), &key);
        certificate.map_err(|why| why.to_string())
    }

    fn all(&self) -> [(&'static str, String); 3] {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        [
            ("authority", self.authority.clone()),
            (OWN[SERVER], current[SERVER].clone()),
            (OWN[ADMIN], current[ADMIN].clone()),
        ]
    }

    fn own_certificate(&self, which: usize) -> Result<String, PkiError> {
        if which == SERVER {
            return self.sign(server_params(&self.tls), &self.server_key);
        }
        let identity = Identity::Admin { origin: self.origin.clone(), name: "local".to_owned() };
        self.sign(client_params(&identity, self.tls.admin_days), &self.admin_key)
    }

    fn sign(&self, params: Result<CertificateParams, PkiError>, key: &impl PublicKeyData) -> Result<String, PkiError> {
        // What an issuer lends to a certificate is its name and key, both of which are made the same way each time.
        let own = authority_params(&self.origin, self.tls.authority_days)?;
        let issuer = Issuer::from_params(&own, &self.authority_key);
        let leaf = params?.signed_by(key, &issuer).map_err(form)?.pem();
        Ok(format!("{leaf}{}", self.authority))
    }
}

/// When two thirds of a life have passed.
fn due_us((from, until): (u64, u64)) -> u64 {
    until - until.saturating_sub(from) / 3
}

/// Whether a certificate in PEM is not good for one of these names.
fn lacks_name(certificate: &str, names: &[String]) -> bool {
    let Some(Ok(der)) = CertificateDer::pem_slice_iter(certificate.as_bytes()).next() else { return true };
    let Ok(certificate) = webpki::EndEntityCert::try_from(&der) else { return true };
    names
        .iter()
        .filter_map(|name| ServerName::try_from(name.as_str()).ok())
        .any(|name| certificate.verify_is_valid_for_subject_name(&name).is_err())
}

fn generate_key(folder: &Path, name: &str, passphrase: Option<&Passphrase>) -> Result<KeyPair, PkiError> {
    let key = KeyPair::generate().map_err(form)?;
    let pem = Zeroizing::new(key.serialize_pem());
    keys::store_secret_new(&folder.join(format!("{name}.key")), pem.as_bytes(), passphrase)?;
    Ok(key)
}

fn load_key(path: &Path, passphrase: Option<&Passphrase>) -> Result<KeyPair, PkiError> {
    let pem = keys::load_secret(path, passphrase)?;
    let key = std::str::from_utf8(&pem).ok().and_then(|pem| KeyPair::from_pem(pem).ok());
    key.ok_or_else(|| PkiError::Form(format!("read {}: it is no key file\n{BACKUP}", path.display())))
}

fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|why| PkiError::File(path.to_owned(), why))
}

fn write_new(path: &Path, pem: &str) -> Result<(), PkiError> {
    durable::create_new(path, pem.as_bytes(), CERTIFICATE_MODE).map_err(|why| PkiError::File(path.to_owned(), why))
}

/// What every certificate has: a life that begins a little before now, and a random serial number.
fn params(days: u32, backdated_seconds: u64) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(Vec::new()).map_err(form)?;
    let begin = (clock::now_us() / SECOND_US).saturating_sub(backdated_seconds);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(begin);
    params.not_after = params.not_before + Duration::from_secs(u64::from(days) * DAY_SECONDS + backdated_seconds);
    let mut serial = keys::random::<16>();
    // A serial number is positive.
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from(serial.to_vec()));
    params.distinguished_name = DistinguishedName::new();
    Ok(params)
}

fn authority_params(origin: &str, days: u32) -> Result<CertificateParams, PkiError> {
    let mut params = params(days, BACKDATED_SECONDS)?;
    // Names are bounded at 64 characters and origins are not.
    let digest = hex(&sha256(&[origin.as_bytes()]));
    params.distinguished_name.push(DnType::CommonName, format!("Custody authority {}", &digest[..16]));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn server_params(tls: &Tls) -> Result<CertificateParams, PkiError> {
    let mut params = params(tls.server_days, BACKDATED_SECONDS)?;
    params.subject_alt_names = CertificateParams::new(tls.server_names.clone()).map_err(form)?.subject_alt_names;
    params.distinguished_name.push(DnType::CommonName, "Custody ledger");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn client_params(identity: &Identity, days: u32) -> Result<CertificateParams, PkiError> {
    let mut params = params(days, BACKDATED_SECONDS)?;
    let uri =
        identity.uri().try_into().map_err(|_| form("an origin that is not ASCII has no place in a certificate"))?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    let name = match identity {
        Identity::Gateway { gateway, .. } => format!("gateway {gateway}"),
        Identity::Admin { name, .. } => format!("administrator {name}"),
    };
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// The public key of a request whose signature was checked.
struct RequestKey {
    bytes: Vec<u8>,
    algorithm: &'static SignatureAlgorithm,
}

impl PublicKeyData for RequestKey {
    fn der_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

/// The key of a PKCS#10 request (RFC 2986). Nothing else in it is looked at: the authority decides what a certificate says.
fn parse_request(request: &str) -> Result<RequestKey, String> {
    let no_request = || "the certificate request is not PKCS#10 in PEM".to_owned();
    if request.len() > REQUEST_BYTES_MAX {
        return Err(format!("the certificate request has more than {REQUEST_BYTES_MAX} bytes"));
    }
    let (label, der) = pem::decode_vec(request.trim().as_bytes()).map_err(|_| no_request())?;
    if label != "CERTIFICATE REQUEST" && label != "NEW CERTIFICATE REQUEST" {
        return Err(no_request());
    }
    let (signed, algorithm, signature) = request_parts(&der).map_err(|_| no_request())?;
    let key = request_key(signed).map_err(|_| no_request())?;
    let curve = key.algorithm.parameters.and_then(|any: AnyRef<'_>| ObjectIdentifier::try_from(any).ok());
    let (verifier, kind): (&dyn ring::signature::VerificationAlgorithm, _) =
        match (key.algorithm.oid, curve, algorithm.oid) {
            (EC_PUBLIC_KEY, Some(P256), ECDSA_SHA256) => {
                (&ring::signature::ECDSA_P256_SHA256_ASN1, &rcgen::PKCS_ECDSA_P256_SHA256)
            }
            (ED25519, None, ED25519) => (&ring::signature::ED25519, &rcgen::PKCS_ED25519),
            _ => return Err("the certificate request has a key that is neither P-256 nor Ed25519".to_owned()),
        };
    let bytes = key.subject_public_key.raw_bytes();
    let signature = signature.as_bytes().ok_or_else(no_request)?;
    ring::signature::UnparsedPublicKey::new(verifier, bytes)
        .verify(signed, signature)
        .map_err(|_| "the certificate request is not signed by its own key".to_owned())?;
    Ok(RequestKey { bytes: bytes.to_vec(), algorithm: kind })
}

type DerResult<T> = Result<T, der::Error>;

/// `CertificationRequest`: what is signed, how, and the signature; nothing after it.
fn request_parts(der: &[u8]) -> DerResult<(&[u8], AlgorithmIdentifierRef<'_>, BitStringRef<'_>)> {
    let mut reader = SliceReader::new(der)?;
    let parts = reader.sequence(|inner| -> DerResult<_> {
        Ok((inner.tlv_bytes()?, AlgorithmIdentifierRef::decode(inner)?, BitStringRef::decode(inner)?))
    })?;
    reader.finish()?;
    Ok(parts)
}

/// `CertificationRequestInfo`: version, subject, key, attributes.
fn request_key(signed: &[u8]) -> DerResult<SubjectPublicKeyInfoRef<'_>> {
    SliceReader::new(signed)?.sequence(|inner| -> DerResult<_> {
        u8::decode(inner)?;
        inner.tlv_bytes()?;
        let key = SubjectPublicKeyInfoRef::decode(inner)?;
        skip_rest(inner)?;
        Ok(key)
    })
}

/// Begin and end in microseconds of the first certificate in `pem`.
pub fn validity(pem: &str) -> Option<(u64, u64)> {
    let end = "-----END CERTIFICATE-----";
    let first = pem.get(..pem.find(end)?.checked_add(end.len())?)?;
    let (_, der) = pem::decode_vec(first.as_bytes()).ok()?;
    life(&der).ok()
}

fn life(der: &[u8]) -> DerResult<(u64, u64)> {
    SliceReader::new(der)?.sequence(|certificate| -> DerResult<_> {
        let life = certificate.sequence(|tbs| -> DerResult<_> {
            // Version, serial number, algorithm and issuer come before.
            for _ in 0..4 {
                tbs.tlv_bytes()?;
            }
            let life = tbs.sequence(|life| -> DerResult<_> { Ok((time(life)?, time(life)?)) })?;
            skip_rest(tbs)?;
            Ok(life)
        })?;
        skip_rest(certificate)?;
        Ok(life)
    })
}

fn skip_rest<'r>(reader: &mut impl der::Reader<'r>) -> DerResult<()> {
    while !reader.is_finished() {
        reader.tlv_bytes()?;
    }
    Ok(())
}

/// A `Time` in microseconds: two digits of the year until 2049, four from then on (RFC 5280, 4.1.2.5).
fn time<'r>(life: &mut impl der::Reader<'r>) -> DerResult<u64> {
    let any = AnyRef::decode(life)?;
    let since = match any.decode_as::<UtcTime>() {
        Ok(time) => time.to_unix_duration(),
        Err(_) => any.decode_as::<GeneralizedTime>()?.to_unix_duration(),
    };
    Ok(since.as_secs().saturating_mul(SECOND_US))
}

#[cfg(test)]
mod tests;
