//! Waits, and the renewal of the gateway's certificate.

use super::*;
use crate::{
    durable::{
        self,
        recorder::Recorder,
        tests::{SyncOf, fail_next},
    },
    gateway::Gateway,
    spool,
    testing::{TempDir, server::Server, within},
};

#[test]
fn waits_grow_to_their_limit_and_never_are_none() {
    for failures in 0..40 {
        for dice in [0, u32::MAX / 2, u32::MAX] {
            let wait = backoff(failures, BACKOFF_MAX, dice);
            assert!(wait >= BACKOFF_MIN / 10 && wait <= BACKOFF_MAX + Duration::from_millis(1), "{wait:?}");
        }
    }
    assert!(backoff(9, BACKOFF_MAX, u32::MAX) > backoff(3, BACKOFF_MAX, u32::MAX));
}

#[test]
fn what_the_ledger_says_makes_one_line_of_a_log() {
    assert_eq!(printable("a\nb\u{1b}[0m"), "ab[0m");
    assert_eq!(printable(&"x".repeat(1_000)).len(), 256);
}

/// A certificate of these years for a key.
fn certificate(pair: &rcgen::KeyPair, from: i32, to: i32) -> String {
    let mut params = rcgen::CertificateParams::new(vec!["gateway.example".to_owned()]).unwrap();
    (params.not_before, params.not_after) = (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(to, 1, 1));
    params.self_signed(pair).unwrap().pem()
}

fn tls(dir: &TempDir, certificate: String, pair: &rcgen::KeyPair) -> Tls {
    Tls {
        server_name: "localhost".into(),
        authority: certificate.clone(),
        certificate,
        key: pair.serialize_pem().into(),
        renewed: dir.path().join("renewed.pem"),
    }
}

/// Two thirds of its life have passed: a new one is asked for, kept, and connected with, and nothing is lost over that.
#[tokio::test]
async fn a_certificate_is_renewed_by_itself() {
    let (server, dir) = (Server::start().await, TempDir::new());
    let pair = rcgen::KeyPair::generate().unwrap();
    let new = certificate(&pair, 2020, 2070);
    server.shared.script.lock().unwrap().certificate = Some(new.clone());
    let mut parts = server.parts(&dir);
    // The test's ledger is plain HTTP, over which the certificate is only kept.
    parts.link.tls = Some(tls(&dir, certificate(&pair, 2020, 2021), &pair));
    let disk = Recorder::default();
    let gateway = Gateway::start(Box::new(disk), spool::Limits::of_mib(8), parts).unwrap();
    within(async {
        while server.shared.script.lock().unwrap().hellos.len() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(std::fs::read_to_string(dir.path().join("renewed.pem")).unwrap(), new);
    assert_eq!(gateway.drain().await.unwrap().unshipped, 0);
    assert!(server.shared.script.lock().unwrap().certificate.is_none(), "asked for once");
}

/// The fault table's row of the certificate: it is used whether it could be kept or not.
#[test]
fn a_certificate_that_cannot_be_kept_is_used_all_the_same() {
    for stored in [false, true] {
        let dir = TempDir::new();
        let pair = rcgen::KeyPair::generate().unwrap();
        let (old, new) = (certificate(&pair, 2020, 2021), certificate(&pair, 2020, 2070));
        let mut link = Link { endpoint: "https://localhost".into(), tls: Some(tls(&dir, old, &pair)) };
        let path = dir.path().join("renewed.pem");
        match stored {
            // A folder where the temporary file should be.
            false => durable::create_dir(&dir.path().join("renewed.pem.new"), 0o700).unwrap(),
            true => fail_next(SyncOf::Folder),
        }
        assert!(matches!(link.renewed(new.clone()), Some(End::Renewed)));
        assert_eq!(link.tls.unwrap().certificate, new);
        assert_eq!(std::fs::read_to_string(path).ok(), stored.then_some(new));
    }
}

#[test]
fn an_older_certificate_changes_nothing() {
    let (dir, pair) = (TempDir::new(), rcgen::KeyPair::generate().unwrap());
    let new = certificate(&pair, 2020, 2070);
    let mut link = Link { endpoint: "https://localhost".into(), tls: Some(tls(&dir, new.clone(), &pair)) };
    assert!(link.renewed(certificate(&pair, 2020, 2021)).is_none());
    assert!(matches!(link.renewed("nonsense".into()), Some(End::Lost(_))));
    assert_eq!(link.tls.unwrap().certificate, new);
}

/// With another gateway's certificate no ledger would let it in, and it would try for ever.
#[test]
fn a_key_of_another_certificate_is_named_before_anything_is_tried() {
    let (dir, pair, other) = (TempDir::new(), rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
    let certificate = certificate(&pair, 2020, 2070);
    tls(&dir, certificate.clone(), &pair).check().unwrap();
    let why = tls(&dir, certificate.clone(), &other).check().unwrap_err();
    assert!(why.contains("gateway.tls_key is not the key") && why.contains("hint: "), "{why}");
    let why = Tls { key: "nonsense".to_owned().into(), ..tls(&dir, certificate, &pair) }.check().unwrap_err();
    assert!(why.contains("gateway.tls_key holds no key") && why.contains("hint: "), "{why}");
}

/// A process that was stopped has its port open: the system takes the connection, and nobody answers.
#[tokio::test]
async fn a_ledger_that_takes_a_connection_and_says_nothing_is_not_waited_for() {
    let (dir, pair) = (TempDir::new(), rcgen::KeyPair::generate().unwrap());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    let link = Link { endpoint, tls: Some(tls(&dir, certificate(&pair, 2020, 2070), &pair)) };
    let Err(End::Lost(why)) = within(link.connect(Duration::from_millis(20))).await else { panic!("connected") };
    assert!(why.contains("hint: "), "{why}");
}

/// What waiting does not mend is said so: a stream that the ledger does not open, and certificates that do not fit.
#[test]
fn what_somebody_must_mend_is_told_from_a_ledger_that_is_away() {
    let removed = tonic::Status::failed_precondition("the workspace was removed");
    assert!(matches!(removed.into(), End::Mend(why) if why == "the ledger says: the workspace was removed"));
    assert!(matches!(tonic::Status::unavailable("the ledger is ending").into(), End::Lost(_)));
    let of = |error: rustls::Error| End::of_connection(&std::io::Error::other(error), "");
    let stranger = of(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer));
    assert!(matches!(stranger, End::Mend(why) if why.ends_with(OTHER_LEDGER)));
    let refused = of(rustls::Error::AlertReceived(rustls::AlertDescription::UnknownCA));
    assert!(matches!(refused, End::Mend(why) if why.ends_with(OTHER_GATEWAY)));
    assert!(matches!(End::of_connection(&std::io::Error::other("reset"), ""), End::Lost(why) if why.ends_with(AWAY)));
}
