//! Whom an identity provider's word makes known, and each way to forge it that is refused.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::SigningKey;
use ring::{
    hmac,
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaEncoding,
        RsaKeyPair,
    },
};
use serde_json::json;
use tokio::sync::mpsc;

use super::*;
use crate::access::{Access, Ask, Cut, TELL_EVERY_US, Unauthenticated, tests::put_in_force};

const ISSUER: &str = "https://login.example.org/";
const ALICE: &str = "a11ce000000000000000000000000001";
const BOB: &str = "b0b00000000000000000000000000001";
const AGENT: &str = "a9000000000000000000000000000001";
/// 2096-11-22: what asks the clock must find no JWT's end behind it.
const NOW_S: u64 = 4_004_388_000;
const NOW: u64 = NOW_S * 1_000_000;
/// A name, in characters that no record may hold.
const SUBJECT: &str = "jörg.müller@example.org";

/// A provider with a key of each kind. The RSA key stands in the tree: making one takes seconds.
struct Signer {
    rsa: RsaKeyPair,
    ec: EcdsaKeyPair,
    ed: SigningKey,
}

impl Signer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        Self {
            rsa: RsaKeyPair::from_der(include_bytes!("testdata/rsa.der")).unwrap(),
            ec: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap(),
            ed: SigningKey::from_bytes(&crate::random::bytes()),
        }
    }

    fn modulus(&self) -> Vec<u8> {
        ring::rsa::PublicKeyComponents::<Vec<u8>>::from(self.rsa.public_key()).n
    }

    /// The set of keys, as providers publish it: with one for encryption and one of a kind that is not used.
    fn set(&self) -> Vec<u8> {
        let point = self.ec.public_key().as_ref().to_vec();
        let set = json!({"keys": [
            {"kty": "RSA", "kid": "enc", "use": "enc", "n": encode(&self.modulus()), "e": "AQAB"},
            {"kty": "oct", "kid": "oct", "k": "AAAA"},
            {"kty": "RSA", "kid": "rsa", "alg": "RS256", "n": encode(&self.modulus()), "e": "AQAB"},
            {"kty": "RSA", "kid": "pss", "use": "sig", "n": encode(&self.modulus()), "e": "AQAB", "x5t": "x"},
            {"kty": "EC", "kid": "ec", "crv": "P-256", "x": encode(&point[1..33]), "y": encode(&point[33..])},
            {"kty": "OKP", "kid": "ed", "crv": "Ed25519", "x": encode(self.ed.verifying_key().as_bytes())},
        ]});
        serde_json::to_vec(&set).unwrap()
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
        let bytes = message.as_bytes();
        let rsa = |padding: &'static dyn RsaEncoding| {
            let mut signature = vec![0; self.rsa.public().modulus_len()];
            self.rsa.sign(padding, &SystemRandom::new(), bytes, &mut signature).unwrap();
            signature
        };
        let signature = match header["alg"].as_str().unwrap() {
            "RS256" => rsa(&RSA_PKCS1_SHA256),
            "PS256" => rsa(&RSA_PSS_SHA256),
            "ES256" => self.ec.sign(&SystemRandom::new(), bytes).unwrap().as_ref().to_vec(),
            "EdDSA" | "Ed25519" => custody::key::sign_plain(&self.ed, bytes).to_vec(),
            "HS256" => hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.modulus()), bytes).as_ref().to_vec(),
            _ => Vec::new(),
        };
        format!("{message}.{}", encode(&signature))
    }

    fn signed(&self, alg: &str, kid: &str, claims: &Value) -> String {
        self.sign(&json!({"alg": alg, "kid": kid, "typ": "JWT"}), claims)
    }
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": ["other", "custody"], "exp": NOW_S + 300, "sub": SUBJECT, "groups": ["eng", "Überall"],
           "azp": "claude"})
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

fn section(more: &str) -> IdentityProvider {
    let text = format!("issuer = \"{ISSUER}\"\naudience = \"custody\"\n{more}");
    toml::from_str(&text).unwrap()
}

const CLAIMS: &str = "groups_claim = \"groups\"\nagent_claim = \"azp\"\njwks_file = \"keys.json\"\n";

