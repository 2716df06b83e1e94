//! TLS on both sides: who is believed, and whom members see.

use super::*;

/// An authority in PEM, and a certificate for this name from it with its key.
fn certificate(name: &str) -> (String, String, String) {
    let of_ca = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&of_ca).unwrap().pem();
    let pair = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    let leaf = leaf.signed_by(&pair, &rcgen::Issuer::new(params, of_ca)).unwrap();
    (ca, leaf.pem(), pair.serialize_pem())
}

/// An MCP server behind TLS, with a certificate for these names from an authority of its own, whose PEM it gives.
async fn tls_server(name: &str) -> (std::net::SocketAddr, String) {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
    let (ca, leaf, secret) = certificate(name);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let chain = vec![CertificateDer::from_pem_slice(leaf.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(secret.as_bytes()).unwrap();
    let config = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let answer = hyper::service::service_fn(|request: hyper::Request<hyper::body::Incoming>| async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let id = serde_json::from_slice::<Value>(&body).unwrap()["id"].clone();
                let answer = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"over":"tls"}}}}"#);
                Ok::<_, std::convert::Infallible>(json(StatusCode::OK, answer.into()))
            });
            let io = TokioIo::new(stream);
            tokio::spawn(http1::Builder::new().serve_connection(io, answer));
        }
    });
    (address, ca)
}

#[tokio::test]
async fn a_server_behind_tls_is_believed_only_with_its_certificate() {
    let dir = TempDir::new();
    for (name, own_authority, status, outcome) in [
        ("localhost", true, StatusCode::OK, Outcome::Ok),
        // Its authority is none of this system's.
        ("localhost", false, StatusCode::BAD_GATEWAY, Outcome::TransportError),
        ("elsewhere.example", true, StatusCode::BAD_GATEWAY, Outcome::TransportError),
    ] {
        let (address, ca) = tls_server(name).await;
        let file = dir.path().join(format!("{name}.pem"));
        durable::replace(&file, ca.as_bytes()).unwrap();
        let ca = if own_authority { format!("ca = {:?}\n", file.to_str().unwrap()) } else { String::new() };
        let bench = Bench::new(&format!("url = \"https://localhost:{}/mcp\"\n{ca}", address.port())).await;
        let (seen, _, body) = bench.post(&[], &tool_call(1, "echo")).await;
        assert_eq!(seen, status, "{name}, {own_authority}: {body:?}");
        assert_eq!(summary(&bench.calls().await[0]).3, outcome);
    }
}

#[tokio::test]
async fn without_authorities_there_is_no_start() {
    let (ledger, dir) = (server::Server::start().await, TempDir::new());
    let gateway = ledger.gateway(&dir).await;
    let access = Access::of("version = 1\n", None).unwrap();
    let (serving, servers) = config("url = \"https://localhost/mcp\"\nca = \"/nowhere/ca.pem\"\n");
    assert!(Front::new(gateway, access, serving, &servers).err().unwrap().to_string().contains("servers.test.ca"));
}

/// Members see the certificate that the configuration names, and nobody speaks to that port in plaintext.
#[tokio::test]
async fn members_speak_over_tls_where_there_is_a_certificate() {
    use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let dir = TempDir::new();
    let (ca, leaf, key) = certificate("shim.example");
    let (of_leaf, of_key) = (dir.path().join("leaf.pem"), dir.path().join("key.pem"));
    durable::replace(&of_leaf, leaf.as_bytes()).unwrap();
    durable::replace(&of_key, key.as_bytes()).unwrap();
    let (ledger, of_gateway) = (server::Server::start().await, TempDir::new());
    let gateway = ledger.gateway(&of_gateway).await;
    let (mut serving, servers) = config(&format!("url = \"http://{}/mcp\"\n", odd_server().await));
    (serving.certificate, serving.key) = (Some(of_leaf), Some(of_key.clone()));
    serving.hosts = vec!["shim.example".into()];
    let (text, tokens) = policy(&[ALICE], ALL);
    let front = Front::new(gateway.clone(), Access::of(&text, None).unwrap(), serving.clone(), &servers).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(front, listener, std::future::pending(), Duration::from_secs(2)));
    let request = format!(
        "POST /mcp/test HTTP/1.1\r\nhost: shim.example:443\r\nauthorization: {}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{HELLO}",
        tokens[0],
        HELLO.len()
    );
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let client = client.with_root_certificates(roots).with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut stream = connector.connect(ServerName::try_from("shim.example").unwrap(), stream).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    within(stream.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    let mut plain = tokio::net::TcpStream::connect(address).await.unwrap();
    plain.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    within(plain.read_to_end(&mut answer)).await.ok();
    assert!(!answer.starts_with(b"HTTP"));
    // One that is not there is found before anything listens.
    serving.certificate = Some(dir.path().join("none.pem"));
    let nobody = Access::of("version = 1\n", None).unwrap();
    let fault = Front::new(gateway, nobody, serving, &servers).err().unwrap().to_string();
    assert!(fault.contains("serve.certificate"), "{fault}");
}
