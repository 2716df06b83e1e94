//! The authority: what its certificates say, which requests it signs, and when it renews its own.

use rcgen::{KeyPair, PKCS_ED25519};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert, ring};

use super::*;

const DAY_US: u64 = DAY_SECONDS * SECOND_US;

fn authority() -> (tempfile::TempDir, Pki) {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::new("example.org/some/log");
    config.resolve(folder.path());
    durable::create_dir(&config.paths.tls, 0o700).unwrap();
    Pki::create(&config, None).unwrap();
    let pki = Pki::open(&config).unwrap();
    (folder, pki)
}

fn gateway() -> Identity {
    Identity::Gateway {
        origin: "example.org/some/log".to_owned(),
        workspace: WorkspaceId([7; 16]),
        gateway: GatewayId([9; 16]),
    }
}

fn first_der(pem: &str) -> Vec<u8> {
    let end = pem.find("-----END CERTIFICATE-----").unwrap() + "-----END CERTIFICATE-----".len();
    pem::decode_vec(&pem.as_bytes()[..end]).unwrap().1
}

/// What rustls does with a peer's certificate.
fn accepted(pki: &Pki, leaf: &str, usage: KeyUsage, at_us: u64) -> bool {
    let (authority, leaf) = (first_der(pki.authority()), first_der(leaf));
    let (authority, leaf) = (authority.into(), leaf.into());
    let anchors = [anchor_from_trusted_cert(&authority).unwrap()];
    let leaf = EndEntityCert::try_from(&leaf).unwrap();
    let algorithms = [ring::ECDSA_P256_SHA256, ring::ED25519];
    let at = rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_micros(at_us));
    leaf.verify_for_usage(&algorithms, &anchors, &[], at, usage, None, None).is_ok()
}

fn request(key: &KeyPair) -> String {
    CertificateParams::new(vec!["mallory.example".to_owned()]).unwrap().serialize_request(key).unwrap().pem().unwrap()
}

#[test]
fn identities_are_read_back_and_nothing_else_is() {
    let admin = Identity::Admin { origin: "a/admin/b".to_owned(), name: "eve".to_owned() };
    for identity in [gateway(), admin] {
        assert_eq!(Identity::from_uri(&identity.uri()), Some(identity));
    }
    let id = "07".repeat(16);
    for bad in [
        "custody://".to_owned(),
        "https://o/admin/eve".to_owned(),
        format!("custody://o/workspace/{id}/gateway/"),
        format!("custody://o/workspace/{id}/gateway/{}", "AB".repeat(16)),
        format!("custody://o/workspace/{id}"),
    ] {
        assert_eq!(Identity::from_uri(&bad), None, "{bad}");
    }
}

#[test]
fn certificates_are_accepted_for_their_use_and_name_their_holder() {
    let (_folder, pki) = authority();
    let now = clock::now_us();
    let server = pki.server_tls();
    assert!(accepted(&pki, &server.certificate, KeyUsage::server_auth(), now));
    assert!(!accepted(&pki, &server.certificate, KeyUsage::client_auth(), now));
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let chain = pki.issue(&request(&key), &gateway()).unwrap();
        assert!(accepted(&pki, &chain, KeyUsage::client_auth(), now));
        assert!(!accepted(&pki, &chain, KeyUsage::server_auth(), now));
        assert!(!accepted(&pki, &chain, KeyUsage::client_auth(), now + 91 * DAY_US));
        assert_eq!(peer_identity(&first_der(&chain)), Some(gateway()), "and no name that the request asked for");
        assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 2);
        assert!(chain.ends_with(pki.authority()));
    }
    assert_eq!(peer_identity(&first_der(&server.certificate)), None);
    assert_eq!(peer_identity(b"garbage"), None);
    let admin = fs::read_to_string(pki.folder.join("admin.pem")).unwrap();
    let local = Identity::Admin { origin: "example.org/some/log".to_owned(), name: "local".to_owned() };
    assert_eq!(peer_identity(&first_der(&admin)), Some(local));
    let (_other_folder, other) = authority();
    assert!(!accepted(&other, &admin, KeyUsage::client_auth(), now), "another authority's certificate opened the door");
}

