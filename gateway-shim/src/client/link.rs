//! The way to the ledger: connections, and the certificate that this gateway shows there.

use std::{path::PathBuf, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use zeroize::Zeroizing;

use super::{End, SILENT};
use crate::{certificate, clock, durable};

/// Longest wait for a connection and its handshake.
pub(super) const CONNECT_WAIT: Duration = Duration::from_secs(10);

/// Where the ledger is, and how it knows this gateway.
pub struct Link {
    /// URL.
    pub endpoint: String,
    /// Name in the ledger's certificate; `None` for plaintext.
    pub tls: Option<Tls>,
}

/// What mutual TLS needs.
pub struct Tls {
    /// Name in the ledger's certificate.
    pub server_name: String,
    /// PEM of the authority that is pinned.
    pub authority: String,
    /// PEM of the certificate, leaf first.
    pub certificate: String,
    /// PEM of its key.
    pub key: Zeroizing<String>,
    /// Where a renewed certificate is kept.
    pub renewed: PathBuf,
}

impl Tls {
    /// Whether the authority, the certificate and its key can be used together.
    ///
    /// # Errors
    /// In words, with the next move.
    pub fn check(&self) -> Result<(), String> {
        let again =
            "hint: gateway-shim request, then ledger gateway enrol, which answers with the certificate of this key";
        let of_pem = |pem: &str| CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
        let mut roots = RootCertStore::empty();
        for authority in of_pem(&self.authority).unwrap_or_default() {
            roots.add(authority).map_err(|why| format!("gateway.enrolment holds no authority: {why}; {again}"))?;
        }
        let chain = of_pem(&self.certificate).unwrap_or_default();
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes())
            .map_err(|why| format!("gateway.tls_key holds no key ({why}); hint: gateway-shim key new"))?;
        ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_root_certificates(roots).with_client_auth_cert(chain, key))
            .map(drop)
            .map_err(|why| {
                format!("gateway.tls_key is not the key of the certificate in gateway.enrolment ({why}); {again}")
            })
    }
}

impl Link {
    /// Connects within `wait`: also a ledger that is stopped has its port open, and never answers the handshake.
    pub(super) async fn connect(&self, wait: Duration) -> Result<Channel, End> {
        let lost = |error: tonic::transport::Error| End::of_connection(&error, "");
        let mut endpoint = Endpoint::from_shared(self.endpoint.clone())
            .map_err(lost)?
            .connect_timeout(wait)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(20))
            .keep_alive_while_idle(true);
        if let Some(tls) = &self.tls {
            let config = ClientTlsConfig::new()
                .domain_name(tls.server_name.clone())
                .ca_certificate(Certificate::from_pem(&tls.authority))
                .identity(Identity::from_pem(&tls.certificate, tls.key.as_bytes()));
            endpoint = endpoint.tls_config(config).map_err(lost)?;
        }
        let connected = tokio::time::timeout(wait, endpoint.connect()).await;
        connected.map_err(|_| End::Lost(SILENT.into()))?.map_err(lost)
    }

    /// When two thirds of the certificate's life have passed, but not within a second from now; `None` without one.
    pub(super) fn renew_at_us(&self) -> Option<u64> {
        let at_us = certificate::validity(&self.tls.as_ref()?.certificate)?.renew_at_us();
        Some(at_us.max(clock::now_us() + 1_000_000))
    }

    /// When the certificate ends; `None` without one.
    pub(super) fn certificate_until_us(&self) -> Option<u64> {
        Some(certificate::validity(&self.tls.as_ref()?.certificate)?.not_after_us)
    }

    /// Keeps a new certificate and connects with it.
    pub(super) fn renewed(&mut self, pem: String) -> Option<End> {
        let tls = self.tls.as_mut()?;
        let (old, new) = (certificate::validity(&tls.certificate), certificate::validity(&pem));
        let (Some(old), Some(new)) = (old, new) else { return Some(End::Lost("a certificate is malformed".into())) };
        if new.not_after_us <= old.not_after_us {
            return None;
        }
        if let Err(error) = durable::replace(&tls.renewed, pem.as_bytes()) {
            tracing::error!(%error, "failed to keep the new certificate; it is used until this process ends");
        }
        tracing::info!("certificate renewed");
        tls.certificate = pem;
        Some(End::Renewed)
    }
}
