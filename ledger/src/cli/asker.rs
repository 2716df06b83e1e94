//! Whoever asks a ledger, here or on another machine, with an API token that lies in a file or a variable.
//!
//! What must hold: the token is in no argument and in no message.

use std::fs;

use custody::wire::query_client::QueryClient;
use tonic::{
    Status,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use super::{
    Fault,
    admin::{broken, causes},
};
use crate::{config::Config, exit::ExitReason, keys};

/// A connection with a token.
pub(super) struct Asker {
    pub(super) remote: QueryClient<Channel>,
    token: MetadataValue<Ascii>,
}

/// Longest answer in bytes: a page of a thousand records, each at most 64 KiB.
const ANSWER_BYTES_MAX: usize = 80 << 20;

/// The token, from where the configuration says that it lies.
fn token(config: &Config) -> Result<MetadataValue<Ascii>, Fault> {
    let ask = &config.ask;
    let nowhere = || {
        let text = format!(
            "there is no API token in the variable {}\nhint: name a file with ask.token_file, or set the variable; ledger token add makes \
             a token",
            ask.token_variable
        );
        Fault::new(ExitReason::Configuration, text)
    };
    let text = if ask.token_file.as_os_str().is_empty() {
        std::env::var(&ask.token_variable).map_err(|_| nowhere())?
    } else {
        let bytes = keys::load_secret(&ask.token_file, None)?;
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let mut value: MetadataValue<Ascii> = format!("Bearer {}", text.trim())
        .parse()
        .map_err(|_| Fault::new(ExitReason::Configuration, "the API token has letters that none has"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// What a ledger answered instead.
pub(super) fn refused(status: &Status) -> Fault {
    if let Some(why) = std::error::Error::source(status) {
        return Fault::failure(format!("the connection to the ledger {} before it answered", broken(why)));
    }
    Fault::failure(status.message().to_owned())
}

impl Asker {
    /// To where the configuration says.
    pub(super) async fn connect(config: &Config) -> Result<Self, Fault> {
        let token = token(config)?;
        let url = &config.ask.ask_url;
        let bad = |why: tonic::transport::Error| Fault::of(ExitReason::Configuration, &why);
        let endpoint = Endpoint::from_shared(url.clone()).map_err(bad)?.connect_timeout(super::admin::CONNECT_LIMIT);
        let endpoint = if url.starts_with("https://") {
            let path = config.paths.tls.join("authority.pem");
            let authority = fs::read(&path).map_err(|why| {
                Fault::failure(format!(
                    "failed to read {}: {why}\nhint: copy tls/authority.pem from the ledger's folder",
                    path.display()
                ))
            })?;
            endpoint.tls_config(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority))).map_err(bad)?
        } else {
            endpoint
        };
        let channel = endpoint.connect().await.map_err(|why| {
            let text = format!("failed to reach the ledger at {url}{}", causes(&why));
            Fault::failure(format!("{text}\nhint: is it running, and is ask.ask_url in the configuration right?"))
        })?;
        Ok(Self { remote: QueryClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX), token })
    }

    /// A message with the token.
    pub(super) fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("authorization", self.token.clone());
        request
    }
}