fn policy(more: &str) -> String {
    let digest = |subject| custody::id::hex(&subject_digest(ISSUER, subject));
    format!(
        "version = 1\n[members.{ALICE}]\nsubject = \"sha256:{}\"\ngroups = [\"staff\"]\n{more}\n[members.{BOB}]\nsubject = \
         \"id\"\n[agents.{AGENT}]\nsubject = \"sha256:{}\"\n[[rules]]\nid = \"eng\"\neffect = \"allow\"\ngroups = \
         [\"eng\"]\ntools = [\"*\"]\n",
        digest(SUBJECT),
        digest("claude")
    )
}

type News = mpsc::Receiver<(MemberId, Arc<Vouched>)>;

/// The endpoint's view of a policy and a provider, and what it tells of groups.
fn access(signer: &Signer, places: usize) -> (Access, Arc<Provider>, News) {
    let provider = Arc::new(Provider::new(section(CLAIMS)));
    provider.take(Keys::parse(&signer.set()).unwrap());
    let access = Access::of(&policy(""), None).unwrap();
    let (news, told) = mpsc::channel(places);
    access.trust(Arc::clone(&provider), news);
    (access, provider, told)
}

fn said(access: &Access, jwt: &str, now: u64) -> Result<crate::access::Caller, Unauthenticated> {
    access.authenticate(Some(&format!("Bearer {jwt}")), now)
}

fn ask() -> Ask<'static> {
    Ask { server: "mail", method: "tools/call", name: Some("send"), from_server: false, request_bytes: 0 }
}

#[test]
fn a_member_is_known_by_what_a_key_of_the_set_has_signed() {
    let signer = Signer::new();
    let (access, _, _told) = access(&signer, 9);
    for (alg, kid) in
        [("RS256", "rsa"), ("PS256", "pss"), ("RS256", "pss"), ("ES256", "ec"), ("EdDSA", "ed"), ("Ed25519", "ed")]
    {
        let caller =
            said(&access, &signer.signed(alg, kid, &claims()), NOW).unwrap_or_else(|why| panic!("{alg} {why:?}"));
        assert_eq!((caller.member, caller.token), (MemberId::from_hex(ALICE).unwrap(), None));
        assert_eq!(caller.agent, MemberId::from_hex(AGENT));
        assert_eq!(*caller.groups, ["eng".to_owned(), "staff".to_owned()]);
        assert!(access.judge(&caller, &ask()).allowed);
    }
    let by_id = signer.signed("EdDSA", "ed", &with("sub", json!(BOB)));
    assert_eq!(said(&access, &by_id, NOW).unwrap().member.to_string(), BOB);
    let one = signer.signed("EdDSA", "ed", &with("aud", json!("custody")));
    assert!(said(&access, &one, NOW).is_ok());
    // As long as the leeway.
    let jwt = signer.signed("EdDSA", "ed", &with("nbf", json!(NOW_S + 60)));
    assert!(said(&access, &jwt, NOW).is_ok() && said(&access, &jwt, NOW + 359_000_000).is_ok());
    assert_eq!(said(&access, &jwt, NOW + 360_000_000).unwrap_err().kind, Why::Expired);
}

