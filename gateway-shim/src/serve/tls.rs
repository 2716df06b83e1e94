//! TLS on both sides. An MCP server behind `https://` shows who it is by a certificate for its name, from an authority that the
//! configuration names or, if it names none, that this system trusts; and so does this shim to members.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::config::{Faults, ServeConfig};

/// The way to the servers of `http://` and `https://` URLs. The system's authorities are read only for the latter.
///
/// # Errors
/// [`Faults`] when no authority can be read.
pub(super) fn connector(
    name: &str,
    http: HttpConnector,
    https: bool,
    ca: Option<&Path>,
) -> Result<HttpsConnector<HttpConnector>, Faults> {
    let fault = |why: String| Faults(vec![why]);
    // The one provider of this program; rustls is not left to choose.
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| fault(format!("TLS cannot be set up: {error}")))?;
    let builder = match ca {
        Some(ca) => builder.with_root_certificates(authorities(name, ca).map_err(fault)?),
        None if https => builder.with_native_roots().map_err(|error| {
            fault(format!(
                "this system has no certificate authorities ({error}); hint: install ca-certificates, or servers.{name}.ca"
            ))
        })?,
        None => builder.with_root_certificates(RootCertStore::empty()),
    };
    let tls = builder.with_no_client_auth();
    Ok(HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(http))
}

fn authorities(name: &str, path: &Path) -> Result<RootCertStore, String> {
    let of_file = |error: String| format!("servers.{name}.ca cannot be used: {error}; hint: PEM certificates");
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| of_file(error.to_string()))? {
        let certificate = certificate.map_err(|error| of_file(error.to_string()))?;
        roots.add(certificate).map_err(|error| of_file(error.to_string()))?;
    }
    if roots.is_empty() { Err(of_file("it holds no certificate".into())) } else { Ok(roots) }
}

/// How often the files of the members' certificate are looked at.
const READ_EVERY: Duration = Duration::from_secs(10);
/// How long a member's handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The certificate that members see. It is read again when its files change; one that cannot be used is left aside.
pub(super) struct Acceptor {
    certificate: PathBuf,
    key: PathBuf,
    now: Mutex<(Instant, [u8; 32], TlsAcceptor)>,
}

impl Acceptor {
    /// What the configuration names; `None` without a certificate.
    ///
    /// # Errors
    /// [`Faults`] when it cannot be used.
    pub(super) fn of(serve: &ServeConfig) -> Result<Option<Self>, Faults> {
        let (Some(certificate), Some(key)) = (&serve.certificate, &serve.key) else { return Ok(None) };
        let (digest, acceptor) = acceptor(certificate, key).map_err(|why| {
            Faults(vec![format!("serve.certificate and serve.key cannot be used: {why}; hint: PEM files")])
        })?;
        let now = Mutex::new((Instant::now(), digest, acceptor));
        Ok(Some(Self { certificate: certificate.clone(), key: key.clone(), now }))
    }

    fn now(&self) -> TlsAcceptor {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.0.elapsed() >= READ_EVERY {
            now.0 = Instant::now();
            match acceptor(&self.certificate, &self.key) {
                Ok((digest, acceptor)) if digest != now.1 => {
                    tracing::info!("members see another certificate from here on");
                    (now.1, now.2) = (digest, acceptor);
                }
                Ok(_) => {}
                Err(why) => tracing::error!(%why, "serve.certificate cannot be used any more; the one before goes on"),
            }
        }
        now.2.clone()
    }

    /// A member's connection, once both sides know each other.
    pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> Option<TlsStream<S>> {
        // What a client does to its own connection is no event.
        tokio::time::timeout(HANDSHAKE, self.now().accept(stream)).await.ok()?.ok()
    }
}

fn acceptor(certificate: &Path, key: &Path) -> Result<([u8; 32], TlsAcceptor), String> {
    let read = |path: &Path| std::fs::read(path).map_err(|why| format!("{}: {why}", path.display()));
    let (chain, secret) = (read(certificate)?, zeroize::Zeroizing::new(read(key)?));
    let digest = custody::hash::sha256(&[&custody::hash::sha256(&[&chain]), &custody::hash::sha256(&[&secret])]);
    let chain = CertificateDer::pem_slice_iter(&chain).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|why| format!("{}: {why}", certificate.display()))?;
    let secret = PrivateKeyDer::from_pem_slice(&secret).map_err(|_| format!("{}: no key in PEM", key.display()))?;
    let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|why| why.to_string())?;
    let mut config = builder.with_no_client_auth().with_single_cert(chain, secret).map_err(|why| why.to_string())?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((digest, TlsAcceptor::from(Arc::new(config))))
}
