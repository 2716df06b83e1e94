//! How an MCP server behind `https://` shows who it is: by a certificate for its name, from an authority that the
//! configuration names or, if it names none, that this system trusts.

use std::{path::Path, sync::Arc};

use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};

use crate::config::Faults;

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