#[test]
fn what_is_forged_old_or_for_another_is_refused() {
    let signer = Signer::new();
    let (access, provider, _told) = access(&signer, 9);
    let good = signer.signed("RS256", "rsa", &claims());
    let (message, signature) = good.rsplit_once('.').unwrap();
    let (header, body) = message.split_once('.').unwrap();
    let ed = |claims: &Value| signer.signed("EdDSA", "ed", claims);
    let tampered = format!("{header}.{}.{signature}", encode(with("sub", json!(BOB)).to_string().as_bytes()));
    let crit = signer.sign(&json!({"alg": "EdDSA", "kid": "ed", "crit": ["x"], "x": 1}), &claims());
    let nobody = signer.sign(&json!({"alg": "EdDSA"}), &claims());
    let stripped = format!("{}.{body}.", encode(br#"{"alg":"none","kid":"rsa"}"#));
    for (jwt, why, what) in [
        (tampered, Why::Wrong, "another body"),
        (format!("{message}.{}", encode(&[0; 256])), Why::Wrong, "another signature"),
        (format!("{message}."), Why::Wrong, "no signature"),
        (stripped, Why::Malformed, "none"),
        (signer.signed("none", "rsa", &claims()), Why::Malformed, "none"),
        (signer.signed("HS256", "rsa", &claims()), Why::Malformed, "a public key as a secret"),
        (signer.signed("HS256", "oct", &claims()), Why::Malformed, "a secret of the set"),
        (signer.signed("RS256", "ec", &claims()), Why::Wrong, "an RSA signature under the id of another key"),
        (signer.signed("ES256", "rsa", &claims()), Why::Wrong, "and the other way"),
        (signer.signed("PS256", "rsa", &claims()), Why::Wrong, "not the one algorithm of that key"),
        (signer.signed("RS256", "enc", &claims()), Why::Unknown, "a key for encryption"),
        (signer.signed("RS256", "new", &claims()), Why::Unknown, "a key that is not in the set"),
        (Signer::new().signed("EdDSA", "ed", &claims()), Why::Wrong, "somebody else's key"),
        (crit, Why::Malformed, "critical and not understood"),
        (nobody, Why::Malformed, "no key id"),
        (ed(&with("exp", json!(NOW_S - 60))), Why::Expired, "expired"),
        (ed(&without("exp")), Why::Malformed, "for ever"),
        (ed(&with("exp", json!("tomorrow"))), Why::Malformed, "no time"),
        (ed(&with("nbf", json!(NOW_S + 61))), Why::Wrong, "not yet"),
        (ed(&with("aud", json!("another"))), Why::Wrong, "for another"),
        (ed(&with("aud", json!(["custody-admin"]))), Why::Wrong, "for another"),
        (ed(&without("aud")), Why::Wrong, "for whomever"),
        (ed(&with("iss", json!("https://login.example.org"))), Why::Wrong, "of another issuer"),
        (ed(&without("sub")), Why::Malformed, "of nobody"),
        (ed(&with("sub", json!("somebody.else"))), Why::Unknown, "of somebody who is no member"),
        (ed(&with("sub", json!(ALICE))), Why::Unknown, "an id where the policy does not take one"),
        (ed(&with("groups", json!({"eng": true}))), Why::Malformed, "groups in another form"),
        (format!("{good}."), Why::Wrong, "a dot more"),
        ("a.b".into(), Why::Malformed, "no JWT"),
        (ed(&with("x", json!("x".repeat(20_000)))), Why::Malformed, "too long"),
    ] {
        let refused = said(&access, &jwt, NOW).unwrap_err();
        assert_eq!(refused.kind, why, "{what}");
        assert!(!format!("{refused:?}").contains("rg.m"));
    }
    // What was checked is not checked again, unless the keys are others.
    assert!(said(&access, &good, NOW).is_ok());
    provider.take(Keys::default());
    assert_eq!(said(&access, &good, NOW).unwrap_err().kind, Why::Unknown);
    let shown = format!("{access:?}");
    assert!(!shown.contains("rg.m") && !shown.contains(&good[..40]));
}

#[test]
fn a_providers_groups_count_once_they_are_told_and_go_with_the_next_word() {
    let signer = Signer::new();
    let (access, _, mut told) = access(&signer, 1);
    let with_groups = |groups: Value, iat: u64| {
        let mut claims = with("groups", groups);
        claims["iat"] = json!(iat);
        signer.signed("EdDSA", "ed", &claims)
    };
    let at = std::cell::Cell::new(NOW);
    let groups = |jwt: &str| said(&access, jwt, at.get()).unwrap().groups.join(" ");
    let (eng, ops) = (with_groups(json!(["eng"]), NOW_S), with_groups(json!("ops"), NOW_S + 1));
    assert_eq!(groups(&eng), "eng staff");
    // The one place is taken: nobody could say later why it was allowed.
    at.set(NOW + TELL_EVERY_US);
    assert_eq!(groups(&ops), "staff");
    let (member, vouched) = told.try_recv().unwrap();
    assert_eq!((member.to_string().as_str(), vouched.groups.as_slice()), (ALICE, ["eng".to_owned()].as_slice()));
    assert_eq!(groups(&ops), "ops staff");
    assert_eq!(told.try_recv().unwrap().1.groups, ["ops"]);
    // Told once, and again over another policy.
    assert_eq!((groups(&ops), told.try_recv().is_err()), ("ops staff".into(), true));
    put_in_force(&access, &policy(""));
    assert_eq!((groups(&ops), told.try_recv().is_ok()), ("ops staff".into(), true));
    // What could not be recorded does not count, and is not tried with each request.
    access.forget_groups(MemberId::from_hex(ALICE).unwrap());
    assert_eq!((groups(&ops), told.try_recv().is_ok()), ("staff".into(), false));
    at.set(at.get() + TELL_EVERY_US);
    assert_eq!((groups(&ops), told.try_recv().is_ok()), ("ops staff".into(), true));
}

/// Each time that groups are told is up to 257 records, which no limit of the policy binds.
#[test]
fn two_good_words_that_name_different_groups_make_no_flood_of_records() {
    let signer = Signer::new();
    let (access, _, mut told) = access(&signer, 99);
    let word = |groups: Value, iat: Option<u64>| {
        let mut claims = with("groups", groups);
        match iat {
            Some(iat) => claims["iat"] = json!(iat),
            None => claims["exp"] = json!(NOW_S + 301),
        }
        signer.signed("EdDSA", "ed", &claims)
    };
    let mut count = || std::iter::from_fn(|| told.try_recv().ok()).count();
    let groups = |jwt: &str, at: u64| said(&access, jwt, at).unwrap().groups.join(" ");
    let (old, new) = (word(json!("ops"), Some(NOW_S - 9)), word(json!("eng"), Some(NOW_S)));
    for second in 0..100 {
        let at = NOW + second * 1_000_000;
        assert_eq!(groups(&new, at), "eng staff");
        assert_eq!(groups(&old, at), "staff", "an older word changes nothing, and does not count");
    }
    assert_eq!(count(), 1);
    // Ever newer ones: once in a while.
    let words: Vec<String> =
        (1..=100).map(|s| word(json!(if s % 2 == 0 { "eng" } else { "ops" }), Some(NOW_S + s))).collect();
    words.iter().zip(1..).for_each(|(jwt, s)| drop(groups(jwt, NOW + 100_000_000 + s * 1_000_000)));
    let told_again = count();
    assert!((1..=10).contains(&told_again), "{told_again}");
    // Words without a time of issue have the order of their ends.
    let (first, second) = (without("iat"), word(json!("ops"), None));
    let first = signer.signed("EdDSA", "ed", &first);
    put_in_force(&access, &policy(""));
    access.0.provider.get().unwrap().seen.lock().unwrap().clear();
    for at in (0..10).map(|turn| NOW + 10 * turn * 1_000_000) {
        groups(&first, at);
        groups(&second, at);
    }
    assert_eq!(count(), 2);
}

#[test]
fn a_change_cuts_whoever_a_provider_vouched_for() {
    let signer = Signer::new();
    let (access, _, _told) = access(&signer, 9);
    let caller = said(&access, &signer.signed("EdDSA", "ed", &claims()), NOW).unwrap();
    let still = |now| access.still_allowed(&caller, &ask(), now);
    assert!(still(NOW).is_ok());
    let kind = |cut| match cut {
        Err(Cut::Unauthenticated(cut)) => cut.kind,
        other => panic!("{other:?}"),
    };
    assert_eq!(kind(still(NOW + 360_000_000)), Why::Expired);
    put_in_force(&access, &policy("revoked = true"));
    assert_eq!(kind(still(NOW)), Why::Revoked);
    let refused = said(&access, &signer.signed("RS256", "rsa", &claims()), NOW).unwrap_err();
    assert_eq!((refused.kind, refused.caller.map(|caller| caller.member)), (Why::Revoked, MemberId::from_hex(ALICE)));
    // The subject is another member's now.
    let text = policy("").replace(ALICE, "c0000000000000000000000000000001");
    put_in_force(&access, &text);
    assert_eq!(kind(still(NOW)), Why::Revoked);
}

#[test]
fn a_section_and_a_set_say_what_is_wrong_with_them() {
    assert_eq!(section(CLAIMS).faults(), Vec::<String>::new());
    for (more, words) in [
        ("", "needs one of jwks_file and jwks_url"),
        ("jwks_url = \"http://x/\"\n", "jwks_url is no https:// URL"),
        ("jwks_file = \"x\"\nleeway_s = 301\n", "leeway_s; hint: 0 to 300"),
        ("jwks_file = \"x\"\nrefresh_s = 59\n", "refresh_s; hint: 60 to 86400"),
        ("jwks_file = \"x\"\nca = \"y\"\n", "ca is for a jwks_url alone"),
    ] {
        let faults = section(more).faults();
        assert!(faults.len() == 1 && faults[0].contains(words), "{faults:?}");
    }
    for set in ["", "[]", "{}", "{\"keys\":[]}", "{\"keys\":[{\"kty\":\"oct\",\"kid\":\"a\",\"k\":\"AA\"}]}"] {
        assert!(Keys::parse(set.as_bytes()).is_err(), "{set}");
    }
    assert!(Keys::parse(&vec![b' '; jwt::JWKS_BYTES_MAX + 1]).is_err());
}

#[tokio::test]
async fn keys_come_from_a_file_that_must_be_there() {
    let dir = crate::testing::TempDir::new();
    let file = dir.path().join("keys.json");
    let config = IdentityProvider { jwks_file: Some(file.clone()), ..section(CLAIMS) };
    let Err(faults) = Provider::start(config.clone()).await else { panic!("it is not there") };
    assert!(faults.0[0].contains("hint"), "{faults:?}");
    let signer = Signer::new();
    crate::durable::create_new(&file, &signer.set(), false).unwrap();
    let provider = Provider::start(config).await.unwrap();
    assert!(provider.vouches(&signer.signed("ES256", "ec", &claims()), NOW).is_ok());
}

/// A provider's address, behind TLS: an authority's PEM and a port, where every connection gets this answer.
async fn tls_provider(answer: Vec<u8>) -> (u16, String) {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (of_ca, pair) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&of_ca).unwrap().pem();
    let leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&pair, &rcgen::Issuer::new(params, of_ca)).unwrap();
    let builder = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let chain = vec![CertificateDer::from_pem_slice(leaf.pem().as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(pair.serialize_pem().as_bytes()).unwrap();
    let config = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config.with_single_cert(chain, key).unwrap()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = [0; 4_096];
            drop(stream.read(&mut request).await);
            // Whoever reads no more than it takes may be gone before the end.
            drop(stream.write_all(&answer).await);
            drop(stream.shutdown().await);
        }
    });
    (port, ca)
}