#[test]
fn a_new_name_of_the_ledger_is_in_its_certificate_from_the_next_start_on() {
    let (folder, pki) = authority();
    assert_eq!(pki.renew_due(clock::now_us()).unwrap(), Vec::<&str>::new());
    let mut config = Config::new("example.org/some/log");
    config.resolve(folder.path());
    for name in ["ledger.example.org", "192.0.2.7"] {
        config.tls.server_names.push(name.to_owned());
        let pki = Pki::open(&config).unwrap();
        assert_eq!(pki.renew_due(clock::now_us()).unwrap(), ["server"], "{name}");
        assert_eq!(pki.renew_due(clock::now_us()).unwrap(), Vec::<&str>::new(), "{name}");
        assert!(!lacks_name(&pki.server_tls().certificate, &config.tls.server_names), "{name}");
    }
}

#[test]
fn requests_must_be_whole_and_signed_by_their_own_key() {
    let (_folder, pki) = authority();
    let key = KeyPair::generate().unwrap();
    let (label, good) = {
        let pem = request(&key);
        let (label, der) = pem::decode_vec(pem.trim().as_bytes()).unwrap();
        (label.to_owned(), der)
    };
    let encode = |label: &str, der: &[u8]| pem::encode_string(label, pem::LineEnding::LF, der).unwrap();
    pki.issue(&encode(&label, &good), &gateway()).unwrap();
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    let swapped = {
        let mut bytes = good.clone();
        let (mine, other) = (key.public_key_raw().to_vec(), KeyPair::generate().unwrap().public_key_raw().to_vec());
        let at = bytes.windows(mine.len()).position(|window| window == mine).unwrap();
        bytes[at..at + other.len()].copy_from_slice(&other);
        bytes
    };
    for (name, bad) in [
        ("empty", String::new()),
        ("no pem", "certificate please".to_owned()),
        ("label", encode("CERTIFICATE", &good)),
        ("signature", encode(&label, &forged)),
        ("key", encode(&label, &swapped)),
        ("long", "x".repeat(REQUEST_BYTES_MAX + 1)),
    ] {
        assert!(pki.issue(&bad, &gateway()).is_err(), "{name}");
    }
    for length in 0..good.len() {
        assert!(pki.issue(&encode(&label, &good[..length]), &gateway()).is_err(), "cut at {length}");
    }
}

#[test]
fn own_certificates_renew_at_two_thirds_of_their_life() {
    let (_folder, pki) = authority();
    let ends = pki.certificates();
    assert_eq!(ends.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["authority", "server", "admin"]);
    let before = pki.server_tls();
    let (from, until) = validity(&before.certificate).unwrap();
    let two_thirds = until - (until - from) / 3;
    assert_eq!(pki.renew_due(two_thirds - 1).unwrap(), Vec::<&str>::new());
    let renewals = pki.renewals();
    assert_eq!(pki.next_look(two_thirds - 5 * SECOND_US), Duration::from_secs(5));
    assert_eq!(pki.next_look(from), LOOK_MAX);
    assert_eq!(pki.next_look(until), LOOK_MIN);
    assert_eq!(pki.renew_due(two_thirds).unwrap(), ["server", "admin"]);
    assert!(renewals.has_changed().unwrap(), "whoever serves was not told");
    let after = pki.server_tls();
    assert_ne!(before.certificate, after.certificate);
    assert_eq!(before.key, after.key);
    assert_eq!(fs::read_to_string(pki.folder.join("server.pem")).unwrap(), after.certificate);
    assert!(accepted(&pki, &after.certificate, KeyUsage::server_auth(), clock::now_us()));
    assert!(pki.expiring(clock::now_us()).is_empty());
    assert_eq!(pki.expiring(until).len(), 2);
}

#[test]
fn nothing_is_overwritten_and_keys_are_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let (folder, pki) = authority();
    let mut config = Config::new("example.org/some/log");
    config.resolve(folder.path());
    let before = fs::read(pki.folder.join("authority.key")).unwrap();
    Pki::create(&config, None).unwrap_err();
    assert_eq!(fs::read(pki.folder.join("authority.key")).unwrap(), before);
    for name in ["authority", "server", "admin"] {
        let mode = fs::metadata(pki.folder.join(format!("{name}.key"))).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
