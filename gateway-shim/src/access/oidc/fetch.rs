//! Where an identity provider's keys are read: a file, or an `https://` URL.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};

use super::{IdentityProvider, jwt::JWKS_BYTES_MAX};
use crate::{config::Faults, serve};

/// How long a provider may take for its keys.
const WAIT: Duration = Duration::from_secs(10);

/// Where the keys are.
pub(super) enum Source {
    File(PathBuf),
    Url(hyper::Uri, Box<Client<HttpsConnector<HttpConnector>, Empty<Bytes>>>),
}

impl Source {
    pub(super) fn new(config: &IdentityProvider) -> Result<Self, Faults> {
        if let Some(file) = &config.jwks_file {
            return Ok(Self::File(file.clone()));
        }
        let url = config.jwks_url.as_ref().and_then(|url| url.parse().ok());
        let url = url.ok_or_else(|| Faults(config.faults()))?;
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_connect_timeout(Some(WAIT));
        let connector = serve::tls::connector("serve.identity_provider", http, true, config.ca.as_deref())?;
        Ok(Self::Url(url, Box::new(Client::builder(TokioExecutor::new()).build(connector))))
    }

    /// The bytes of the set.
    pub(super) async fn read(&self) -> Result<Vec<u8>, String> {
        match self {
            Self::File(path) => {
                let path = path.clone();
                let read = tokio::task::spawn_blocking(move || {
                    std::fs::read(&path).map_err(|error| format!("{}: {error}; hint: who may read it?", path.display()))
                });
                read.await.map_err(|error| error.to_string())?
            }
            Self::Url(url, client) => {
                let read = async {
                    // A redirection is not followed: the address is the configuration's word.
                    let answer = client.get(url.clone()).await.map_err(|error| error.to_string())?;
                    if !answer.status().is_success() {
                        return Err(format!("the provider answers with the status {}", answer.status().as_u16()));
                    }
                    let body = Limited::new(answer.into_body(), JWKS_BYTES_MAX).collect().await;
                    Ok(body.map_err(|error| error.to_string())?.to_bytes().to_vec())
                };
                tokio::time::timeout(WAIT, read).await.map_err(|_| "the provider does not answer".to_owned())?
            }
        }
    }
}