#[tokio::test]
async fn keys_come_over_https_from_whom_the_configuration_trusts_and_within_a_bound() {
    let (signer, dir) = (Signer::new(), crate::testing::TempDir::new());
    let answer = |status: &str, body: &[u8]| {
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        [head.into_bytes(), body.to_vec()].concat()
    };
    let set = signer.set();
    for (answer, trusted, holds, what) in [
        (answer("200 OK", &set), true, true, "as it should be"),
        (answer("200 OK", &set), false, false, "a certificate of an authority that is not trusted"),
        (answer("302 Found", &set), true, false, "another status"),
        (answer("200 OK", &vec![b' '; jwt::JWKS_BYTES_MAX + 1]), true, false, "too long"),
    ] {
        let (port, ca) = tls_provider(answer).await;
        let file = dir.path().join("ca.pem");
        crate::durable::replace(&file, ca.as_bytes()).unwrap();
        let url = format!("https://localhost:{port}/keys");
        let ca = trusted.then_some(file);
        let config = IdentityProvider { jwks_file: None, jwks_url: Some(url), ca, ..section(CLAIMS) };
        let source = fetch::Source::new(&config).unwrap();
        let read = crate::testing::within(source.read()).await;
        assert_eq!(read.as_ref().is_ok_and(|read| *read == set), holds, "{what}: {read:?}");
    }
}
